"""Verifiers of texts: the same text, a part of it, its last number, a pattern, a JSON schema.

Patterns of rows may take exponential time (`(a+)+$`), also those inside a schema. So both are tried in a process that
may be ended; a schema's references to other addresses are never fetched.
"""

import json
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator

from lifecycle.core.config import ConfigError
from lifecycle.core.isolation.confine import Limits
from lifecycle.evals.verifiers.base import Verdict, Verifier, shared_pool

# A minus belongs to a number unless it stands between two operands; commas only where they separate thousands.
NUMBER = re.compile(r"(?:(?<![\w.)])-)?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?", re.ASCII)
LIMITS = Limits(cpu_s=1, wall_s=30.0)


def last_number(text: str) -> Decimal | None:
    """The value of the last number in a text: 1,234.50 for "so $1,234.50." As lm-evaluation-harness's GSM8K filter
    `flexible-extract`, except that numbers are compared by value: 18 equals 18.00."""
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def _verdicts(passed: Sequence[bool]) -> list[Verdict]:
    return [Verdict(float(one)) for one in passed]


class Exact(Verifier):
    """The answer and nothing else, but for space at the ends."""

    verifier: ClassVar[str] = "exact"

    ignore_case: bool = False

    def verdicts(self, outputs: Sequence[str], answers: Sequence[Any]) -> list[Verdict]:
        """1 for an output that is the answer."""
        return _verdicts([self._key(o) == self._key(a) for o, a in zip(outputs, answers, strict=True)])

    def _key(self, text: str) -> str:
        return text.strip().casefold() if self.ignore_case else text.strip()


class Contains(Verifier):
    """The answer somewhere in the output."""

    verifier: ClassVar[str] = "contains"

    def verdicts(self, outputs: Sequence[str], answers: Sequence[Any]) -> list[Verdict]:
        """1 for an output that has the answer in it."""
        return _verdicts([answer in output for output, answer in zip(outputs, answers, strict=True)])


class LastNumber(Verifier):
    """The last number of the output is that of the answer."""

    verifier: ClassVar[str] = "last_number"

    def problem(self, answer: Any) -> str:
        """An answer must have a number."""
        return super().problem(answer) or (
            "" if last_number(answer) is not None else f"answer {answer!r} has no number"
        )

    def verdicts(self, outputs: Sequence[str], answers: Sequence[Any]) -> list[Verdict]:
        """1 for an output with the same last number."""
        return _verdicts([last_number(o) == last_number(a) for o, a in zip(outputs, answers, strict=True)])


class Regex(Verifier):
    """A regular expression of Python's is found in the output: `pattern`, or the row's answer."""

    verifier: ClassVar[str] = "regex"

    pattern: Annotated[str | None, Field(description="the pattern of every row; none: the row's answer is one")] = None

    @field_validator("pattern")
    @classmethod
    def _pattern_compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None and (problem := _pattern_problem(pattern)):
            raise ValueError(problem)
        return pattern

    @property
    def columns(self) -> tuple[str, ...]:
        """None for one pattern."""
        return (self.answer,) if self.pattern is None else ()

    def gold(self, columns: Any) -> Any:
        """The pattern."""
        return columns[self.answer] if self.pattern is None else self.pattern

    def problem(self, answer: Any) -> str:
        """An answer must be a pattern."""
        return super().problem(answer) or _pattern_problem(answer)

    def verdicts(self, outputs: Sequence[str], answers: Sequence[Any]) -> list[Verdict]:
        """1 for an output in which the pattern is found; 0 and a fault if that takes more than a second."""
        items = [{"pattern": pattern, "text": output} for output, pattern in zip(outputs, answers, strict=True)]
        return in_pool("lifecycle.evals.verifiers.text_program:is_found", items)


class JsonSchema(Verifier):
    """The output is JSON that a JSON schema accepts: `schema`, or the row's answer, an object or its text.

    The JSON may stand in a block marked with three backticks; nothing else may be there.
    """

    verifier: ClassVar[str] = "json_schema"

    same: Annotated[
        dict[str, Any] | None,
        Field(alias="schema", description="the schema of every row; none: the row's answer is one"),
    ] = None

    @property
    def columns(self) -> tuple[str, ...]:
        """None for one schema."""
        return (self.answer,) if self.same is None else ()

    def gold(self, columns: Any) -> Any:
        """The schema."""
        return columns[self.answer] if self.same is None else self.same

    def problem(self, answer: Any) -> str:
        """An answer must be a schema; what the schema says is checked by the verifier, in its process."""
        if isinstance(answer, dict | bool):
            return ""
        try:
            return "" if isinstance(json.loads(answer), dict | bool) else "a JSON schema is an object"
        except (TypeError, ValueError, RecursionError) as error:
            return f"not a JSON schema: {error}"

    def verdicts(self, outputs: Sequence[str], answers: Sequence[Any]) -> list[Verdict]:
        """1 for an output that its schema accepts."""
        schemas = [json.loads(answer) if isinstance(answer, str) else answer for answer in answers]
        items = [{"schema": schema, "text": output} for output, schema in zip(outputs, schemas, strict=True)]
        found = in_pool("lifecycle.evals.verifiers.schema_program:is_valid", items)
        faulty = next((verdict.fault for verdict in found if verdict.fault.startswith("SchemaError")), None)
        if self.same is not None and faulty:
            raise ConfigError(f"json_schema: `schema` is no JSON schema: {faulty}")
        return found


def in_pool(program: str, items: Sequence[Any], limits: Limits = LIMITS) -> list[Verdict]:
    """Verdicts of a program that returns whether an item passes; a failure is 0, with its reason."""
    results = shared_pool(program, limits).map(items)
    return [Verdict(float(result.value is True), result.failure) for result in results]


def _pattern_problem(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"{pattern!r} is not a regular expression: {error}"
    return ""
