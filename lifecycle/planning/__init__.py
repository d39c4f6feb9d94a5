"""What a run needs and how fast it would be on chips that are not at hand, by asking the TPU compiler."""
