"""Predictions and exports of trained networks."""
