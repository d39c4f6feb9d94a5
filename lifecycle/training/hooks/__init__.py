"""Hooks: the work between steps, one kind per file, called in the order of the loop's list."""
