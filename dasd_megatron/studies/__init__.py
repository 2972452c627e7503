"""Studies: one recipe in several arms and seeds, and what the differences between them are."""
