"""Displays plans and searches as tables and bars, and writes plans to files."""
