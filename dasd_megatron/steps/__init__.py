"""What every step kind is made of: its config, its inputs and output, and what it says about its own cost."""
