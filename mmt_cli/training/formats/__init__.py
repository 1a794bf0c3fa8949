"""How the examples of each kind of data set are found; one module a format."""
