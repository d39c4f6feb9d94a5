"""The time sheet of a stage: what the wall time since its first start went into, whatever killed it in between.

Each process that works on the stage is a session. It appends records to a file that, unlike the run log, nobody ever
rewinds: the seconds by cause since the session began, whose sum is the record's moment. What must hold: the causes of
`account` add up to the wall time. A step that a later session ran again is `lost`; time in no session is `down`, and so
is what a killed one did after its last record.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from lifecycle.core.runlog import RunLog, read_log

TIMES = "times.jsonl"  # of a training stage, in its artifact's folder
STEPS, LOST, DOWN = "steps", "lost steps", "down"
# How a session ends without a failure of the program or the machine; another end is an exception's class.
FINISHED, STOPPED, WENT_BACK = "finished", "stopped", "went back"
# The others, in the order in which they are listed.
CAUSES = (
    "start", "imports", "data", "restore", "compile", "loader", "evaluation", "checkpoint", "local checkpoint",
    "replay", "log", "profile", "end", "generation", "logprobs", "reward", "waiting",
)  # fmt: skip


@dataclass(frozen=True)
class SheetRecord:
    """One moment of a session: finished steps, and the seconds by cause since it began."""

    step: int
    at: float  # Unix time
    seconds: dict[str, float]
    extra: dict[str, Any]  # what else was measured then


@dataclass(frozen=True)
class Session:
    """One process's work on the stage. `facts`: what it runs and on what; `ended`: how it ended, None if it did not say
    so: it runs, or was killed."""

    began: float
    facts: dict[str, Any]
    records: tuple[SheetRecord, ...]
    ended: str | None

    @property
    def from_step(self) -> int:
        """The finished steps that it resumed from: known once it `has_resumed`, until then those of the newest durable
        checkpoint, where a local one may be newer."""
        return self.records[1 if self.has_resumed else 0].step

    @property
    def has_resumed(self) -> bool:
        """Whether its state was restored, and its first step was ready to run."""
        return len(self.records) - (self.ended is not None) > 1

    @property
    def last(self) -> SheetRecord:
        """Its newest record."""
        return self.records[-1]


@dataclass(frozen=True)
class Account:
    """Wall time by cause, in seconds. `failures`: how the sessions ended that did not finish, stop in
    order, or go back to a checkpoint from a faulty step."""

    seconds: dict[str, float]
    lost_steps: int
    failures: tuple[str, ...]

    @property
    def wall_s(self) -> float:
        """The wall time since the first session began."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """The share of the wall time in steps whose result was kept."""
        return self.seconds.get(STEPS, 0.0) / self.wall_s if self.wall_s else 0.0


class Timesheet:
    """Writes one session's records; the first has the session's facts."""

    def __init__(self, path: Path, began: float, step: int, seconds: Mapping[str, float], **facts: Any) -> None:
        mend(path)
        self._log, self._began = RunLog(path), began
        self.write(step, seconds, facts=facts)

    def write(self, step: int, seconds: Mapping[str, float], **extra: Any) -> None:
        """Adds a record; `seconds` by cause are those since the session began, all of them."""
        rounded = {cause: round(s, 6) for cause, s in seconds.items()}
        at = self._began + sum(rounded.values())
        self._log.write(session=self._began, step=step, at=at, seconds=rounded, **extra)

    def close(self) -> None:
        """Closes the file; raises `OSError` if records are lost on a full disk."""
        self._log.close()


def mend(path: Path) -> None:
    """Ends a last line that a kill cut short, by dropping it: the next record begins a line of its own."""
    if not path.is_file():
        return
    with open(path, "rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def read_sessions(path: Path) -> list[Session]:
    """The sessions of a time sheet in order; empty if there is none. Raises `RunLogError` for a damaged one."""
    sheets: dict[float, list[dict[str, Any]]] = {}
    for record in read_log(path):
        sheets.setdefault(record["session"], []).append(record)
    return [_session(began, records) for began, records in sheets.items()]


def _session(began: float, records: list[dict[str, Any]]) -> Session:
    known = ("session", "step", "at", "seconds", "facts", "ended")
    read = tuple(
        SheetRecord(r["step"], r["at"], r["seconds"], {k: v for k, v in r.items() if k not in known}) for r in records
    )
    return Session(began, records[0]["facts"], read, records[-1].get("ended"))


def account(sessions: Sequence[Session]) -> Account:
    """The wall time from the first session's begin to the last record, by cause."""
    seconds: dict[str, float] = {}
    lost_steps = 0
    for index, session in enumerate(sessions):
        later = sessions[index + 1 :]
        _add(seconds, session.last.seconds)
        if not later:
            break
        kept = min(s.from_step for s in [s for s in later if s.has_resumed] or later)
        lost_s = session.last.seconds.get(STEPS, 0.0) - steps_s_at(session, kept)
        lost_steps += max(0, session.last.step - max(kept, session.from_step))
        # two sessions never overlap: one job at a time owns a run's folder
        down_s = max(0.0, later[0].began - session.last.at)
        _add(seconds, {STEPS: -lost_s, LOST: lost_s, DOWN: down_s})
    return Account(seconds, lost_steps, tuple(_failures(sessions)))


def steps_s_at(session: Session, step: int) -> float:
    """The session's seconds in steps when `step` was finished; between two records, in proportion to the steps."""
    points = [(record.step, record.seconds.get(STEPS, 0.0)) for record in session.records]
    if step <= points[0][0]:
        return points[0][1]
    for (first, begin), (last, end) in pairwise(points):
        if first <= step <= last and last > first:
            return begin + (end - begin) * (step - first) / (last - first)
    return points[-1][1]


def _add(total: dict[str, float], seconds: Mapping[str, float]) -> None:
    for cause, s in seconds.items():
        total[cause] = total.get(cause, 0.0) + s


def _failures(sessions: Sequence[Session]) -> Iterable[str]:
    for index, session in enumerate(sessions):
        if session.ended is None and index + 1 < len(sessions):
            yield f"killed after step {session.last.step}"
        elif session.ended is not None and session.ended not in (FINISHED, STOPPED, WENT_BACK):
            yield f"{session.ended} after step {session.last.step}"
