"""The server of an exported program, and the crop that it shares with the trainer's evaluation.

Modules of this package import nothing else of flaxres, and each other by relative imports, because
`flaxres export` copies the package into the folder of an export, where flaxres may be absent.
"""
