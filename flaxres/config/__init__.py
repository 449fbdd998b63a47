"""Configs of runs: sections and settings, their checks, and their files.

`schema` declares every setting once, at its field.
"""
