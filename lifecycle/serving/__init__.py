"""The HTTP front of the engine: OpenAI's API, metrics, and a chat page."""
