"""Tasks with a prompt: its template, the solved examples before it (few-shot), and its tokens.

In plain text the parts are joined as in lm-evaluation-harness: examples of `prompt + delimiter + answer`, each followed
by `shot_separator`, then the row's `prompt`; what is scored begins with `delimiter`. In a chat an example is a user's
and an assistant's turn, and no text is added.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from lifecycle.core.config import ConfigError
from lifecycle.evals.subject import Encoder, Pair
from lifecycle.evals.tasks import TaskConfig, TaskRow
from lifecycle.evals.templates import compiled

PARAGRAPH = "\n\n"


class ShotTaskConfig(TaskConfig):
    """A task whose prompt may begin with solved examples, the same for all rows.

    They are the first `shots` usable rows of `shots_from` that are not scored; without that file, the last rows of
    `rows`, which are then not scored.
    """

    shots: Annotated[int, Field(ge=0, description="solved examples in the prompt")] = 0
    shots_from: Annotated[
        str | None, Field(description="their file; None: the last rows of `rows`, which are then not scored")
    ] = None
    shot_separator: Annotated[str, Field(description="between examples, in plain text")] = PARAGRAPH
    delimiter: Annotated[
        str, Field(description='between prompt and answer, in plain text: " " if the prompt ends with a word')
    ] = ""

    @model_validator(mode="after")
    def _shots_are_used(self) -> Self:
        if not self.shots and (self.shots_from is not None or self.shot_separator != PARAGRAPH):
            raise ValueError("shots_from and shot_separator need shots: the number of examples")
        if self.shots_from is not None and self.shots_from.startswith("@"):
            raise ValueError(f"shots_from={self.shots_from}: expected a file of yours, no artifact's")
        return self

    @abstractmethod
    def shot(self, row: TaskRow) -> tuple[str, str]:
        """A row as a solved example: its prompt and its right answer."""

    def plain_prompt(self, row: TaskRow, prompt: str) -> str:
        """A prompt in plain text, after the row's examples."""
        shots = (asked + self.delimiter + answer for asked, answer in map(self.shot, row.shots))
        return self.shot_separator.join([*shots, prompt])

    def plain_pairs(self, prompt: str, answers: Sequence[str], encoder: Encoder) -> list[Pair]:
        """A plain prompt and each answer, as ids.

        Both are tokenised together, as in training, and split where the joint ids first differ from the prompt's own,
        because a tokenizer may merge characters across the border. (lm-evaluation-harness splits after the number of
        the prompt's own ids; the two differ only after such a merge.)
        """
        alone = encoder.encode(prompt)
        pairs: list[Pair] = []
        for answer in answers:
            joint = encoder.encode(prompt + self.delimiter + answer)
            border = next((i for i, (a, b) in enumerate(zip(alone, joint, strict=False)) if a != b), len(alone))
            border = min(border, len(joint) - 1)
            pairs.append((encoder.begin(joint[:border]), joint[border:]))
        return pairs


class PromptTaskConfig(ShotTaskConfig):
    """A task with a prompt: `template` is jinja2 over the row's columns; by default, one column unchanged."""

    default_template: ClassVar[str]

    template: str = ""
    chat: bool = True  # the rendered template is a user's turn; False: plain text to continue

    @model_validator(mode="after")
    def _template_compiles(self) -> Self:
        try:
            compiled(self.template)
        except ValueError as error:
            raise ValueError(f"task {self.name!r}: the template is {error}") from None
        return self

    @model_validator(mode="after")
    def _text_is_added(self) -> Self:
        if self.chat and (self.delimiter or self.shot_separator != PARAGRAPH):
            raise ValueError("delimiter and shot_separator are for plain text: set chat to false, or remove them")
        asked = [self.template, *(self.map.get(name) for name in compiled(self.default_template).names)]
        if self.delimiter and any(isinstance(source, str) and source[-1:].isspace() for source in asked):
            raise ValueError(f"the prompt ends in white space, and delimiter={self.delimiter!r} adds more; remove one")
        return self

    @property
    def read_columns(self) -> dict[str, str]:
        """The file's columns that this task reads, each with the setting or the column that needs it."""
        return super().read_columns | dict.fromkeys(sorted(self._other_columns), "template")

    def identity(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """What decides a row's score; with the prompt, if the template has more in it than the kind's columns."""
        return super().identity(columns) | ({"template": self._rendered(columns)} if self._other_columns else {})

    def prompt(self, row: TaskRow) -> str:
        """The row's prompt, rendered from the template."""
        try:
            return self._rendered(row.columns)
        except ValueError as error:
            raise ConfigError(f"{row.where}: task {self.name!r}: template: {error}") from None

    def prompt_problem(self, columns: Mapping[str, Any]) -> str:
        """The fault of a row whose prompt cannot be rendered, or is empty; empty if there is none."""
        try:
            return "" if self._rendered(columns).strip() else "the prompt is empty"
        except ValueError as error:
            return f"template: {error}"

    def prompt_ids(self, row: TaskRow, encoder: Encoder) -> list[int]:
        """The prompt's ids, with BOS and, in a chat, the opening of the assistant's turn."""
        prompt = self.prompt(row)
        if not self.chat:
            return encoder.begin(encoder.encode(self.plain_prompt(row, prompt)))
        texts = [text for shot in row.shots for text in self.shot(shot)]
        turns = zip(cycle(("user", "assistant")), [*texts, prompt], strict=False)
        return encoder.encode_chat([{"role": role, "content": text} for role, text in turns])

    def pairs_of(self, row: TaskRow, answers: Sequence[str], encoder: Encoder) -> list[Pair]:
        """The prompt and each answer, as ids; in a chat the answer begins the assistant's turn."""
        if self.chat:
            context = self.prompt_ids(row, encoder)
            return [(context, encoder.encode(answer)) for answer in answers]
        return self.plain_pairs(self.plain_prompt(row, self.prompt(row)), answers, encoder)

    @property
    def _other_columns(self) -> frozenset[str]:
        """The columns that the template reads besides the kind's own."""
        return compiled(self.template).names.difference(self.columns)

    def _rendered(self, columns: Mapping[str, Any]) -> str:
        return str(compiled(self.template or self.default_template).fill(columns))
