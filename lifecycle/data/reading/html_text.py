"""The readable text of a web page: headings, paragraphs, lists, tables, code and formulas, however broken the mark-up.

resiliparse parses the page and makes text of it. What its text does not tell, where links, headings, cells and code
begin, is marked in the page beforehand (`html_marks.py`); `html_lines.py` reads the marks and takes them out again.
Formulas become TeX, as MathML carries it along (MathML Core, 6.1; LaTeXML) or MathJax is given it.
"""

import html as entities
import re
from typing import Any

from resiliparse.extract.html2text import extract_plain_text  # pyright: ignore[reportMissingModuleSource]
from resiliparse.parse.html import HTMLTree

from lifecycle.data.reading.html_blocks import Names
from lifecycle.data.reading.html_lines import all_lines, main_lines
from lifecycle.data.reading.html_marks import (
    ARTICLE,
    ARTICLE_END,
    CELL,
    CODE,
    CODE_END,
    HEADING,
    LINK,
    LINK_END,
    ROW,
    TABLE_END,
    unmarked,
)  # fmt: skip

# What is never text: other than words, and beside a formula or code the same once more.
_NO_TEXT = ("img", "svg", "[hidden]")
_DRAWN = (".katex-html", ".MathJax_Preview", ".MathJax", ".MathJax_Display")  # formulas, which are there as TeX too
_BESIDE = ("nav", "aside", "footer")
_SCRIPTS = (("<script", "</script"), ("<style", "</style"))
_MARKED = (
    ("<a ", LINK + "<a "), ("</a>", "</a>" + LINK_END), ("<pre", CODE + "<pre"), ("</pre>", "</pre>" + CODE_END),
)  # fmt: skip
_HEADING = re.compile("<h(?=[1-6])")
SHORT = 600  # characters: so little text may be what is left of a page whose names mislead
FEW = 4  # paragraphs of a page that has no more text
MISSED = 3  # times as much text as that without a look at names is the page's text
_UPPER = re.compile(r"</?(?:A|PRE|TABLE|T[DRH]|H[1-6])\b")
_UPPER_SIGNS = ("</A>", "<TD")
_CELL = re.compile(r"<t(r\b[^>]{0,999}>\s{0,99}<t)?[dh]\b[^>]{0,999}>")  # with the row's tag before its first cell
_TEX_SCRIPT = re.compile(
    r"""<script[^>]{0,99}type\s?=\s?["']?math/tex(;\s?mode=display)?[^>]{0,99}>(.{0,9999}?)</script\s?>""",
    re.IGNORECASE | re.DOTALL,
)
_TEX_NOTE = re.compile(r"""<annotation[^>]{0,99}application/x-tex[^>]{0,99}>(.{0,9999}?)</annotation>""", re.DOTALL)
_TEX_ATTRIBUTE = re.compile(r"""\balttext=("[^"]*"|'[^']*')""")
LONGEST_TAG = 5000  # characters of a formula's tag
_DISPLAY_STYLE = re.compile(r"^\{\\(?:display|text)style (.*)\}$", re.DOTALL)


def parse_html(html: str) -> tuple[str, dict[str, Any]]:
    """The readable text and the title of a page, without what is beside the text; of a page that has no more than that,
    all of it."""
    html = unmarked(_without_scripts(html))
    names = Names.of(html)
    article = names.around_text()
    has_formulas = "math" in html
    if has_formulas and "<math" in html:
        html = _with_tex(html)
    tree = HTMLTree.parse(_marked(html if article else _with_article(html)))
    if article:
        _mark_article(tree, article)
    no_text = [*_NO_TEXT, *(_DRAWN if has_formulas or "MathJax" in html else ())]
    text = main_lines(_text(tree, [*no_text, *_BESIDE, *names.beside_text()]))
    if len(text) < SHORT and html.count("</p>") > FEW:
        other = main_lines(_text(tree, [*no_text, *_BESIDE]))
        text = other if len(other) > MISSED * len(text) else text
    if not text.strip():
        text = all_lines(_text(tree, no_text))
    title = unmarked(tree.title or "").strip()
    return text, {"title": title} if title else {}


def _without_scripts(html: str) -> str:
    """The page without scripts, but for formulas, and style sheets: half of a page of news, which nothing reads."""
    for begin, end in _SCRIPTS:
        if end.upper() in html:
            continue
        kept: list[str] = []
        at = 0
        while (opened := html.find(begin, at)) >= 0 and (closed := html.find(end, opened)) >= 0:
            if "math/tex" in html[opened : html.find(">", opened)]:
                opened = html.find(">", closed) + 1 or len(html)
            kept.append(html[at:opened])
            at = html.find(">", closed) + 1 or len(html)
        if kept:
            html = "".join((*kept, html[at:]))
    return html


def _text(tree: HTMLTree, skipped: list[str]) -> str:
    return extract_plain_text(tree, preserve_formatting=True, alt_texts=True, skip_elements=skipped)


def _marked(html: str) -> str:
    """The page with marks at its links, headings, cells and code."""
    if any(sign in html for sign in _UPPER_SIGNS):
        html = _UPPER.sub(lambda found: found[0].lower(), html)
    for tag, marked in _MARKED:
        html = html.replace(tag, marked)
    html = _HEADING.sub(HEADING + "<h", html)
    if "math/tex" in html:
        html = _TEX_SCRIPT.sub(lambda found: entities.escape(_formula(found[2], bool(found[1])), quote=False), html)
    if "<td" not in html:
        return html
    html = _CELL.sub(lambda found: f"{found[0]}{ROW if found[1] else ''}{CELL}", html)
    return html.replace("</table>", "</table>" + TABLE_END)


def _with_article(html: str) -> str:
    """The page with marks at the one element that its text is in, if it says so."""
    for tag in ("article", "main"):
        if html.count(f"<{tag}") == 1:
            return html.replace(f"<{tag}", f"{ARTICLE}<{tag}").replace(f"</{tag}>", f"</{tag}>{ARTICLE_END}")
    return html


def _mark_article(tree: HTMLTree, selector: str) -> None:
    """The same, by the element's name."""
    assert tree.document is not None
    found = tree.document.query_selector_all(selector)
    begin, end = tree.create_text_node(ARTICLE), tree.create_text_node(ARTICLE_END)
    if len(found) == 1 and found[0].first_child is not None and begin is not None and end is not None:
        found[0].insert_before(begin, found[0].first_child)
        found[0].append_child(end)


def _with_tex(html: str) -> str:
    """The page with TeX in the place of formulas in MathML that have it."""
    kept: list[str] = []
    at = 0
    while (opened := html.find("<math", at)) >= 0 and (closed := html.find("</math>", opened)) >= 0:
        formula = html[opened:closed]
        tex = _TEX_NOTE.search(formula) or _TEX_ATTRIBUTE.search(formula[:LONGEST_TAG])
        kept.append(html[at:opened])
        if tex and tex[1].strip("\"' \n"):
            shown = _formula(tex[1].strip("\"' \n"), 'display="block"' in formula[:LONGEST_TAG])
            kept.append(shown.replace("<", "&lt;"))
        else:
            kept.append(f"{formula}</math>")
        at = closed + len("</math>")
    return "".join((*kept, html[at:]))


def _formula(tex: str, is_displayed: bool) -> str:
    tex = " ".join(tex.split())
    if found := _DISPLAY_STYLE.match(tex):
        tex = found[1].strip()
    return f"$${tex}$$" if is_displayed else f"${tex}$"
