"""This package's version, which `pyproject.toml` says."""

from importlib.metadata import version

VERSION = version("lifecycle")
