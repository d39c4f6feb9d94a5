"""Training: one step for every objective; batches, packing, optimizers, checkpoints and the loop."""
