"""Measurements and pictures of a config before it is trained, and of compiled programs."""
