"""Tokenizers, chat templates and row formats: everything between text and token ids."""
