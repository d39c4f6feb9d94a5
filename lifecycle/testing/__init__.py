"""Tiny models, rows and jobs for tests: ours, and those of code built on this package.

Nothing else in the package imports this folder.
"""
