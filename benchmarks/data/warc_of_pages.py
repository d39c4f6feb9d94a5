"""A WARC file of the HTML pages below a folder, as a crawler would have saved them.

    uv run benchmarks/data/warc_of_pages.py FOLDER OUT.warc.gz --at https://docs.example.org/

Each page is a response with status 200, in a gzip member of its own as in Common Crawl's files. Its address is its
place below the folder. The same pages make the same bytes.
"""

import argparse
import gzip
from pathlib import Path
from urllib.parse import quote
from uuid import NAMESPACE_URL, uuid5

DATE = "2026-11-30T00:00:00Z"


def main() -> None:
    """Writes the file and prints how many pages it has."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--at", default="https://docs.example.org/", help="the address of the folder")
    arguments = parser.parse_args()
    pages = sorted(path for path in arguments.folder.rglob("*.html") if path.is_file())
    with arguments.out.open("wb") as file:
        for page in pages:
            address = arguments.at + quote(page.relative_to(arguments.folder).as_posix())
            file.write(gzip.compress(record(address, page.read_bytes()), compresslevel=6, mtime=0))
    print(f"{arguments.out}: {len(pages):,} pages, {arguments.out.stat().st_size / 1e6:.1f} MB")


def record(address: str, body: bytes) -> bytes:
    """A response record with a page."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    fields = {
        "WARC-Type": "response", "WARC-Target-URI": address, "WARC-Date": DATE,
        "WARC-Record-ID": f"<urn:uuid:{uuid5(NAMESPACE_URL, address)}>",
        "Content-Type": "application/http; msgtype=response", "Content-Length": str(len(head) + len(body)),
    }  # fmt: skip
    names = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"WARC/1.0\r\n{names}\r\n".encode() + head + body + b"\r\n\r\n"


if __name__ == "__main__":
    main()
