"""Our rendering of a conversation beside transformers', as `tests/golden/make_template_golden.py` has it."""

import json
from pathlib import Path
from typing import Any

from lifecycle.text.chat import ChatError, ChatTemplate, Rendered
from lifecycle.text.hf_tokenizer import HFTokenizer
from lifecycle.text.messages import check_messages, told
from tests.golden.conversations import CONVERSATIONS, NAMES, tokenizer_json

# Where transformers loses or misquotes what a message says, which a template then gets in the form that it takes.
MENDED = ("developer", "parts", "text_call")
# And where it is lost here too, that is said.
REFUSED = r"no variable 'enable_thinking'|no place for (tools|calls)|leaves out message \d+ \((system|developer)\)"


def tokenizer_of(folder: Path, specials: tuple[str, ...]) -> HFTokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(specials)))
    (folder / "tokenizer_config.json").write_text(json.dumps(NAMES))
    return HFTokenizer(folder / "tokenizer.json")


def rendered(template: ChatTemplate, case: str) -> Rendered | str:
    """The conversation, or why it is refused."""
    name, _, is_open = case.partition("/")
    messages, tools, variables = CONVERSATIONS[name]
    try:
        return template.render(messages, bool(is_open), tools, variables)
    except ChatError as error:
        return str(error)


def learned(template: ChatTemplate, found: Rendered, message: int | None = None) -> list[str]:
    """The texts that are learned, each without a gap; of one message, or of all."""
    runs: list[list[int]] = [[]]
    for token_id, index in zip(found.ids, found.said_in, strict=True):
        if index >= 0 if message is None else index == message:
            runs[-1].append(token_id)
        elif runs[-1]:
            runs.append([])
    return [template.tokenizer.decode(run, skip_special=False) for run in runs if run]


def loses(case: str, text: str) -> bool:
    """Whether a rendered text lacks a letter of what the model is told."""
    messages = check_messages(CONVERSATIONS[case.partition("/")[0]][0])
    squeezed = "".join(text.split())
    texts = (part for message in messages if message["role"] != "assistant" for part in told(message))
    return any("".join(form.split()) not in squeezed for part in texts for form in [part] if '"' not in form)


def last_answer(case: str) -> int | None:
    messages: list[dict[str, Any]] = CONVERSATIONS[case.partition("/")[0]][0]
    return len(messages) - 1 if messages[-1]["role"] == "assistant" else None
