"""Kernels: operations with a plain reference, fast versions, and one dispatch each."""
