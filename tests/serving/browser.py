"""A Chromium that tests drive as a user does: keys, clicks, windows of any size; by its DevTools protocol over a pipe.

The protocol: https://chromedevtools.github.io/devtools-protocol/. Nothing but the browser is needed for it.
"""

import fcntl
import json
import os
import shutil
import tempfile
import time
from base64 import b64decode
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from select import select
from typing import Any

from lifecycle.testing.waiting import LIMIT_S

BROWSER = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--remote-debugging-pipe",
    "--force-color-profile=srgb",
    # a tab behind another one goes on as if it were in front
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
]
KEYS = {
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "ArrowUp": (38, ""),
    "ArrowDown": (40, ""),
    "ArrowRight": (39, ""),
    "Tab": (9, ""),
}
ALT, SHIFT = 1, 8
END = b"\0"  # of each message


class Browser:
    """A running Chromium; commands go down one pipe, answers and events come up another."""

    def __init__(self, command: list[str]) -> None:
        down, up = os.pipe(), os.pipe()
        # above 3 and 4, where the browser looks for them
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (down[0], up[1])]
        quiet = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
        moved = [(os.POSIX_SPAWN_DUP2, end, number) for number, end in enumerate(theirs, 3)]
        self._pid = os.posix_spawn(command[0], command, os.environ, file_actions=[*quiet, *moved])  # no fork beside JAX
        for end in (down[0], up[1], *theirs):
            os.close(end)
        self._down, self._up = os.fdopen(down[1], "wb", buffering=0), os.fdopen(up[0], "rb", buffering=0)
        self._held, self._number = b"", 0
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """A command's result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        self._down.write(json.dumps(message | ({"sessionId": session} if session else {})).encode() + END)
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        while END not in self._held:
            assert select([self._up], [], [], LIMIT_S)[0], "the browser does not answer"
            data = self._up.read(1 << 20)
            assert data, "the browser is gone"
            self._held += data
        message, self._held = self._held.split(END, 1)
        return json.loads(message)

    def page(
        self, url: str, width: int = 1280, height: int = 800, *, context: str | None = None, **emulated: Any
    ) -> "Page":
        """A new tab; `context` is another profile than the default one's."""
        own = {} if context is None else {"browserContextId": context}
        target = self.send("Target.createTarget", url="about:blank", **own)["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, target)
        page.emulate(width, height, **emulated)
        for domain in ("Page", "Runtime", "Log"):
            page.send(f"{domain}.enable")
        page.send(
            "Emulation.setFocusEmulationEnabled", enabled=True
        )  # of several tabs each behaves as the one in front
        if url != "about:blank":
            page.open(url)
        return page

    def profile(self) -> str:
        """An empty profile: a `context` of pages."""
        return self.send("Target.createBrowserContext")["browserContextId"]

    def close(self) -> None:
        """Ends the browser."""
        self.send("Browser.close")
        os.waitpid(self._pid, 0)
        self._down.close()
        self._up.close()


class Page:
    """A tab."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self._browser, self._session, self._target = browser, session, target

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """A command's result."""
        return self._browser.send(method, self._session, **params)

    def emulate(self, width: int, height: int, *, phone: bool = False, dark: bool = False) -> None:
        """A screen; a phone's is touched."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}  # what is clicked stays where it is
        self.send("Emulation.setEmulatedMedia", features=[scheme, still])

    def open(self, url: str) -> None:
        """Goes to an address, and waits until the chat page is ready there."""
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && document.querySelector('[data-ready]')")

    def reload(self) -> None:
        """The same address, read anew."""
        address = self.run("location.href")
        self.send("Page.navigate", url="about:blank")
        self.open(address)

    def run(self, script: str) -> Any:
        """The value of an expression; a promise's is waited for."""
        found = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in found, (script, found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        """The value of an expression once it is true."""
        until = time.monotonic() + LIMIT_S
        while not (value := self.run(f"Promise.resolve({script}).then((found) => found instanceof Node || found)")):
            assert time.monotonic() < until, (script, self.run("document.body.innerText"))
            time.sleep(0.02)
        return value

    def press(self, key: str, modifiers: int = 0) -> None:
        """A key, as a keyboard sends it."""
        code, text = KEYS.get(key, (ord(key.upper()[0]), "" if modifiers & ALT else key))
        name = f"Key{key.upper()}" if len(key) == 1 and key.isalpha() else key
        event = {"key": key, "code": name, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **event)
        self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        """A text into what has the focus."""
        self.send("Input.insertText", text=text)

    def click(self, script: str) -> None:
        """The mouse's button on the element that an expression has; it must be there to be hit."""
        x, y = self.run(
            f"""(() => {{
              const element = {script};
              element.scrollIntoView({{ block: "nearest" }});
              const box = element.getBoundingClientRect();
              const x = box.x + box.width / 2, y = box.y + box.height / 2, hit = document.elementFromPoint(x, y);
              if (!element.contains(hit)) throw new Error(`covered by ${{hit?.outerHTML.slice(0, 200)}}`);
              return [x, y];
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def wheel(self, delta: int) -> None:
        """The mouse's wheel over the middle of the page; negative: up."""
        x, y = self.run("[innerWidth / 2, innerHeight / 2]")
        self.send("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=delta)

    def tree(self) -> list[dict[str, Any]]:
        """What a screen reader is given: role, name and properties of each element that it sees."""
        nodes = self.send("Accessibility.getFullAXTree")["nodes"]
        return [
            {"role": node["role"]["value"], "name": node.get("name", {}).get("value", "")}
            for node in nodes
            if not node["ignored"]
        ]

    def screenshot(self, path: Path) -> None:
        """Writes a PNG of what the window shows."""
        path.write_bytes(b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def complaints(self) -> list[str]:
        """What the console has by now: exceptions, violations of the policy, failed loads."""
        self.run("0")
        mine = [event for event in self._browser.events if event.get("sessionId") == self._session]
        thrown = [e["params"]["exceptionDetails"] for e in mine if e["method"] == "Runtime.exceptionThrown"]
        entries = [e["params"]["entry"] for e in mine if e["method"] == "Log.entryAdded"]
        texts = [details.get("exception", details).get("description", details["text"]) for details in thrown]
        return texts + [f"{entry['text']} {entry.get('url', '')}" for entry in entries if entry["level"] == "error"]

    def close(self) -> None:
        """Closes the tab."""
        self._browser.send("Target.closeTarget", targetId=self._target)


@contextmanager
def chromium() -> Generator[Browser]:
    """A browser with a profile of its own."""
    assert BROWSER is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser([BROWSER, *FLAGS, f"--user-data-dir={profile}"])
        try:
            yield browser
        finally:
            browser.close()
