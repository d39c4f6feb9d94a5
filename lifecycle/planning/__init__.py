"""What a run would need and how fast it would be on chips that nobody has here: the TPU compiler is asked."""
