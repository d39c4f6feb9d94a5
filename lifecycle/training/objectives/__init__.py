"""Objectives: pure formulas, and the function that turns a formula into an objective of a model and a batch."""
