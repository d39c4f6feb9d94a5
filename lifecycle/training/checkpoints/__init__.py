"""Checkpoints by Orbax: saved during training, verified before use, restored on any mesh."""
