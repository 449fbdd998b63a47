"""Sections of a config. Each field is the one declaration of its setting.

The default, the rule and the other `Facts` stand in the call of `setting`, the help text in the
docstring below it. `check`, `--help`, resume and the comparison of processes read them here.

`--help` keeps the line breaks of these docstrings: 68 columns fit into a terminal of 80.
"""
