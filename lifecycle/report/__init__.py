"""The report of a run: its numbers (`numbers.py`), and one document of them, rendered as HTML and as Markdown."""
