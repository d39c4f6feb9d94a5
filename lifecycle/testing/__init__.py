"""Tiny models, rows and jobs for tests: ours, and those of code built on this package.

Nothing in the package imports this room.
"""
