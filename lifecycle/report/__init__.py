"""The report of a run: its numbers first (`numbers.py`), then one document of them, as a web page and as Markdown."""
