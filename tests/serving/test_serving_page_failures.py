"""What the chat page does in a browser when something fails: nothing that was said is lost, and there is a way on."""

import threading

import pytest
from browser import Browser
from page_user import User
from scripted_server import BUSY, FULL, Reply, Scripted

pytestmark = pytest.mark.xdist_group("page")


def test_an_unreachable_server_is_named_and_the_message_kept(user: User, script: Scripted) -> None:
    user.page.send("Network.enable")
    lost = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    user.page.send("Network.emulateNetworkConditions", offline=True, **lost)
    user.say("hello")
    assert user.said == ["hello"] and user.ways_on == ["Try again", "Edit message"]
    assert "cannot be reached" in user.texts(".error")[0] and "lifecycle serve" in user.texts(".error")[0]
    user.page.send("Network.emulateNetworkConditions", offline=False, **lost)
    script.replies.append(Reply(["Hello"]))
    user.click("Try again")
    user.idle()
    assert script.asked() == [["hello"]] and user.answers == ["Hello"] and user.ways_on == []


def test_half_an_answer_is_kept_and_part_of_the_conversation(user: User, script: Scripted) -> None:
    go = threading.Event()
    script.replies.extend([Reply(["one ", "half"], is_whole=False, go=go), Reply(["ok"])])
    user.write("half?")
    user.page.wait("document.querySelector('.assistant > .body')?.textContent === 'one half'")
    go.set()
    user.idle()
    assert user.answers == ["one half"] and user.ways_on == ["Try again"]
    assert "was lost" in user.texts(".error")[0] and "is kept" in user.texts(".error")[0]
    user.say("next")
    assert script.asked()[-1] == ["half?", "one half", "next"]


def test_a_busy_server_is_asked_again_at_a_click_after_the_wait(user: User, script: Scripted) -> None:
    script.replies.extend([BUSY, Reply(["ok"])])
    user.say("hi")
    assert "busy" in user.texts(".error")[0] and len(script.sent) == 1
    user.page.wait("document.querySelector(\"[data-key='Try again']:enabled\")")
    user.click("Try again")
    user.idle()
    assert user.answers == ["ok"] and len(script.sent) == 2


def test_a_turn_without_an_answer_is_not_part_of_the_conversation(user: User, script: Scripted) -> None:
    script.replies.extend([BUSY, Reply(["ok"])])
    user.say("lost")
    user.say("next")
    assert script.asked()[-1] == ["next"] and "not part of the conversation" in user.texts(".user .note")
    assert user.said == ["lost", "next"]


def test_a_full_context_goes_on_without_the_oldest_turns(user: User, script: Scripted) -> None:
    script.replies.extend([Reply(["1"]), Reply(["2"]), FULL])
    for text in ("a", "b", "c"):
        user.say(text)
    assert user.ways_on == ["Go on without the oldest turns", "New chat with this message", "Edit message"]
    script.replies.extend([FULL, Reply(["fits"])])
    user.click("Go on without the oldest turns")
    user.idle()
    assert user.answers[-1] == "fits" and [len(messages) for messages in script.asked()] == [1, 3, 5, 5, 3]
    assert len(user.texts(".boundary")) == 1 and user.texts(".dropped > .text") == ["a"]
    script.replies.extend([FULL, Reply(["too"])])
    user.say("d")
    assert [len(messages) for messages in script.asked()] == [5, 3], "agreed once, for this conversation"
    assert user.texts(".dropped > .text") == ["a", "b"]
    script.replies.extend([FULL, FULL, FULL])
    user.say("e")
    assert "alone exceeds" in user.texts(".error")[-1] and user.ways_on == ["Try again", "Edit message"]
    script.replies.append(Reply(["ok"]))
    user.say("on")
    assert script.asked()[-1] == ["on"] and user.answers[-1] == "ok"


def test_max_tokens_beyond_the_context_are_named(user: User, script: Scripted) -> None:
    script.replies.extend([FULL, Reply(["ok"])])
    user.set("max_tokens", "5000")
    user.say("a")
    assert "Max tokens is 5000, but the model's context holds 100" in user.texts(".error")[0]
    user.set("max_tokens", "50")
    user.click("Try again")
    user.idle()
    assert user.answers == ["ok"]


def test_a_full_browser_is_told_and_the_page_goes_on(user: User, script: Scripted) -> None:
    user.page.send("Storage.overrideQuotaForOrigin", origin=script.base, quotaSize=1)
    script.replies.append(Reply(["still here"]))
    user.say("hi")
    user.page.wait("document.querySelector('#notice .error')?.textContent.includes('no more room')")
    assert user.answers == ["still here"] and user.texts("#notice button") == ["Export"]
    user.page.send("Storage.overrideQuotaForOrigin", origin=script.base)


def test_a_browser_that_keeps_nothing_still_chats(browser: Browser, script: Scripted) -> None:
    user = User(browser, "about:blank")
    forbidden = "Object.defineProperty(window, 'indexedDB', { get() { throw new DOMException('', 'SecurityError'); } })"
    user.page.send("Page.addScriptToEvaluateOnNewDocument", source=forbidden)
    user.page.open(script.base)
    script.replies.extend([Reply(["1"]), Reply(["2"])])
    user.say("a")
    user.press("new")
    user.say("b")
    user.page.click("[...document.querySelectorAll('#list a')].at(-1)")
    user.page.wait("document.querySelector('.user .text').textContent === 'a'")
    assert user.answers == ["1"] and "keeps nothing" in user.texts("#kept")[0]
    user.page.close()
