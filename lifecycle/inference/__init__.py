"""Inference: sampling, prefill and decode over slots, continuous batching, bundles and their sampling defaults."""
