"""Checkpoints by Orbax: saved while training goes on, checked before they are used, restored on any mesh."""
