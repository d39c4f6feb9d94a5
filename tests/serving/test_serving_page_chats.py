"""The chat page in a browser, before a server with scripted answers: conversations, branches, failures."""

import json
import threading
from pathlib import Path

import pytest
from browser import ALT, Browser
from page_user import User, shown
from scripted_server import LOCKED, Reply, Scripted

from lifecycle.testing.waiting import wait_until

pytestmark = pytest.mark.xdist_group("page")


def test_an_answer_arrives_in_pieces_and_says_how_fast_it_was(user: User, script: Scripted) -> None:
    go = threading.Event()
    script.replies.append(Reply(["Hel", "**lo**"], go=go))
    user.write("hi")
    user.page.wait("document.querySelector('.assistant > .body').textContent === 'Hel'")
    assert user.texts("#stop") == ["Stop"] and user.texts("#send") == []
    user.write("too soon")
    assert "still on its way" in user.texts("#toast")[0] and user.page.run("text.value") == "too soon"
    go.set()
    user.idle()
    assert user.answers == ["Hello"] and user.page.run("document.querySelector('.body strong').textContent") == "lo"
    (note,) = user.texts(".assistant .note")
    assert "tokens/s" in note and "2 tokens" in note and "first after" in note and "version ffffffffffff" in note


def test_retry_and_edit_make_versions_that_stay_reachable(user: User, script: Scripted) -> None:
    script.replies.extend([Reply(["one"]), Reply(["two"]), Reply(["three"]), Reply(["four"])])
    user.say("a")
    user.click("Retry")
    user.idle()
    assert user.answers == ["two"] and user.texts(".place") == ["Version 2/2"]
    user.click("Version before")
    assert user.answers == ["one"]
    user.say("b")
    assert script.asked()[-1] == ["a", "one", "b"], "the shown version is the one that is sent"
    user.click("Edit", 0)
    user.page.run("document.activeElement.select()")
    user.page.type("changed")
    user.page.press("Enter")
    user.page.wait("document.querySelectorAll('.assistant').length === 1")
    user.idle()
    assert user.said == ["changed"] and user.answers == ["four"] and script.asked() == [["changed"]]
    user.click("Version before", 0)
    assert user.said == ["a", "b"] and user.answers == ["one", "three"], "the old branch with all that followed"


def test_stop_keeps_what_is_there_and_ends_the_server_s_work(user: User, script: Scripted) -> None:
    reply = Reply(["half ", "never"], go=threading.Event())
    script.replies.append(reply)
    user.write("long")
    user.page.wait("document.querySelector('.assistant > .body').textContent")
    user.page.press("Escape")
    user.idle()
    assert user.answers == ["half "] and "stopped" in user.texts(".assistant .note")[0]
    wait_until(reply.gone.is_set)
    script.replies.append(Reply(["ok"]))
    user.say("next")
    assert script.asked()[-1] == ["long", "half ", "next"], "it is part of the conversation"


def test_two_models_answer_side_by_side_and_one_goes_on(user: User, script: Scripted) -> None:
    go = threading.Event()
    user.press("compare")
    script.replies.extend([Reply(["first ", "a"], go=go), Reply(["first ", "b"], go=go), Reply(["ok"]), Reply(["ok"])])
    user.write("q")
    user.page.wait(
        "[...document.querySelectorAll('.columns .body')].filter((b) => b.textContent === 'first ').length === 2"
    )
    go.set()
    user.idle()
    assert {body["model"] for body in script.sent} == {"production", "candidate"}
    assert all("tokens/s" in note for note in user.texts(".columns .note")) and len(user.answers) == 2
    second = user.answers[1]
    user.click("Go on with this", 1)
    assert user.answers == [second] and user.texts(".place") == ["Version 2/2"]
    user.click("Side by side")
    assert len(user.answers) == 2 and user.texts(".chosen > .body") == [second]
    user.press("compare")
    user.say("next")
    assert script.asked()[-1] == ["q", second, "next"]
    script.replies.clear()


