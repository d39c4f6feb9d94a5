"""What a user does on the chat page, and what they see of it."""

import json
from typing import Any

from browser import Browser, Page


class User:
    """Someone at the page, in a browser's profile of their own or in another tab of theirs."""

    def __init__(self, browser: Browser, base: str, context: str | None = None, **screen: Any) -> None:
        self.context = context or browser.profile()
        self.page: Page = browser.page(base, context=self.context, **screen)

    def write(self, text: str) -> None:
        """Types a message and sends it."""
        self.page.run("document.getElementById('text').focus()")
        self.page.type(text)
        self.page.press("Enter")

    def say(self, text: str) -> None:
        """Sends a message and waits until its answers have ended."""
        before = self.page.run("document.querySelectorAll('.assistant').length")
        self.write(text)
        self.page.wait(f"document.querySelectorAll('.assistant').length > {before}")
        self.idle()

    def idle(self) -> None:
        """Waits until no answer is on its way, and all that has come is shown."""
        self.page.wait("document.getElementById('stop').hidden && !document.querySelector('.running')")

    def click(self, label: str, number: int = -1) -> None:
        """The newest button with a label; `number` counts from 0."""
        buttons = (
            f"[...document.querySelectorAll('button')].filter((button) => button.dataset.key === {json.dumps(label)})"
        )
        self.page.click(f"{buttons}.at({number})")

    def press(self, element: str) -> None:
        """The mouse on an element by its id."""
        self.page.click(f"document.getElementById({json.dumps(element)})")

    def menu(self, element: str) -> None:
        """An entry of the menu."""
        self.press("more")
        self.press(element)

    def set(self, name: str, value: str) -> None:
        """Types a setting into its field."""
        self.press("open-settings")
        self.page.run(f"document.querySelector('#settings [name={name}]').select()")
        self.page.type(value) if value else self.page.press("Delete")
        self.page.press("Enter")
        self.page.wait("!document.querySelector('#settings').open")

    def texts(self, selector: str) -> list[str]:
        """The texts of the shown elements that a selector has."""
        return self.page.run(f"{shown(selector)}.map((element) => element.textContent)")

    @property
    def answers(self) -> list[str]:
        """The shown answers."""
        return self.texts(".assistant > .body")

    @property
    def said(self) -> list[str]:
        """The shown questions."""
        return self.texts(".user > .text")

    @property
    def ways_on(self) -> list[str]:
        """The buttons beside failures."""
        return self.texts(".problem button")

    @property
    def listed(self) -> list[str]:
        """The titles in the list of conversations."""
        return self.texts("#list a")


def shown(selector: str) -> str:
    """An expression with the elements that a selector has and that are shown."""
    visible = "(element) => element.checkVisibility({ visibilityProperty: true })"
    return f"[...document.querySelectorAll({json.dumps(selector)})].filter({visible})"
