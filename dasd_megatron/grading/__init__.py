"""Whether a response's final answer is right."""
