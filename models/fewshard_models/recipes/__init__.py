"""Recipes: how each model of the zoo is trained, as data and short functions."""
