"""What a Hugging Face model is: its sizes, its family's table of parameters, and the layouts that it can be split into."""
