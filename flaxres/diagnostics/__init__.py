"""Measurements and figures of a config before it is trained, and of compiled programs."""
