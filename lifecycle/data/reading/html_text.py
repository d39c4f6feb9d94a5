"""The readable text of a web page: headings, paragraphs, lists, tables, code and formulas, however broken the mark-up.

The page is made small first (`html_page.py`), with marks where links, headings, cells and code begin, which its text
would not tell (`html_marks.py`). resiliparse parses it and makes text of it; `html_lines.py` reads the marks and takes
them out again.
"""

from typing import Any

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree

from lifecycle.data.reading.html_lines import all_lines, main_lines
from lifecycle.data.reading.html_marks import ARTICLE, ARTICLE_END, unmarked
from lifecycle.data.reading.html_page import small_page

_NO_TEXT = ("svg", "[hidden]")  # what is never text
_BESIDE = ("nav", "aside", "footer")
# By names and roles (`html_blocks.py`).
_NAMED = (
    "[landmark]",
    "[foreign]:not(body,html,main):not(:has(h1,main))",
    "[beside]:not(body,html,main,article):not(:has(h1,main,article,p~p~p~p))",
)
SHORT = 600  # characters: so little text may be what is left of a page whose names mislead
FEW = 4  # paragraphs of a page that has no more text
MISSED = 3  # times as much text as that without a look at names is the page's text


def parse_html(html: str) -> tuple[str, dict[str, Any]]:
    """The readable text and the title of a page, without what is beside the text; of a page that has no more than that,
    all of it."""
    page = small_page(html)
    tree = HTMLTree.parse(page.html)
    if page.has_around:
        _mark_article(tree)
    text = main_lines(_text(tree, (*_NO_TEXT, *_BESIDE, *_NAMED)))
    if len(text) < SHORT and page.num_paragraphs > FEW:
        other = main_lines(_text(tree, (*_NO_TEXT, *_BESIDE)))
        text = other if len(other) > MISSED * len(text) else text
    if not text.strip():
        text = all_lines(_text(tree, _NO_TEXT))
    title = unmarked(tree.title or "").strip()
    return text, {"title": title} if title else {}


def _text(tree: HTMLTree, skipped: tuple[str, ...]) -> str:
    return extract_plain_text(tree, preserve_formatting=True, alt_texts=True, skip_elements=skipped)


def _mark_article(tree: HTMLTree) -> None:
    """Marks at the one element whose names say that the page's text is in it."""
    assert tree.document is not None
    found = tree.document.query_selector_all("[around]")
    begin, end = tree.create_text_node(ARTICLE), tree.create_text_node(ARTICLE_END)
    if len(found) == 1 and found[0].first_child is not None and begin is not None and end is not None:
        found[0].insert_before(begin, found[0].first_child)
        found[0].append_child(end)
