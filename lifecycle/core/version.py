"""This package's version, from `pyproject.toml`."""

from importlib.metadata import version

VERSION = version("lifecycle")
