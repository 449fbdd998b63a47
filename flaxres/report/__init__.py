"""Explains finished runs: the full evaluation, and a page about one or several runs."""
