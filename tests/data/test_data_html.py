"""Web pages: the words of forty against texts made by hand, and what becomes of tables, code, formulas and notices."""

import json
import re
import statistics
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.data.config import SourceConfig
from lifecycle.data.reading import trafilatura_text
from lifecycle.data.reading.documents_of import documents_of
from lifecycle.data.reading.extract import extract_file
from lifecycle.data.reading.html_text import parse_html
from lifecycle.data.reading.raw import Content, RawDocument, Skipped, UnreadableError
from lifecycle.data.reading.sources import SourceFile
from lifecycle.data.reading.trafilatura_text import parse_with_trafilatura

PAGES = Path(__file__).with_name("pages")
REACHED = 0.99  # mean F1 of the words
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")
PROSE = "<p>A sentence that is long enough to be one, with a full stop.</p>"


def text_of(body: str) -> str:
    return parse_html(f"<html><head><title>T</title></head><body>{body}</body></html>")[0]


def words(text: str) -> Counter[str]:
    return Counter(_WORD.findall(unicodedata.normalize("NFKC", text)))


def f1_of(parse: Callable[[str], tuple[str, dict[str, Any]]]) -> dict[str, float]:
    """Of the words of each page."""
    scores = {}
    for page in sorted(PAGES.glob("*.html")):
        found = words(parse(page.read_text(encoding="utf-8"))[0])
        meant = words(page.with_suffix(".txt").read_text(encoding="utf-8"))
        scores[page.stem] = 2 * (found & meant).total() / (found.total() + meant.total())
    assert len(scores) == 40
    return scores


def test_the_words_of_pages_are_those_that_a_reader_takes() -> None:
    scores = f1_of(parse_html)
    assert statistics.mean(scores.values()) > REACHED, sorted(scores.items(), key=lambda item: item[1])[:5]


