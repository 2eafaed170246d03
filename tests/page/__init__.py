"""A package, so that fixtures can be those of the folder and end with it."""
