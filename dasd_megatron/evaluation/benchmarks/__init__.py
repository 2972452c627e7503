"""What each benchmark is: its data, prompt and grader. The data itself is never here."""