def test_trafilatura_reads_the_pages_of_a_source_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    source = SourceConfig(name="s", path=".", html="trafilatura")
    page = sorted(PAGES.glob("*.html"))[0].read_bytes()
    (found,) = documents_of(Content("a.html", "html", page), source)
    assert (found.text, found.meta) == parse_with_trafilatura(page.decode()) and found.meta["title"]
    assert 0.9 < statistics.mean(f1_of(parse_with_trafilatura).values()) < REACHED
    with pytest.raises(UnreadableError, match="no text in the html"):
        list(documents_of(Content("a.html", "html", b"<html><body></body></html>"), source))
    monkeypatch.setattr("lifecycle.data.config.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="uv sync --extra trafilatura"):
        SourceConfig(name="s", path=".", html="trafilatura")


def test_a_page_that_ends_trafilatura_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does that takes more time or memory than its process may."""
    hostile = tmp_path / "hostile.py"
    hostile.write_text(
        trafilatura_text.PROCESS.read_text(encoding="utf-8").replace(
            "    import trafilatura  #",
            "    if b'hostile' in data:\n        raise SystemExit(3)\n    import trafilatura  #",
        )
    )
    monkeypatch.setattr(trafilatura_text, "PROCESS", hostile)
    page, file = f"<html><body>{PROSE * 5}</body></html>", tmp_path / "a.jsonl"
    rows = [page, f"<html>hostile{PROSE}</html>", page]
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    source = SourceConfig(name="s", path=str(tmp_path), html="trafilatura", format="html")
    entry = SourceFile(0, file, file.name, "jsonl")
    one, lost, other = extract_file(entry, source, 10_000)
    assert isinstance(lost, Skipped) and (lost.path, lost.reason) == ("a.jsonl:2", "broken_file")
    assert isinstance(one, RawDocument) and isinstance(other, RawDocument) and one.text == other.text


@given(st.text(st.characters(), max_size=40), st.sampled_from(["<p>", "<body", "<!--", "\0", "\ud800", "<a href='"]))
def test_trafilatura_may_be_given_any_text(text: str, other: str) -> None:
    assert isinstance(parse_with_trafilatura(f"{other}{text}{other}<p>{text * 9}")[0], str)


def lines_of(name: str) -> list[str]:
    (page,) = PAGES.glob(f"{name}*.html")
    return [line.strip() for line in parse_html(page.read_text(encoding="utf-8"))[0].split("\n")]


@pytest.mark.parametrize("name", ["05", "22", "23", "28", "40"])
def test_a_row_of_a_table_is_a_line_with_its_cells_apart(name: str) -> None:
    (meant,) = PAGES.glob(f"{name}*.txt")
    rows = [line for line in meant.read_text(encoding="utf-8").split("\n") if " | " in line]
    assert rows and [line for line in lines_of(name) if " | " in line] == rows


def test_cells_of_several_lines_stay_in_their_row_and_columns_of_a_layout_do_not() -> None:
    rows = "<tr><td><p>one</p><p>two</p></td><td></td><td>three<br>four</td></tr>"
    assert text_of(f"{PROSE}<table>{rows}</table>").split("\n")[-1] == "one two |  | three four"
    column = "<p>" + "Words of a column. " * 20 + "</p>"
    assert "|" not in text_of(f"<table><tr><td>{column}</td><td>{column}</td></tr></table>")


@pytest.mark.parametrize("name", ["04", "25", "30"])
def test_code_keeps_its_lines_and_indentation(name: str) -> None:
    (page,) = PAGES.glob(f"{name}*.html")
    found = parse_html(page.read_text(encoding="utf-8"))[0]
    meant = page.with_suffix(".txt").read_text(encoding="utf-8")
    indented = [line for line in meant.split("\n") if line[:1] in (" ", "\t")]
    assert indented and not set(indented) - set(found.split("\n"))


def test_numbers_of_lines_beside_code_are_no_text() -> None:
    numbers = "\n".join(f'<a href="#{n}" id="{n}">{n}</a>' for n in range(1, 21))
    code = f'{PROSE}<pre class="gutter">{numbers}</pre><pre><code>let x = 1;\n    y\n</code></pre>'
    assert "20" not in text_of(code) and "let x = 1;\n    y" in text_of(code)
    assert "3\n5\n8" in text_of(f"{PROSE}<pre>3\n5\n8</pre>")  # what a program printed


def test_links_headings_and_empty_lines_in_code_are_left_alone() -> None:
    code = "<a href=x>share</a>\n\n\n\n  # print\nlog in"
    assert "share\n\n\n\n  # print\nlog in" in text_of(f"{PROSE}<pre>{code}</pre>{PROSE}")


@pytest.mark.parametrize(
    ("formula", "tex"),
    [
        ('<math alttext="a&lt;b"><mi>a</mi><mo>&lt;</mo><mi>b</mi></math>', "$a<b$"),
        ('<math alttext="a<b"></math>', "$a<b$"),
        ('<math alttext="{\\displaystyle x}"><mi>x</mi></math>', "$x$"),
        ('<math display="block"><semantics><mi>x</mi><annotation encoding="application/x-tex">\\frac{1}{2}'
         "</annotation></semantics></math>", "$$\\frac{1}{2}$$"),
        ('<span class="katex"><span class="katex-mathml"><math><semantics><mi>y</mi><annotation encoding='
         '"application/x-tex">y</annotation></semantics></math></span><span class="katex-html">y</span></span>', "$y$"),
        ('<span class="MathJax_Preview">i</span><script type="math/tex">a < b & c</script>', "$a < b & c$"),
        ('<script type="math/tex; mode=display">E = m</script>', "$$E = m$$"),
    ],
)  # fmt: skip
def test_formulas_become_tex(formula: str, tex: str) -> None:
    assert f"is {tex} of it." in text_of(f"<p>This is {formula} of it.</p>")


def test_a_formula_without_tex_keeps_its_characters() -> None:
    assert "is x=2 of" in text_of("<p>This is <math><mi>x</mi><mo>=</mo><mn>2</mn></math> of it.</p>")


@pytest.mark.parametrize(
    "notice",
    [
        "<div>© 2024 Somebody. All rights reserved.</div>",
        "<div class='cookie-bar'><p>We set cookies.</p></div>",
        "<div>This website uses cookies. By continuing you accept that they are set for you.</div>",
        "<ul><li><a href=1>One</a></li><li><a href=2>Two</a></li></ul>",
        "<p><a href=x>Read more</a></p>",
        "<p>Share this article</p>",
        "<h3>Elsewhere</h3><div><a href=1>One thing</a></div><div><a href=2>Another thing</a></div>",
        "<a href=x><div>A card</div><div>of two lines</div></a>",
        "<aside>Aside</aside>",
    ],
)
def test_what_is_beside_the_text_goes(notice: str) -> None:
    assert text_of(f"<h1>Title</h1>{PROSE}{PROSE}{notice}") == text_of(f"<h1>Title</h1>{PROSE}{PROSE}")


def test_links_in_sentences_stay_and_so_does_a_page_of_links() -> None:
    assert "See here for the rest of it." in text_of("<p>See <a href=x>here</a> for the rest of it.</p>")
    assert text_of("<ul><li><a href=1>One</a><li><a href=2>Two</a></ul>").split() == ["•", "One", "•", "Two"]


def test_comments_go_however_long_they_are_and_sections_of_a_manual_do_not() -> None:
    page = f"<h1>Title</h1>{PROSE * 6}"
    assert text_of(f"{page}<div class=comments><article>{PROSE * 5}</article></div>") == text_of(page)
    section = f"<section id=comments><h2>Comments</h2>{PROSE}</section><h2 id=search>Search</h2>{PROSE}"
    assert re.findall("Comments|Search", text_of(page + section)) == ["Comments", "Search"]


def test_the_name_of_a_class_that_begins_like_an_address_is_none() -> None:
    assert "HttpClient" in text_of(f"{PROSE}<ul><li>HttpClient</li></ul>{PROSE}")
    assert "https" not in text_of(f"{PROSE}<p>https://example.org/a</p>{PROSE}")


def test_a_block_with_the_article_in_it_is_not_beside_it() -> None:
    page = f'<body class="has-sidebar cookie"><div class="sidebar-layout"><h1>Title</h1>{PROSE}</div>'
    assert parse_html(page)[0].startswith("Title\n\nA sentence")


@given(st.lists(st.sampled_from(
    ["<a href=x>", "</a>", "<pre>", "</pre>", "<table>", "<tr><td>", "</table>", "<h2>", "</h2>", "<article>", "</p>",
     "<li>", "text of it ", "\n", "\x01", "\x0e", "<math alttext=x>", "<p>", "</article>", '<div class="share">',
     "</div>"]
), max_size=30))  # fmt: skip
def test_no_mark_is_left_in_a_text_however_broken(parts: list[str]) -> None:
    text, _ = parse_html("".join(parts))
    assert not re.search("[\x00-\x08\x0e-\x1f]", text)
    if "text of it " in parts and "<div class" not in "".join(parts):
        assert text.strip()


@pytest.mark.parametrize(
    "part", ["<td", "<tr ", "<pre>", "<a href=x>y", "<script ", "<script type=math/tex>x", "<math alttext=x>", "<p>x.",
             "<math alttext=x></math>", 'class="', "<div class=share>", "<h2>x", "\n \n", "&a",
             "<!--", "<", "</b x", "<b class=share>", "<title>", "<div class=comments>"]
)  # fmt: skip
def test_pages_of_one_thing_many_times_end(part: str) -> None:
    """Whatever takes time with the square of their size takes hours here."""
    num = 3000 if part.startswith("<") and "class=" in part else 10_000
    page = f"<div class=sidebar><p>math/tex <td>{part * num}</div>"
    assert len(parse_html(page)[0]) <= len(page)
