"""Residual networks as pure Linen modules."""
