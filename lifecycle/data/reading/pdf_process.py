"""Takes PDF files apart in a process of its own, which `pdf.py` starts by this file's path.

PDFium is C++ that reads what anyone may have written: a file that makes it crash, use too much memory or run on ends
this process and costs that file. An answer has `pages` with their texts, and `meta`; or `reason` and `detail`.
"""

from typing import Any

from lifecycle.data.reading.reader_program import serve

MAX_TEXT = 20_000_000  # bytes of a file's text
MAX_PAGES = 5000
REASONS = {4: "encrypted", 5: "encrypted"}  # FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY


def read(data: bytes) -> dict[str, Any]:
    """The answer for a file."""
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
        if size > MAX_TEXT:
            return {"reason": "too_large", "detail": f"more than {MAX_TEXT} bytes of text"}
    meta = document.get_metadata_dict(skip_empty=True)
    document.close()
    return {"pages": pages, "broken": num_broken, "meta": meta}


if __name__ == "__main__":
    serve(read)
