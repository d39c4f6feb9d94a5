"""One step for every objective; loader, packing, optimizer, checkpoint and loop written once."""
