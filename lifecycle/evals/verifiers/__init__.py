"""What says whether an output is right: texts, numbers and formulas, code by its tests.

One mechanism for evaluation and RL."""
