"""The decode loop: sampling, prefill and decode over slots, continuous batching, scoring."""