def test_conversations_are_kept_and_deleted_ones_come_back(user: User, script: Scripted) -> None:
    script.replies.extend([Reply(["1"]), Reply(["2"])])
    user.say("first talk")
    user.press("new")
    user.say("second talk")
    assert user.listed == ["second talk", "first talk"]
    user.page.reload()
    assert user.said == ["second talk"] and user.answers == ["2"], "the address names it"
    user.page.run("text.focus()")
    user.page.type("  a draft")
    user.page.reload()
    assert user.page.run("text.value") == "  a draft"
    user.press("title")
    user.page.run("document.activeElement.select()")
    user.page.type("renamed")
    user.page.press("Enter")
    user.page.wait("document.querySelector('#list a').textContent === 'renamed'")
    user.menu("delete")
    user.page.wait("document.querySelectorAll('#list a').length === 1")
    assert user.said == []
    user.click("Undo")
    user.page.wait("document.querySelector('.assistant > .body')?.textContent")
    assert user.said == ["second talk"] and user.answers == ["2"] and user.listed[0] == "renamed"
    user.page.press("ArrowDown", ALT)
    user.page.wait("document.querySelector('.user .text').textContent === 'first talk'")


def test_two_tabs_write_one_conversation_and_lose_nothing(user: User, script: Scripted, browser: Browser) -> None:
    script.replies.append(Reply(["1"]))
    user.say("start")
    other = User(browser, user.page.run("location.href"), user.context)
    assert other.answers == ["1"]
    go = threading.Event()
    script.replies.extend([Reply(["from ", "a"], go=go), Reply(["from ", "b"], go=go)])
    user.write("a")
    wait_until(lambda: len(script.sent) == 2)
    other.write("b")
    wait_until(lambda: len(script.sent) == 3)
    go.set()
    for tab in (user, other):
        tab.idle()
    other.page.open(f"{script.base}/")  # another conversation; back again, all is read anew
    other.page.click("document.querySelector('#list a')")
    other.page.wait("document.querySelectorAll('.place').length === 1")
    seen = {tuple(other.said)}
    other.click("Version before" if "2/2" in other.texts(".place")[0] else "Next version")
    assert seen | {tuple(other.said)} == {("start", "a"), ("start", "b")}
    user.menu("delete")
    other.page.wait("document.querySelector('#toast').textContent.includes('Another tab')")
    other.click("Keep it")
    user.page.wait("document.querySelectorAll('#list a').length === 1")
    other.page.close()


def test_settings_belong_to_a_conversation_and_the_key_to_the_tab(user: User, script: Scripted) -> None:
    script.replies.extend([LOCKED, Reply(["ok"]), Reply(["ok"])])
    user.say("hi")
    assert "API key" in user.texts(".error")[0] and user.ways_on == ["Enter the key", "Try again", "Edit message"]
    user.click("Enter the key")
    user.page.wait("document.activeElement.name === 'key'")
    user.page.type("secret")
    user.page.press("Enter")
    for name, value in {"system": "Be brief.", "temperature": "0", "max_tokens": "50"}.items():
        user.set(name, value) if name != "system" else user.page.run(
            "(() => { const field = document.querySelector('[name=system]'); field.value = 'Be brief.';"
            "field.dispatchEvent(new Event('change', { bubbles: true })); })()"
        )
    user.click("Try again")
    user.idle()
    sent = script.sent[-1]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."} and script.keys[-1] == "Bearer secret"
    assert (sent["temperature"], sent["max_tokens"]) == (0, 50) and {"seed", "top_p", "logprobs"}.isdisjoint(sent)
    user.press("new")
    user.say("other")
    assert [message["role"] for message in script.sent[-1]["messages"]] == ["user"]
    assert (
        user.page.run("sessionStorage.getItem('lifecycle-key')") == "secret"
        and user.page.run("localStorage.length") == 0
    )


def test_an_export_has_all_versions(user: User, script: Scripted, browser: Browser, tmp_path: Path) -> None:
    folder = {"behavior": "allow", "downloadPath": str(tmp_path), "browserContextId": user.context}
    browser.send("Browser.setDownloadBehavior", **folder)
    script.replies.extend([Reply(["one"]), Reply(["two"])])
    user.say("Which? 1/2")
    user.click("Retry")
    user.idle()
    user.menu("as-json")
    user.menu("as-markdown")
    wait_until(lambda: {file.suffix for file in tmp_path.iterdir()} == {".json", ".md"})
    texts = {message["text"] for message in json.loads((tmp_path / "Which-1-2.json").read_text())["messages"]}
    assert texts == {"Which? 1/2", "one", "two"}
    assert (tmp_path / "Which-1-2.md").read_text() == "# Which? 1/2\n\n## User\n\nWhich? 1/2\n\n## production\n\ntwo\n"


