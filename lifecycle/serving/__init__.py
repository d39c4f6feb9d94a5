"""Serving: OpenAI's API over the engine, metrics, and a chat page."""
