"""The base of every room: config, artifacts, processes, logs. It knows nothing of language models."""
