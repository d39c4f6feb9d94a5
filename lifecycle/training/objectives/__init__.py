"""What a stage minimises: pure formulas, and one function that makes them objectives of a model and a batch."""
