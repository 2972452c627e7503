"""A finished run as folders that can be published: the model with its card, the data set with its."""
