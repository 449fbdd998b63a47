"""Datasets, decoding, loading and augmentation."""
