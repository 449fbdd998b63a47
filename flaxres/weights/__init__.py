"""Weights in and out of the form that torchvision and timm use."""
