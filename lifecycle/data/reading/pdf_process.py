"""Takes PDF files apart in a process of its own, which `pdf.py` starts by this file's path; it knows only PDFium.

PDFium is C++ that reads what anyone may have written: a file that makes it crash, use too much memory or run on ends
this process and costs that file. On standard input a file is its length and its bytes, on standard output an answer is
a JSON object likewise: `pages` with their texts, and `meta`; or `reason` and `detail`.
"""

import json
import resource
import struct
import sys
from collections.abc import Callable
from typing import Any

LENGTH = struct.Struct("<Q")
MEMORY = 2 << 30  # bytes of address space
CPU_S = 60  # of a file
MAX_PAGES = 5000
REASONS = {4: "encrypted", 5: "encrypted"}  # FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY


def main(read: Callable[[bytes, int], dict[str, Any]]) -> None:
    """Answers by `read` until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while head := sys.stdin.buffer.read(2 * LENGTH.size):
        size, max_bytes = LENGTH.unpack(head[: LENGTH.size])[0], LENGTH.unpack(head[LENGTH.size :])[0]
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + CPU_S
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        answer = json.dumps(read(sys.stdin.buffer.read(size), max_bytes)).encode()
        sys.stdout.buffer.write(LENGTH.pack(len(answer)) + answer)
        sys.stdout.buffer.flush()


def read(data: bytes, max_bytes: int) -> dict[str, Any]:
    """The answer for a file, whose text may have so many bytes."""
    import pypdfium2  # an extra; `pdf.py` imports this file without it

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        return {"reason": REASONS.get(error.err_code or 0, "broken_file"), "detail": str(error)}
    if len(document) > MAX_PAGES:
        return {"reason": "too_large", "detail": f"{len(document)} pages, more than {MAX_PAGES}"}
    pages: list[str] = []
    size = num_broken = 0
    for number in range(len(document)):
        try:
            page = document[number]
            text = page.get_textpage()
            pages.append(text.get_text_range())
            text.close()
            page.close()
        except pypdfium2.PdfiumError:
            num_broken += 1
            pages.append("")
        size += len(pages[-1].encode("utf-8", "replace"))
        if size > max_bytes:
            return {"reason": "too_large", "detail": f"more than {max_bytes} bytes of text"}
    meta = document.get_metadata_dict(skip_empty=True)
    document.close()
    return {"pages": pages, "broken": num_broken, "meta": meta}


if __name__ == "__main__":
    main(read)
