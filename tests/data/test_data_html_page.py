"""A page made small says what the whole page says: its text and what is skipped of it, by a parser for browsers."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree

from lifecycle.data.reading.html_marks import CELL, CODE, CODE_END, HEADING, LINK, LINK_END, ROW, TABLE_END, unmarked
from lifecycle.data.reading.html_page import small_page

PARTS = (
    "words ", "of text", " ", "\n", "&lt;", "&#x6;", "&", "&#", "am", "p;", "7;", "<", "< ", "</ ", "<!-- <b> -->",
    "<!-->", "<!-- - -- >", "<?x y>", "<!x>", "<p>", "</p>", "<P CLASS=share>", "<div>", "</div>", "<span class='k'>",
    "<div class=share id=x>", "<span>", "</span>", "<b>", "</b>", "<i id = share>", "</i>", "<a href='>'>", "</a>",
    "<pre>", "<pre>\n", "</pre>", "<ul>", "</ul>", "<li>", "</li>", "<ol><li>", "<h2>", "</h2 x>", "<table><tr><td>",
    "<tr><td>", "<td>", "</tr><tr><th class=share>", "</td><td>", "</table>", "<script>'<p>'</script>",
    "<style>p</style>", "<br>", "<br/>", "<textarea><b></textarea>", "<svg><g class=share>x</g></svg>", "<svg/>",
    "<svg><style/></svg>", "<svg><p>", "<button>", "</button>", "<section role=menu>", "</section>", "<nav hidden>",
    "</nav>", "<article>", "</article>", "<x-y>", "</x-y>", "<img alt=x>", "<p a=\"b\" a='", "<p x", "</SCRIPT>",
    "<iframe>b</iframe>",
)  # fmt: skip
NAMES = ("", " class=share", ' CLASS="wide share"', " id='share'", " class=x id=y", " role=menu", " hidden")
NESTED = st.recursive(
    st.sampled_from(["one ", "two ", "<br>", "\n"]),
    lambda parts: st.builds(
        lambda tag, names, inside: f"<{tag}{names}>{''.join(inside)}</{tag}>",
        st.sampled_from(["div", "span", "q", "code", "x-y", "center", "ul"]),
        st.sampled_from(NAMES),
        st.lists(parts, max_size=4),
    ),
    max_leaves=12,
)


def words_of(html: str, *skipped: str) -> list[str]:
    """The words without those that are skipped and the signs of lists."""
    text = extract_plain_text(HTMLTree.parse(html), preserve_formatting=True, skip_elements=["svg", "img", *skipped])
    return re.sub(r"•|\d+\.", " ", unmarked(text)).split()


@given(st.lists(st.sampled_from(PARTS), max_size=40))
def test_a_small_page_has_the_words_of_the_whole_however_broken(parts: list[str]) -> None:
    html = "<!doctype html><title>t</title><body>" + "".join(parts)
    assert words_of(small_page(html).html) == words_of(re.sub("&#(x6|7);", " ", html))  # references to marks


@given(st.lists(NESTED, max_size=4))
def test_what_names_say_of_blocks_is_in_the_small_page(parts: list[str]) -> None:
    html = "<!doctype html><body>" + "".join(parts)
    small = small_page(html).html
    assert words_of(small, "[beside]") == words_of(html, ".share", "#share")
    assert words_of(small, "[landmark]") == words_of(html, "[role=menu]")
    assert words_of(small, "[hidden]") == words_of(html, "[hidden]")


@pytest.mark.parametrize(
    ("html", "small"),
    [
        ("<p class=x>a <b>b</b>  c<!-- d --></p>", "<p>a b c</p>"),
        ("<A HREF=x>a</A> <a>b</a>", f"{LINK}a{LINK_END} b{LINK_END}"),
        ("<h1 class=share>a</h1>", f"{HEADING}<h1 beside>a</h1>"),
        ("<table><tr x>\n<td>a<th>b</table>", f"<table><tr>\n<td>{ROW}{CELL}a<th>{CELL}b</table>{TABLE_END}"),
        ("<pre><code>\n a  b</code></pre>", f"{CODE}<pre>\n\n a  b</pre>{CODE_END}"),
        ("<div>\n <p> a\n</p>\n b</div>", "<div><p>a\n</p>\nb</div>"),
        ("<span class=share>a</span><span class=k>b</span>", "<span beside>a</span>b"),
        ("<div id=share>a</div><h2 id=share>b</h2>", f"<div beside>a</div>{HEADING}<h2>b</h2>"),
        ("<div class='comment-list'>", "<div foreign>"),
        ("<div id=comments>", "<div beside>"),
        ("<div class=k role=menu hidden>", "<div landmark hidden>"),
        ("a\x06b&#6;c&#x10;d&#9;&amp;", "a b c d&#9;&amp;"),
        ("a < b & c &am<b>p;</b>", "a &lt; b & c &am<!---->p;"),
        ("<script>a</script ><style>b</STYLE><iframe>c</iframe><img class=share>d<script>e", "d"),
        ("<svg><path d=x /><style/></svg><title>a<b</title>", "<svg><path/><style/></svg><title>a<b</title>"),
        ("<ul></ul><ul class=share><!-- --></ul>", "<ul> </ul><ul beside> </ul>"),
        ("<p", ""),
        ("<p a='>b</p>", ""),
        ("a<", "a&lt;"),
        ("</", ""),
        ("", ""),
    ],
)
def test_what_is_left_of_a_page(html: str, small: str) -> None:
    assert small_page(html).html == small


@pytest.mark.parametrize(
    ("html", "small"),
    [
        ("<article>a</article>", "\x0e<article>a</article>\x0f"),
        ("<article>a</article><article>b</article><main>c</main>",
         "<article>a</article><article>b</article>\x0e<main>c</main>\x0f"),
        ("<div class='x post-body'>a</div><main>", "<div around>a</div><main>"),
        ("<div role=main>a</div><article>", "<div around>a</div><article>"),
        ("<div role=main>a</div><b class=post-body>b</b>", "<div>a</div><span around>b</span>"),
    ],
)  # fmt: skip
def test_where_the_text_of_a_page_is(html: str, small: str) -> None:
    page = small_page(html)
    assert page.html == small and page.has_around == (" around" in small)


def test_paragraphs_and_formulas_are_counted() -> None:
    page = small_page("<p>a</p><P>b</P></p>")
    assert page.num_paragraphs == 3
    drawn = "<span class=katex-html>x</span>"
    assert small_page(drawn).html == "x"
    assert small_page(f"<math alttext=\"'y'\">{drawn}</math>{drawn}").html == "$y$<span hidden>x</span>"
    assert small_page("<script type=math/tex>a<b</script>").html == "$a&lt;b$"
