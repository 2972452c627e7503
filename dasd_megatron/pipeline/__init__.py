"""From a recipe to the graph of its steps, and the registry of step kinds."""
