"""From a recipe to the graph of its steps; every name in it checked against the registries."""
