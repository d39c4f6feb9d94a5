"""The chain: one short file per stage, and what runs them in order. Nothing imports this room but the CLI."""
