"""What a stage minimises: each objective is a function from model and batch to sums and counts."""
