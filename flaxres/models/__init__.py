"""Residual networks as Linen modules, written like their papers.

How an operation is computed on CPU, GPU or TPU is in `flaxres.ops`.
"""
