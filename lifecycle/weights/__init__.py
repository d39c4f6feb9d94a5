"""Published weights in and out: families as data, safetensors, GGUF, canonical names."""
