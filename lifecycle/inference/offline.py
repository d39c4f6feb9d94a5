"""Offline generation: an answer to each row of a file, in their order, by a run that may stop and go on.

A row is a JSON object with `prompt`, a text or a list of messages, or with `messages`; its other columns are copied.
What must hold: line `n` of the output answers row `n`; an answer depends on the row, its number, the settings and the
weights only; a row that cannot be answered gets its error, and the others their answers.
"""

import json
from codecs import BOM_UTF8
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Progress
from lifecycle.inference.engine import Engine
from lifecycle.inference.generation import EngineError, Generation
from lifecycle.inference.sampling import SamplingParams
from lifecycle.inference.texts import Conversation, prompt_ids
from lifecycle.text.row_files import parse_row
from lifecycle.text.rows import LISTED

GENERATED = "generated"  # the column that answers have
PROMPT, MESSAGES = "prompt", "messages"
NOT_USED = ("tools", "images", "chat_template_kwargs", "response_format")  # would change an answer
AHEAD = 4  # rows in the engine for each of its slots, so that a long answer does not empty the others


@dataclass(frozen=True)
class Asked:
    """How rows are asked."""

    params: SamplingParams  # a row's seed is this one's plus the row's number, from 0
    system: str | None = None  # a message before the row's own
    is_plain: bool = False  # a text is continued, not answered; without a system message
    formats: tuple[str, ...] = ()  # of weights and cache, where they are not the compute dtype

    def params_of(self, number: int) -> SamplingParams:
        """The settings of a row, counted from 0."""
        return self.params.model_copy(update={"seed": ((self.params.seed or 0) + number) % 2**64})

    def key(self, version: str, line: bytes) -> str:
        """Of an answer: what it depends on, but for the row's number."""
        settings = [version, self.params.model_dump(mode="json"), self.system, self.is_plain, *self.formats]
        return sha256(json.dumps(settings).encode() + b"\n" + line.strip()).hexdigest()[:16]


@dataclass
class Answered:
    """Counts of a run; `kept` rows had their answers before."""

    kept: int = 0
    answered: int = 0
    failed: int = 0
    tokens: int = 0
    examples: list[str] = field(default_factory=list[str])  # of failed rows

    @property
    def rows(self) -> int:
        """Those that are in the file."""
        return self.kept + self.answered + self.failed


def answer_file(engine: Engine, rows: Path, out: Path, asked: Asked, progress: Progress) -> Answered:
    """Answers the rows of a JSONL file in `out`, after those that it already has.

    Raises `ConfigError` for an `out` with other rows, settings or weights than these, and `EngineError` if the engine
    fails.
    """
    counts = Answered(kept=_kept(engine.model.version, rows, out, asked))
    with rows.open("rb") as lines:
        total = sum(1 for line in lines if line.strip())
    progress.start("generate", total)
    with rows.open("rb") as lines, out.open("a", encoding="utf-8", newline="\n") as file:
        waiting: deque[_Row] = deque()
        try:
            for number, line in _numbered(lines, counts.kept):
                if len(waiting) >= AHEAD * engine.num_slots:
                    _write(engine, waiting.popleft(), file, counts)
                    progress.update(counts.rows, total, tokens=counts.tokens)
                waiting.append(_ask(engine, number, line, f"{rows}:{number + 1}", asked))
            while waiting:
                _write(engine, waiting.popleft(), file, counts)
                progress.update(counts.rows, total, tokens=counts.tokens)
        finally:
            for row in waiting:
                if row.generation is not None:
                    row.generation.cancel()
    return counts


@dataclass
class _Row:
    where: str
    key: str
    columns: Mapping[str, Any]
    generation: Generation | None = None
    error: str = ""


def _numbered(lines: IO[bytes], first: int) -> Iterator[tuple[int, bytes]]:
    """The lines that hold something, with their numbers among these, from `first` on; without a byte-order mark."""
    held = enumerate(line.removeprefix(BOM_UTF8) for line in lines if line.strip())
    return ((number, line) for number, line in held if number >= first)


def _ask(engine: Engine, number: int, line: bytes, where: str, asked: Asked) -> _Row:
    row = _Row(where, asked.key(engine.model.version, line), {})
    try:
        row.columns = parse_row(line, where)
        ids = prompt_ids(engine.model, conversation(_prompt(row.columns), asked))
        row.generation = engine.submit(ids, asked.params_of(number))
    except (ValueError, TypeError) as error:  # of the row: `RowError`, `ContextLengthError`, a template's
        row.error = str(error)
    return row


def _prompt(row: Mapping[str, Any]) -> Any:
    if unused := [name for name in NOT_USED if row.get(name)]:
        raise ValueError(f"the column {unused[0]!r} is not used in generation; remove it, or ask without it")
    if (PROMPT in row) == (MESSAGES in row):
        raise ValueError(f"a row has either {PROMPT!r} or {MESSAGES!r}; this one has {', '.join(row) or 'nothing'}")
    return row.get(PROMPT, row.get(MESSAGES))


def conversation(prompt: Any, asked: Asked) -> str | Conversation:
    """What `prompt_ids` takes: a text is a user's message unless it is to be continued. Raises `ValueError`."""
    if isinstance(prompt, str):
        if asked.is_plain:
            return prompt
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not all(isinstance(message, Mapping) for message in prompt):
        raise ValueError(f"expected a text or a list of messages, got {json.dumps(prompt)[:40]}")
    return prompt if asked.system is None else [{"role": "system", "content": asked.system}, *prompt]


def _write(engine: Engine, row: _Row, file: IO[str], counts: Answered) -> None:
    """Waits for a row's answer and appends it."""
    generated: dict[str, Any] = {}
    if row.generation is not None:
        try:
            completion = row.generation.wait()
            generated = {"text": completion.text, "finish_reason": completion.finish_reason}
            generated["tokens"] = len(completion.tokens)
            counts.answered, counts.tokens = counts.answered + 1, counts.tokens + len(completion.tokens)
        except EngineError as error:
            if not engine.is_alive:
                raise
            row.error = str(error)
    if row.error:
        generated = {"error": row.error}
        counts.failed += 1
        if len(counts.examples) < LISTED:
            counts.examples.append(f"{row.where}: {row.error.removeprefix(f'{row.where}: ')}")
    record = {**row.columns, GENERATED: {**generated, "key": row.key}}
    file.write(json.dumps(record, ensure_ascii=False) + "\n")
    file.flush()


def _kept(version: str, rows: Path, out: Path, asked: Asked) -> int:
    """How many rows `out` answers; a line that a stopped run left unfinished is cut off."""
    if not rows.is_file():
        raise ConfigError(f"{rows}: no such file")
    if out.resolve() == rows.resolve():
        raise ConfigError(f"{out} holds the rows; choose another file for their answers")
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.exists():
        return 0
    with rows.open("rb") as lines, out.open("r+b") as file:
        answers = 0
        for number, line in _numbered(lines, 0):
            start = file.tell()
            answer = file.readline()
            if not answer.endswith(b"\n"):
                file.truncate(start)
                return answers
            if _key_of(answer) != asked.key(version, line):
                raise ConfigError(
                    f"{out}:{number + 1} answers another row, or was made with other settings, weights or formats; "
                    "choose another file, or delete it"
                )
            answers += 1
        if file.readline():
            raise ConfigError(f"{out} has more lines than {rows} has rows; choose another file, or delete it")
    return answers


def _key_of(answer: bytes) -> str | None:
    try:
        generated = json.loads(answer).get(GENERATED)
    except (ValueError, AttributeError):
        return None
    return generated.get("key") if isinstance(generated, dict) else None
