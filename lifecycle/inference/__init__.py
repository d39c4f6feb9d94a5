"""The decode loop: sampling, prefill and decode over slots, continuous batching; bundles and how they are sampled."""
