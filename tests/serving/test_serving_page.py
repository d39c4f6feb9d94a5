"""The chat page: its files, and in a browser, where one is installed, what it shows and what it does about failures."""

import html
import json
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from markdown_it import MarkdownIt
from serving_server import Running, running
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from lifecycle.serving.config import ServeConfig
from lifecycle.serving.pages import FILES, WEB, page_routes
from lifecycle.testing.waiting import LIMIT_S

BROWSER = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)

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
ATTRIBUTES = {"class", "tabindex", "type", "start", "href", "rel", "target"}


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
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the driver saw in the browser."""
    if BROWSER is None:
        pytest.skip("no Chromium is installed")
    driver = Path(__file__).parent / "page_driver.js"
    before = f'<script id="texts" type="application/json">{json.dumps(TEXTS).replace("<", chr(92) + "u003c")}</script>'
    before += '<script type="module" src="page_driver.js"></script>\n'
    page = (WEB / "chat.html").read_text().replace('<script type="module"', before + '<script type="module"')

    async def driven(_: Request) -> Response:
        return HTMLResponse(page)

    async def script(_: Request) -> Response:
        return Response(driver.read_text(), media_type="text/javascript")

    routes = [*page_routes(), Route("/driven", driven), Route("/page_driver.js", script)]
    with running(Starlette(routes=routes), ServeConfig(port=0)) as base:
        profile = tmp_path_factory.mktemp("profile")
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        command += ["--window-size=400,700", "--virtual-time-budget=10000", "--dump-dom", f"{base}/driven"]
        output = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S).stdout
        found = re.search(r"<pre>(.*)</pre>", output, re.DOTALL)
        assert found is not None, output[-2000:]
        seen = json.loads(html.unescape(found[1]))
        assert "failure" not in seen, seen["failure"]
        yield seen


def structure(markup: str) -> str:
    """Mark-up without what differs by design: levels of headings, frames of code, paragraphs of items, alignment."""
    for pattern, new in (
        (r'<div class="code"><div><span>[^<]*</span><button[^>]*>Copy</button></div>|<div class="scroll"[^>]*>', ""),
        (r"</div>", ""),
        (r"</?p>", " "),
        (r"<(/?)h(\d)>", lambda m: f"<{m[1]}h{min(int(m[2]), 5)}>"),
        (r' (?:class|tabindex|style|rel|target)="[^"]*"', ""),
        (r"\s+", " "),
        (r" ?(</?(?:li|ul|ol|pre|code|blockquote|table|thead|tbody|tr|t[hd]|h\d|hr)\b[^>]*>) ?", r"\1"),
    ):
        markup = re.sub(pattern, new, markup)
    return markup.strip()


def test_markdown_is_shown_as_commonmark_says(seen: dict[str, Any]) -> None:
    reference = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for text, rendered in zip(MARKDOWN, seen["rendered"], strict=False):
        expected = re.sub(r"<(/?)h(\d)>", lambda m: f"<{m[1]}h{int(m[2]) + 1}>", reference.render(text))
        assert structure(rendered["html"]) == structure(expected).replace("<hr />", "<hr>"), text


def test_no_text_becomes_mark_up(seen: dict[str, Any]) -> None:
    for text, rendered in zip(TEXTS, seen["rendered"], strict=True):
        tags = re.findall(r"<(\w+)((?: [\w-]+(?:=\"[^\"]*\")?)*)>", rendered["html"])
        assert {name for name, _ in tags} <= ELEMENTS, text
        assert {name for _, attributes in tags for name in re.findall(r" ([\w-]+)=", attributes)} <= ATTRIBUTES, text
        for address, rel in re.findall(r'<a href="([^"]*)" rel="([^"]*)"', rendered["html"]):
            assert re.match(r"https?://|mailto:", address) and "noopener" in rel, text
        assert rendered["html"].count("<a ") == len(re.findall(r'<a href="[^"]*" rel="noopener', rendered["html"]))


def test_no_letter_of_an_answer_is_lost(seen: dict[str, Any]) -> None:
    for text, rendered in zip(DRAWN, seen["rendered"][-len(DRAWN) :], strict=True):
        assert re.findall("[xz]", rendered["text"]) == re.findall("[xz]", text), text  # y is in "Copy"


def test_placeholders_fit_their_inputs(seen: dict[str, Any]) -> None:
    assert {"model's", "context"} < seen["placeholders"].keys()
    assert all(needed < room for needed, room in seen["placeholders"].values()), seen["placeholders"]


def test_an_unreachable_server_is_named_and_the_message_kept(seen: dict[str, Any]) -> None:
    page = seen["conversations"]["unreachable"]
    assert page["said"] == ["hello"] and page["buttons"] == ["Try again", "Edit message"]
    assert "cannot be reached" in page["errors"][0] and "lifecycle serve" in page["errors"][0]
    again = seen["conversations"]["again"]
    assert again["sent"] == [["hello"]] and again["answers"] == ["Hello"]
    assert again["errors"] == again["buttons"] == []


def test_half_an_answer_is_kept_and_part_of_the_conversation(seen: dict[str, Any]) -> None:
    page = seen["conversations"]["broken"]
    assert page["answers"][-1] == "one half" and page["buttons"] == ["Try again"]
    assert "was lost" in page["errors"][0] and "is kept" in page["errors"][0]
    after = seen["conversations"]["after"]
    assert after["sent"] == [["hello", "Hel**lo**", "half?", "one half", "next"]] and after["buttons"] == []


def test_a_rejected_message_can_be_edited(seen: dict[str, Any]) -> None:
    page, edited = (seen["conversations"][name] for name in ("unanswered", "edited"))
    assert "the server is busy" in page["errors"][-1] and page["said"][-1] == "edit me"
    assert edited["input"] == "edit me" and edited["said"] == ["hello", "half?", "next"]


def test_a_full_context_goes_on_without_the_oldest_turns(seen: dict[str, Any]) -> None:
    page, smaller, later = (seen["conversations"][name] for name in ("exceeded", "smaller", "later"))
    assert page["buttons"] == ["Go on without the oldest turns", "New chat with this message", "Edit message"]
    assert [len(messages) for messages in page["sent"] + smaller["sent"]] == [7, 5, 3]
    assert smaller["dropped"] == ["hello", "half?"] and len(smaller["boundary"]) == 1
    assert smaller["answers"][-1] == "fits" and smaller["buttons"] == []
    assert [len(messages) for messages in later["sent"]] == [5, 3], "agreed once, for this conversation"
    assert later["dropped"] == ["hello", "half?", "next"]


def test_a_message_that_exceeds_the_context_alone_can_be_edited(seen: dict[str, Any]) -> None:
    page = seen["conversations"]["alone"]
    assert [len(messages) for messages in page["sent"]] == [5, 3, 1]
    assert "alone exceeds" in page["errors"][-1] and page["buttons"] == ["Edit message"]
    assert page["said"][-1] == "last"


def test_a_turn_without_an_answer_is_not_part_of_the_conversation(seen: dict[str, Any]) -> None:
    page = seen["conversations"]["left"]
    assert page["said"][-2:] == ["last", "on"] and page["dropped"][-1] == "last"
    assert page["sent"] == [["on"]] and page["buttons"] == []
