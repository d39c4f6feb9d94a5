"""PDF files: pages joined, words mended, what runs on every page left out; scanned, locked, broken and hostile ones."""

import io
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from extraction import document, extract, skipped
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from lifecycle.data.reading import pdf, pdf_process
from lifecycle.data.reading.pdf import join_pages
from lifecycle.data.reading.raw import Skipped
from lifecycle.data.reading.reader_process import reader_of

HEAD = "Proceedings of the Society"


def made(pages: Sequence[Sequence[str]], title: str = "A title") -> bytes:
    """A file with these lines on its pages."""
    file = io.BytesIO()
    with PdfPages(file, metadata={"Title": title, "CreationDate": None}) as written:
        for lines in pages:
            figure = Figure(figsize=(6, 8))
            for number, line in enumerate(lines):
                figure.text(0.08, 0.95 - 0.04 * number, line, fontsize=9)
            written.savefig(figure)
    return file.getvalue()


BODY = (
    ("The committee met in the old exam-", "ination hall, where the members of the", "first class sat. They were"),
    ("all of one mind, and the motion that", "had been put to them was carried by a", "show of hands."),
    ("On the second day there was no sitting,", "for want of light.", "• one matter of order", "• another of them"),
)  # fmt: skip
TEXT = (
    "The committee met in the old examination hall, where the members of the first class sat. They were all of one "
    "mind, and the motion that had been put to them was carried by a show of hands.\n"
    "On the second day there was no sitting, for want of light.\n"
    "• one matter of order\n"
    "• another of them\n"
)


def test_pages_become_one_text(tmp_path: Path) -> None:
    pages = [[HEAD, *lines, f"Page {number} of 3"] for number, lines in enumerate(BODY, 1)]
    found = document(extract(tmp_path / "a.pdf", made(pages)))
    assert found.text == TEXT
    assert found.format == "pdf" and found.meta == {"title": "A title", "pages": 3}


def test_a_line_that_is_on_few_pages_stays() -> None:
    pages = ["Head\r\nOne.\r\n1", "Head\r\nTwo.\r\n2", "Three.\r\n3"]
    assert join_pages(pages) == "Head\nOne.\nHead\nTwo.\nThree.\n"
    assert join_pages([*pages, "Head\r\nFour.\r\n4"]) == "One.\nTwo.\nThree.\nFour.\n"
    assert join_pages(["A file of one page.\r\n1999"]) == "A file of one page.\n1999\n"


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ("exam\ufffeination of it", "examination of it"),
        ("exam\x02ination of it", "examination of it"),
        ("exam-\r\nination of it", "examination of it"),
        ("Anglo\ufffeSaxon", "Anglo-Saxon"),
        ("under\u00ad\nstood", "understood"),
        ("лить-\nём", "литьём"),
    ],
)
def test_words_are_mended(lines: str, text: str) -> None:
    assert join_pages([lines]) == f"{text}\n"


def test_paragraphs_end_with_a_short_line_or_a_sentence() -> None:
    lines = ["A line that is long enough to be full", "and that goes on here.", "Another line that is as long.", "New."]
    assert join_pages(["\n".join(lines)]).split("\n") == [f"{lines[0]} {lines[1]}", *lines[2:], ""]


def test_a_file_of_pictures_has_no_text(tmp_path: Path) -> None:
    figure = Figure()
    figure.add_axes((0, 0, 1, 1)).set_axis_off()
    file = io.BytesIO()
    figure.savefig(file, format="pdf")
    found = skipped(extract(tmp_path / "a.pdf", file.getvalue()))
    assert found.reason == "no_text" and "scanned" in found.detail


@pytest.mark.parametrize("data", [b"%PDF-1.7 and nothing", b"no PDF", made(BODY)[:400]])
def test_broken_files(tmp_path: Path, data: bytes) -> None:
    assert skipped(extract(tmp_path / "a.pdf", data)).reason == "broken_file"


def test_a_locked_file(tmp_path: Path) -> None:
    lock = (
        b"<< /Filter /Standard /V 1 /R 2 /P -4 /O <" + b"12" * 32 + b"> /U <" + b"34" * 32 + b"> >>"
    )  # the hash of no password that is tried
    plain = made(BODY)
    locked = plain.replace(b"trailer\n<<", b"trailer\n<< /ID [<00> <00>] /Encrypt " + lock)
    assert locked != plain
    assert skipped(extract(tmp_path / "a.pdf", locked)).reason == "encrypted"


def test_a_file_that_ends_its_reader_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = tmp_path / "hostile.py"
    hostile.write_text(
        Path(pdf_process.__file__).read_text(encoding="utf-8").replace(
            "    import pypdfium2  #",
            "    if b'hostile' in data:\n        raise SystemExit(3)\n    import pypdfium2  #",
        ), encoding="utf-8",
    )  # fmt: skip
    monkeypatch.setattr(pdf, "PROCESS", hostile)
    good = made(BODY)
    assert document(extract(tmp_path / "a.pdf", good))
    found = skipped(extract(tmp_path / "b.pdf", b"%PDF hostile"))
    assert found.reason == "broken_file" and "status 3" in found.detail
    assert document(extract(tmp_path / "c.pdf", good))


def test_a_file_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(
        Path(pdf_process.__file__).read_text(encoding="utf-8").replace("serve(read)", "serve(read, cpu_s=1)").replace(
            "    import pypdfium2  #", "    while True:\n        pass\n    import pypdfium2  #"
        ), encoding="utf-8",
    )  # fmt: skip
    monkeypatch.setattr(pdf, "PROCESS", slow)
    assert skipped(extract(tmp_path / "a.pdf", made(BODY))).reason == "too_slow"


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifecycle.data.reading.pdf.importlib.util.find_spec", lambda name: None)
    found = skipped(extract(tmp_path / "a.pdf", made(BODY)))
    assert isinstance(found, Skipped) and found.reason == "unknown_format" and "--extra pdf" in found.detail


def test_a_reader_that_was_killed_is_started_again(tmp_path: Path) -> None:
    data = made(BODY)
    assert document(extract(tmp_path / "a.pdf", data))
    reader = reader_of(os.getpid(), pdf.PROCESS, "PDF files").process
    assert reader is not None
    os.kill(reader.pid, signal.SIGKILL)
    reader.wait()
    assert skipped(extract(tmp_path / "a.pdf", data)).reason == "broken_file"
    assert document(extract(tmp_path / "a.pdf", data))
