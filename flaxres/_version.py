"""The version of flaxres."""

__version__ = "0.1.0"
