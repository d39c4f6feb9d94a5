"""What a model's chat template says that it can do: thoughts, calls of tools, and how its answers are taken apart."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from lifecycle.text.answer import AnswerParser
from lifecycle.text.calls import CallForm, form_of
from lifecycle.text.harmony import TOKENS, HarmonyParser, is_harmony
from lifecycle.text.interface import Tokenizer
from lifecycle.text.thoughts import Marks, marks_of

OPENED_IN = 16  # tokens at the end of a prompt in which thoughts may be opened
CALL_ID_LENGTH = 24  # characters


@dataclass(frozen=True)
class Abilities:
    """What a model's chat template says that it can do."""

    marks: Marks | None
    form: CallForm | None
    is_harmony: bool = False  # gpt-oss's way to write both

    @classmethod
    def of(cls, template: str) -> "Abilities":
        """Those that a template's source names."""
        return cls(None, None, True) if is_harmony(template) else cls(marks_of(template), form_of(template))

    @property
    def calls_tools(self) -> bool:
        """Whether calls are known in an answer's text."""
        return self.is_harmony or self.form is not None

    @property
    def card(self) -> dict[str, Any]:
        """As the list of models shows them: the name of the calls' form, the marks of thoughts."""
        if self.is_harmony:
            return {"tool_calls": "harmony", "reasoning": "harmony"}
        return {"tool_calls": self.form and self.form.name, "reasoning": self.marks and "".join(self.marks)}

    @property
    def call_id_length(self) -> int:
        """Characters of a call's id: some templates insist on a number."""
        return self.form.id_length if self.form else CALL_ID_LENGTH

    def shown_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Special tokens that stand in an answer's text for what it is taken apart by."""
        form = self.form
        names = [*(self.marks or ()), *((form.opening, form.closing, form.between) if form else ())]
        names += TOKENS if self.is_harmony else ()
        return tuple(tokenizer.special_ids[name] for name in names if name in tokenizer.special_ids)

    def opens_thoughts(self, prompt: Sequence[int], tokenizer: Tokenizer) -> bool:
        """Whether a prompt's ids end with the mark that begins thoughts."""
        end = tokenizer.decode(list(prompt[-OPENED_IN:]), skip_special=False)
        return self.marks is not None and end.rstrip().endswith(self.marks[0])

    def parser(self, tools: Collection[str], is_thinking: bool) -> AnswerParser | HarmonyParser:
        """A machine that takes one answer apart; `is_thinking`: its prompt has opened thoughts."""
        if self.is_harmony:
            return HarmonyParser(tools)
        return AnswerParser(self.marks, is_thinking, self.form, tools)
