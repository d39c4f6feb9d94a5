"""What a chat template cannot do, and what it does to rows of several turns; found by rendering short conversations:
told at import and before training, not at a later turn."""

from collections.abc import Sequence

from lifecycle.text.chat import ChatError, ChatTemplate, Message, Rendered
from lifecycle.text.interface import TokenizerError

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Is it so?"}
ANSWER = {"role": "assistant", "content": "Yes."}
THOUGHT = {"role": "assistant", "content": "<think>\nLet me see.\n</think>\n\nYes."}
APART = "for training give each answer as prompt and completion"


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
        lines.append(f"it cuts <think> from earlier answers: {APART}")
    return [*lines, *_about_turns(template)]


def _about_turns(template: ChatTemplate) -> list[str]:
    """What is to be known before the template's turns are learned."""
    lines: list[str] = []
    asked, answered = _render(template, [USER], True), _render(template, [USER, ANSWER], False)
    several = _render(template, [USER, ANSWER, USER, ANSWER], False)
    if isinstance(asked, str) or isinstance(answered, str):
        return lines
    said = template.tokenizer.decode(
        [i for i, is_said in zip(answered.ids, answered.assistant_mask, strict=True) if is_said], skip_special=False
    )
    closed = _render(template, [USER], False)
    beginning = said.partition(ANSWER["content"])[0]
    if isinstance(closed, Rendered) and closed.ids == asked.ids and beginning.strip():
        lines.append(f"it has no generation prompt: {beginning!r} is learned with each answer")
    if isinstance(several, Rendered) and several.ids[: len(answered.ids)] != answered.ids:
        lines.append(f"it writes an answer in another way once messages follow it (no prefix property): {APART}")
    return lines


def _render(template: ChatTemplate, messages: Sequence[Message], is_open: bool) -> Rendered | str:
    """The rendered conversation, or what went wrong."""
    try:
        return template.render(messages, add_generation_prompt=is_open)
    except (ChatError, TokenizerError) as error:
        return str(error).removeprefix("chat template: ")
