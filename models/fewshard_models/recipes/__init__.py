"""Training recipes for the models of the zoo, as settings and short functions."""
