"""Families of networks as data: what a `config.json` of a `model_type` means, and where its weights
lie.

Nothing outside this folder asks for a family's name: it takes the row that a directory, or a
configuration read from one, names.
"""
