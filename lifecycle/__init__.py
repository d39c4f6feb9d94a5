"""A language model's whole life in one framework."""

__version__ = "0.1.0"
