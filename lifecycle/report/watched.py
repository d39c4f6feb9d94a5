"""Training stages as they are now: the numbers of a run's folder while other processes write it.

Everything is read, nothing is locked or changed. A stage's folder may be renamed, its log rewound and its last line
half written at any moment; what is not there or not measurable on a backend is None.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lifecycle.core.runlog import METRICS, RunLogError, read_log
from lifecycle.core.timesheet import TIMES, Account, Session, account, read_sessions
from lifecycle.report.format import size
from lifecycle.training.remarks import Remark, RemarkedStage, Remarks

RECENT = 100  # newest steps, whose times are shown
ATTEMPTS = 3  # to read a folder that is renamed meanwhile


@dataclass(frozen=True)
class WatchedStage:
    """A training stage: its time sheet, and its records of metrics and of faulty steps so far. `damage`: why its files
    cannot be read, if so."""

    name: str
    folder: Path
    sessions: tuple[Session, ...]
    records: tuple[dict[str, Any], ...]
    faults: tuple[dict[str, Any], ...] = ()
    damage: str | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """The facts of the newest session."""
        return self.sessions[-1].facts if self.sessions else {}

    @property
    def step(self) -> int:
        """Finished steps."""
        return self.sessions[-1].last.step if self.sessions else 0

    @property
    def account(self) -> Account:
        """Where the wall time went."""
        return account(self.sessions)

    @property
    def ended(self) -> str | None:
        """How the newest session ended; None if it has not said so."""
        return self.sessions[-1].ended if self.sessions else None

    @property
    def seen_at(self) -> float:
        """The Unix time of the newest record."""
        return self.sessions[-1].last.at if self.sessions else 0.0

    def newest(self, name: str) -> float | None:
        """The newest value of a metric."""
        return next((record[name] for record in reversed(self.records) if name in record), None)

    def curve(self, name: str) -> list[tuple[float, float]]:
        """A metric's (step, value) points."""
        return [(record["step"], record[name]) for record in self.records if name in record]

    @property
    def remarks(self) -> list[Remark]:
        """What its user was told, or should have been; nothing before its first session."""
        facts = self.facts
        train = facts.get("settings", {}).get("train")
        if train is None:
            return []
        seen = Remarks(RemarkedStage(facts["objective"], facts["steps"], facts.get("compute_dtype", ""), train))
        return [remark for record in self.records for remark in seen.see(record)]

    @property
    def names(self) -> list[str]:
        """The metrics, in the order of their first record."""
        return [name for name in dict.fromkeys(name for record in self.records for name in record) if name != "step"]

    @property
    def step_times(self) -> dict[str, float]:
        """Percentiles of the newest steps' seconds, without the first one of each process; empty before the second."""
        of_sessions = ([s for r in session.records for s in r.extra.get("step_s", ())] for session in self.sessions)
        times = [seconds for of_session in of_sessions for seconds in of_session[1:]][-RECENT:]
        if not times:
            return {}
        return {f"p{p}": float(np.percentile(times, p)) for p in (50, 90, 99)}

    @property
    def tokens_per_s(self) -> float | None:
        """In the newest logging interval."""
        return self.newest("tokens_per_s")

    @property
    def mfu(self) -> float | None:
        """The model's FLOP/s as a share of the devices' peak, in the newest logging interval."""
        rate, facts = self.tokens_per_s, self.facts
        if rate is None or "matmul_peak_flops" not in facts:
            return None
        return rate * facts["train_flops_per_token"] / (facts["matmul_peak_flops"] * facts["devices"])

    @property
    def memory(self) -> dict[str, int]:
        """Bytes in use, as the newest record has them."""
        names = ("device_peak_bytes", "device_limit_bytes", "process_bytes")
        records = self.sessions[-1].records if self.sessions else ()
        return next(({n: r.extra[n] for n in names if n in r.extra} for r in reversed(records) if r.extra), {})

    @property
    def memory_bytes(self) -> int:
        """Bytes on the fullest device, or of the process where devices report none."""
        return self.memory.get("device_peak_bytes") or self.memory["process_bytes"]

    @property
    def cost(self) -> float | None:
        """The money spent by all sessions: a CPU's core-seconds of one process, or the devices' wall time; None without
        a price."""
        total = 0.0
        for session in self.sessions:
            if session.facts.get("price_hour") is None:
                return None
            total += _hours(session) * session.facts["price_hour"]
        return total


def _hours(session: Session) -> float:
    if session.facts["platform"] != "cpu":
        return session.facts["devices"] * (session.last.at - session.began) / 3600
    return max((record.extra.get("cpu_s", 0.0) for record in session.records), default=0.0) / 3600


def watched_stages(folder: Path) -> list[WatchedStage]:
    """The training stages of a run's folder that have begun, in the order in which they did; of one that was made in
    several versions, the newest. Raises `ValueError` if the folder is not there."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give a run's folder, such as runs/quickstart, or its YAML file")
    stages: dict[str, WatchedStage] = {}
    for stage in sorted(_stages(folder), key=lambda stage: stage.seen_at):
        stages[stage.name] = stage
    return sorted(stages.values(), key=lambda stage: stage.sessions[0].began if stage.sessions else float("inf"))


def _stages(folder: Path) -> Iterator[WatchedStage]:
    for attempt in range(ATTEMPTS):
        try:
            yield from [_read(path.parent) for path in sorted(folder.glob(f"*/{METRICS}"))]
            return
        except FileNotFoundError:  # renamed after it was listed
            if attempt == ATTEMPTS - 1:
                raise


def _read(folder: Path) -> WatchedStage:
    name = folder.name.removesuffix(".partial").rpartition("-")[0]
    try:
        return read_stage(name, folder)
    except RunLogError as error:
        return WatchedStage(name, folder, (), (), damage=str(error))


def read_stage(name: str, folder: Path) -> WatchedStage:
    """A training stage's log and time sheet. Raises `RunLogError` for a damaged one."""
    records = list(read_log(folder / METRICS))
    metrics = tuple(record for record in records if "fault" not in record)
    faults = tuple(record for record in records if "fault" in record)
    return WatchedStage(name, folder, tuple(read_sessions(folder / TIMES)), metrics, faults)


def memory_text(memory: dict[str, int]) -> str:
    """The memory in use, and whose it is."""
    if "device_peak_bytes" not in memory:
        return f"{size(memory['process_bytes'])} of the process (the devices report none of their own)"
    limit = memory.get("device_limit_bytes")
    return f"{size(memory['device_peak_bytes'])} at most on a device" + (f" of {size(limit)}" if limit else "")
