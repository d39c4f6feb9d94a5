"""Reads a compiled module: instructions, loops, products, kernels, traffic, collectives, memory and schedule."""
