"""The chat page's files, and in a browser, where one is installed, what it makes of Markdown."""

import json
import random
import re

import httpx
import pytest
from browser import Browser
from markdown_it import MarkdownIt
from serving_server import Running

from lifecycle.serving.pages import FILES

pytestmark = pytest.mark.xdist_group("page")

MARKDOWN = [
    "plain text\nin two lines\n\nand a second paragraph",
    "# one\n## two\n###### six ##\n#no heading",
    "*a* **b** ***c*** _d_ `e` ~~f~~ **a *b* c**, 2 * 3 * 4, snake_case_name, *open, **open too",
    "`a*b*` ``c`d`` `open, \\*star\\* \\[x\\]",
    "- a\n- b *c*\n  - d\n  - e\n- f\n\nafter",
    "3. three\n4. four\n\n   - nested",
    "1. a\n\n- b",
    "> quoted *text*\n> - a\n\n---\n\nafter",
    "```python\ndef f():\n    return '<b>'\n\n# no heading\n```\nafter",
    "~~~\nopen *to* the end",
    "[a *b*](https://example.org/c_d) [e](mailto:f@g.h) <https://i.j/k> [broken](https://l",
    "| a | b |\n|---|:-:|\n| `c` | d \\| e |\n| f |\n\nafter",
]
HOSTILE = [
    "<script>top.hacked = 1</script> <img src=x onerror=alert(1)> & &lt;b&gt;",
    "[a](javascript:alert(1)) [b](data:text/html,x) [c](/v1/models) ![d](https://e.f/g.png) <javascript:alert(1)>",
    '[a](https://b.c/" onclick="alert(1)) https://b.c/"onclick=alert(1) | `<i>`',
    "```<b>\n</code></pre><b>\n```",
]
REPEATED = ["*a ", "- ", "[", "`` ` ", "> ", "- a\n", "a | b\n", " ", "http://%"]
LONG = [text * 4000 for text in REPEATED]
DRAWN = ["".join(random.Random(seed).choices("*_`~[]()#->| \n\\!xyz", k=60)) for seed in range(150)]
TEXTS = [*MARKDOWN, *HOSTILE, *LONG, *DRAWN]

ELEMENTS = {
    "p", "h2", "h3", "h4", "h5", "h6", "em", "strong", "s", "code", "pre", "div", "span", "button", "a", "ul", "ol",
    "li", "blockquote", "hr", "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip
MAKES_MARK_UP = re.compile(r"(?:inner|outer)HTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function")
ATTRIBUTES = {"class", "tabindex", "type", "start", "href", "rel", "target", "role", "aria-label"}


def test_the_page_names_its_files_and_asks_nobody_else(server: Running) -> None:
    page = httpx.get(server.base)
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    for name in re.findall(r'(?:href|src)="([^"]+\.\w+)"', page.text):
        file = httpx.get(f"{server.base}/{name}")
        assert file.status_code == 200 and file.headers["x-content-type-options"] == "nosniff"
    assert {"chat.css", "chat.js"} <= set(re.findall(r'"([\w.]+)"', page.text))


def test_the_page_s_scripts_make_no_mark_up_from_text() -> None:
    scripts = {file.name: file.read_text() for file in FILES if file.suffix == ".js"}
    assert len(scripts) >= 4
    for name, script in scripts.items():
        assert MAKES_MARK_UP.search(script) is None, name
        assert set(re.findall(r'from "\./([\w.]+)"', script)) <= set(scripts)


@pytest.fixture(scope="module")
def rendered(browser: Browser, server: Running) -> list[dict[str, str]]:
    """What the page makes of each text: of short ones also while they arrive."""
    page = browser.page(server.base)
    found = page.run(f"""import("./markdown.js").then(({{ show }}) => {json.dumps(TEXTS)}.map((text) => {{
        const element = document.createElement("div");
        if (text.length < 100) for (let end = 1; end < text.length; end++) show(element, text.slice(0, end));
        show(element, text);
        return {{ html: element.innerHTML, text: element.textContent }};
    }}))""")
    page.close()
    return found


def structure(markup: str) -> str:
    """Mark-up without what differs by design: levels of headings, frames of code, paragraphs of items, alignment."""
    for pattern, new in (
        (r'<div class="code"><div><span>[^<]*</span><button[^>]*>Copy</button></div>|<div class="scroll"[^>]*>', ""),
        (r"</div>", ""),
        (r"</?p>", " "),
        (r"<(/?)h(\d)>", lambda m: f"<{m[1]}h{min(int(m[2]), 6)}>"),
        (r' (?:class|tabindex|style|rel|target|role|aria-label)="[^"]*"', ""),
        (r"\s+", " "),
        (r" ?(</?(?:li|ul|ol|pre|code|blockquote|table|thead|tbody|tr|t[hd]|h\d|hr)\b[^>]*>) ?", r"\1"),
    ):
        markup = re.sub(pattern, new, markup)
    return markup.strip()


def test_markdown_is_shown_as_commonmark_says(rendered: list[dict[str, str]]) -> None:
    reference = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for text, shown in zip(MARKDOWN, rendered, strict=False):
        expected = re.sub(r"<(/?)h(\d)>", lambda m: f"<{m[1]}h{int(m[2]) + 2}>", reference.render(text))
        assert structure(shown["html"]) == structure(expected).replace("<hr />", "<hr>"), text


def test_no_text_becomes_mark_up(rendered: list[dict[str, str]]) -> None:
    for text, shown in zip(TEXTS, rendered, strict=True):
        tags = re.findall(r"<(\w+)((?: [\w-]+(?:=\"[^\"]*\")?)*)>", shown["html"])
        assert {name for name, _ in tags} <= ELEMENTS, text
        assert {name for _, attributes in tags for name in re.findall(r" ([\w-]+)=", attributes)} <= ATTRIBUTES, text
        for address, rel in re.findall(r'<a href="([^"]*)" rel="([^"]*)"', shown["html"]):
            assert re.match(r"https?://|mailto:", address) and "noopener" in rel, text
        assert shown["html"].count("<a ") == len(re.findall(r'<a href="[^"]*" rel="noopener', shown["html"]))


def test_no_letter_of_an_answer_is_lost(rendered: list[dict[str, str]]) -> None:
    for text, shown in zip(DRAWN, rendered[-len(DRAWN) :], strict=True):
        assert re.findall("[xz]", shown["text"]) == re.findall("[xz]", text), text  # y is in "Copy"
