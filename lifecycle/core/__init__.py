"""The base of all other packages: config, artifacts, processes, logs. It knows nothing of language models."""
