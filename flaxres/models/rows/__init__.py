"""Rows of the table of models: a network class with some attributes bound, a module a kind."""
