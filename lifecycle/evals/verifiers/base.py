"""What every verifier is: settings, and a function from outputs and right answers to verdicts."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar

from pydantic import Field

from lifecycle.core.config import Section
from lifecycle.core.isolation.confine import Limits
from lifecycle.core.isolation.pool import IsolatedPool


@dataclass(frozen=True)
class Verdict:
    """A score, mostly 0 or 1; None if the row's answer says nothing. `fault`: why it could not be found, and is 0 or
    None for another reason than a wrong output."""

    score: float | None
    fault: str = ""


class Verifier(Section):
    """Settings of one way to verify; `answer` is the column with the right answer."""

    verifier: ClassVar[str]  # its name in run files

    answer: Annotated[str, Field(min_length=1, description="the column with the right answer")] = "answer"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a row must have."""
        return (self.answer,)

    def gold(self, columns: Mapping[str, Any]) -> Any:
        """A row's right answer, as `verdicts` takes it; raises `KeyError` for a row without it."""
        return columns[self.answer]

    def problem(self, answer: Any) -> str:
        """The fault in a right answer, which makes its row unusable; empty if there is none."""
        return "" if isinstance(answer, str) else f"expected text, got {type(answer).__name__}"

    @abstractmethod
    def verdicts(self, outputs: Sequence[str], answers: Sequence[Any]) -> list[Verdict]:
        """A verdict per output, in order; one depends on its own output and answer only."""
        raise NotImplementedError


@cache
def shared_pool(program: str, limits: Limits, is_fresh: bool = False) -> IsolatedPool:
    """The processes for a program under some limits, which all verifiers of this process share."""
    return IsolatedPool(program, limits, is_fresh=is_fresh)
