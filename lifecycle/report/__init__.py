"""The report of a run: numbers first (`numbers.py`), then one document of them, shown as a web page and as Markdown."""
