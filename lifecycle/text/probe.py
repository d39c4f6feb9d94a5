"""What a chat template cannot do, found by rendering three short conversations: told at import, not at a later turn."""

from collections.abc import Sequence

from lifecycle.text.chat import ChatError, ChatTemplate, Message, Rendered
from lifecycle.text.interface import TokenizerError

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Is it so?"}
ANSWER = {"role": "assistant", "content": "Yes."}
THOUGHT = {"role": "assistant", "content": "<think>\nLet me see.\n</think>\n\nYes."}


def missing_abilities(template: ChatTemplate) -> list[str]:
    """A line for each thing that does not work with a template; empty if all does."""
    if isinstance(error := _render(template, [USER], True), str):
        return [f"no chats: {error}"]
    lines: list[str] = []
    if isinstance(error := _render(template, [SYSTEM, USER, ANSWER, USER], True), str):
        several = _render(template, [USER, ANSWER, USER], True)
        lines.append(f"no system message: {error}" if isinstance(several, Rendered) else f"one turn only: {several}")
    thinking = _render(template, [USER, THOUGHT, USER], False)
    if isinstance(thinking, str):
        lines.append(f"no earlier answers with <think>: {thinking}")
    elif thinking.cut:
        lines.append("it cuts <think> from earlier answers: for training give each answer as prompt and completion")
    return lines


def _render(template: ChatTemplate, messages: Sequence[Message], is_open: bool) -> Rendered | str:
    """The rendered conversation, or what went wrong."""
    try:
        return template.render(messages, add_generation_prompt=is_open)
    except (ChatError, TokenizerError) as error:
        return str(error).removeprefix("chat template: ")
