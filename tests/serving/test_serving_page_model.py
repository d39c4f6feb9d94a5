"""The chat page in a browser, before a real server with a tiny model; its keys, and what a screen reader is given."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import pytest
from browser import ALT, SHIFT, Browser
from page_user import User
from serving_server import KEY, Running

from lifecycle.inference.generation import Event
from lifecycle.serving.choices import Choices

pytestmark = pytest.mark.xdist_group("page")


@pytest.fixture
def user(browser: Browser, server: Running) -> Iterator[User]:
    user = User(browser, server.base)
    yield user
    complaints = user.page.complaints()
    user.page.close()
    assert complaints == []


def test_stop_frees_the_server_and_continue_goes_on_from_there(
    user: User, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, asked = len(server.records), list[Choices]()
    whole = Choices.events

    async def slowly(choices: Choices) -> AsyncIterator[tuple[int, Event]]:
        asked.append(choices)
        async for event in whole(choices):
            yield event
            await asyncio.sleep(0.2)  # so that 4,096 tokens do not end before they are stopped

    monkeypatch.setattr(Choices, "events", slowly)
    user.write("endless")
    user.page.wait("document.querySelector('.assistant > .body')?.textContent.length > 1")
    user.page.press("Escape")
    user.idle()
    record = server.wait_for_record(count + 1)
    assert record.status == 499 and asked[0].generations[0].is_cancelled
    before = user.page.run("document.querySelector('.assistant > .body').textContent")
    user.set("max_tokens", "8")
    user.click("Continue")
    user.idle()
    after = user.page.run("document.querySelector('.assistant > .body').textContent")
    record = server.wait_for_record(count + 2)
    assert record.route == "/v1/completions" and record.completion_tokens == 8
    sent = record.prompt.rpartition("assistant\n")[2]
    assert sent and before == shown(user, sent) and after == shown(user, sent + record.completion)
    assert "ended at Max tokens" in user.texts(".assistant .note")[0]


def shown(user: User, text: str) -> str:
    """What the page makes of an answer's text: random letters may be marks of Markdown."""
    return user.page.run(f"""import("./markdown.js").then(({{ show }}) => {{
        const element = document.createElement("div");
        show(element, {json.dumps(text)});
        return element.textContent;
    }})""")


def test_probabilities_are_asked_for_only_when_switched_on(user: User) -> None:
    user.set("max_tokens", "6")
    user.say("first")
    assert "Probabilities" not in user.texts(".assistant button")
    user.press("open-settings")
    user.page.click("document.querySelector('[name=logprobs]')")
    user.page.press("Escape")
    user.say("second")
    user.click("Probabilities")
    assert len(user.texts(".token")) == 6 and len(user.texts(".alternatives tbody tr")) in (5, 6)
    user.page.run("document.querySelector('.token').focus()")
    first = user.texts(".alternatives caption")
    user.page.press("ArrowRight")
    assert user.page.run("[...document.querySelectorAll('.token')].indexOf(document.activeElement)") == 1
    assert user.page.run("document.querySelectorAll('.token[aria-selected=true]').length") == 1
    assert all("%" in text for text in user.texts(".alternatives td:nth-child(2)")) and first
    user.click("Continue")
    user.idle()
    assert len(user.texts(".token")) == 12


def test_a_key_opens_a_locked_server_and_stays_in_the_tab(browser: Browser, locked: Running) -> None:
    user = User(browser, locked.base)
    user.page.wait("document.querySelector('#notice .error')")
    user.click("Enter the key")
    user.page.type(KEY)
    user.page.press("Enter")
    user.page.wait("document.querySelector('#model').value === 'production'")
    assert user.texts("#notice .error") == []
    user.set("max_tokens", "3")
    user.say("hi")
    assert "3 tokens" in user.texts(".assistant .note")[0]
    other = User(browser, locked.base, user.context)
    assert other.texts("#notice .error") != []
    other.page.close()
    user.page.close()


def test_everything_works_by_keyboard(user: User) -> None:
    user.set("max_tokens", "3")
    page = user.page
    page.run("document.getElementById('text').focus()")
    page.type("one")
    page.press("Enter", SHIFT)
    page.type("two")
    assert user.said == []
    page.press("Enter")
    user.page.wait("document.querySelector('.assistant')")
    user.idle()
    assert user.said == ["one\ntwo"]
    page.press("ArrowUp")
    page.wait("document.activeElement.getAttribute('aria-label') === 'Edit the message'")
    page.press("Escape")
    assert page.run("document.activeElement.textContent") == "Edit"
    page.press("r", ALT)
    page.wait("document.querySelector('.place')?.textContent === 'Version 2/2'")
    user.idle()
    page.run("[...document.querySelectorAll('button')].find(({ dataset }) => dataset.key === 'Version before').focus()")
    page.press("Enter")
    assert (
        user.texts(".place") == ["Version 1/2"] and page.run("document.activeElement.dataset.key") == "Version before"
    )
    page.press("c", ALT)
    assert page.run("document.getElementById('compare').getAttribute('aria-pressed')") == "true"
    page.run("document.activeElement.blur()")
    page.press("?")
    assert len(user.texts("#shortcuts div")) >= 10
    page.press("Escape")
    page.press("n", ALT)
    assert user.said == [] and page.run("document.activeElement.id") == "text"
    page.press("?")
    assert page.run("document.getElementById('text').value") == "?", "in a field it is a letter"


def test_a_screen_reader_is_told_what_is_there_and_what_comes(user: User) -> None:
    user.set("max_tokens", "5")
    user.page.run(
        "window.heard = []; new MutationObserver((changes) => changes.forEach(({ addedNodes }) => "
        "addedNodes.forEach((node) => heard.push(node.textContent)))).observe(document.getElementById('said'), "
        "{ childList: true })"
    )
    user.say("hello")
    user.page.wait("heard.length >= 3")
    heard = user.page.run("heard")
    assert heard[0] == "An answer is being written." and heard[-1] == "production: the answer is complete."
    assert "".join(heard[1:-1]) == user.answers[0], "each block once, and no token by itself"
    tree = user.page.tree()
    names = {(node["role"], node["name"]) for node in tree}
    assert {
        ("navigation", "Conversations"), ("main", ""), ("log", "Conversation"), ("heading", "You"),
        ("heading", "production"), ("textbox", "Message"), ("combobox", "Model"), ("button", "Send"),
        ("textbox", "Title of the conversation"), ("button", "More"), ("link", "New chat"),
    } <= names  # fmt: skip
    controls = {"button", "textbox", "combobox", "link", "checkbox", "spinbutton", "option", "listbox", "group"}
    assert [node for node in tree if node["role"] in controls and not node["name"]] == []
