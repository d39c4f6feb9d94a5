"""Personal data and secrets: found, checked, masked."""