def test_an_exported_conversation_comes_back_beside_what_is_there(user: User, script: Scripted) -> None:
    script.replies.extend([Reply(["one"]), Reply(["two"]), Reply(["three"])])
    user.say("a")
    user.click("Retry")
    user.idle()
    user.say("b")
    user.click("Version before", 0)
    user.page.wait("document.querySelector('.place').textContent === 'Version 1/2'")
    exported = user.page.run(
        "Promise.all(['store', 'conversation', 'exchange'].map((name) => import(`./${name}.js`))).then(async ("
        "[{ openStore }, { Conversation }, { json }]) => { const stored = await (await openStore())"
        ".load(location.hash.slice(1)); return json(new Conversation(stored.head, stored.nodes)); })"
    )
    bring = """(() => {{
      const files = new DataTransfer();
      files.items.add(new File([{}], "talk.json"));
      file.files = files.files;
      file.dispatchEvent(new Event("change"));
    }})()"""
    before = user.page.run("location.hash")
    user.page.run(bring.format(json.dumps(exported)))
    shown = "document.querySelector('#list [aria-current]')?.hash === location.hash"
    user.page.wait(f"location.hash !== '{before}' && {shown}")  # the address changes before the page does
    assert user.answers == ["one"] and user.texts(".place") == ["Version 1/2"] and len(user.listed) == 2
    user.click("Next version")
    assert user.answers == ["two", "three"]
    tree = json.loads(exported)
    loose = tree | {"messages": [message | {"parent": "nowhere"} for message in tree["messages"][1:]]}
    for broken in ("{", "[]", "null", "{}", '{"conversation": {"title": "x"}, "messages": [null]}', json.dumps(loose)):
        user.page.run("notice.replaceChildren()")
        user.page.run(bring.format(json.dumps(broken)))
        user.page.wait("notice.textContent.includes('talk.json is not a conversation')")
    assert len(user.listed) == 2


def test_reasoning_is_folded(user: User, script: Scripted) -> None:
    script.replies.append(Reply(["42"], reasoning=["Let me ", "think."]))
    user.say("q")
    assert user.answers == ["42"] and user.page.run("document.querySelector('details').open") is False
    assert user.page.run("document.querySelector('details .body').textContent") == "Let me think."
    script.replies.append(Reply(["plain"]))
    user.say("r")
    assert len(user.texts("details")) == 1 and script.asked()[-1] == ["q", "42", "r"]


def test_the_reader_who_scrolls_up_is_left_in_peace(user: User, script: Scripted) -> None:
    go, long = threading.Event(), "\n\n".join(f"paragraph {number}" for number in range(60))
    script.replies.append(Reply([long, f"\n\n{long}", "\n\nend"], go=go))
    user.write("long")
    place = "document.getElementById('scroll').scrollTop"
    user.page.wait(f"{place} > 1000")
    assert user.texts("#latest") == []
    user.page.wheel(-300)
    user.page.wait("!document.getElementById('latest').hidden")
    before = user.page.run(place)
    go.set()
    user.idle()
    assert user.page.run(place) <= before and user.answers[0].endswith("end")
    user.press("latest")
    user.page.wait(f"{place} > {before} && document.getElementById('latest').hidden")


@pytest.mark.parametrize("is_dark", [False, True])
def test_the_page_fits_a_phone_and_can_be_touched(browser: Browser, script: Scripted, is_dark: bool) -> None:
    user = User(browser, script.base, width=390, height=844, phone=True, dark=is_dark)
    code = f"```python\n{'long ' * 60}\n```\n\n| {'wide | ' * 30}\n|{'-|' * 30}\n| a |\n\n" + "x" * 300
    script.replies.extend([Reply([code]), Reply([code]), Reply([code])])
    user.say("hi")
    user.press("compare")
    user.say("two")
    assert user.page.run("document.documentElement.scrollWidth") == 390
    touched = shown("button, select, #list a, header input, textarea")
    small = user.page.run(f"{touched}.filter((e) => e.getBoundingClientRect().height < 44).map((e) => e.outerHTML)")
    assert small == []
    assert user.texts("#side") == [] and user.page.run("document.querySelector('#side').inert")
    user.press("open-side")
    user.page.click("document.querySelector('#list a')")
    user.page.wait("document.querySelector('#side').inert")
    user.page.close()
