"""Reads web pages by trafilatura in a process of its own, which `trafilatura_text.py` starts by this file's path.

Some pages take it time by the square of their size: one of 3.5 MB of `<span>` elements took more than 150 s.
"""

import logging
from typing import Any

from lifecycle.data.reading.reader_program import serve


def read(data: bytes) -> dict[str, Any]:
    """The answer for a page; no text where trafilatura finds none."""
    import trafilatura  # an extra; `trafilatura_text.py` imports this file without it

    return {"text": trafilatura.extract(data.decode(), include_comments=False) or ""}


if __name__ == "__main__":
    logging.disable()  # a page without text is counted, not printed
    serve(read)
