"""A compiled module read: its instructions, loops, products, kernels, traffic, collectives, memory and schedule."""
