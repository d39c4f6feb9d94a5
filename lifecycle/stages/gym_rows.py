"""Prompts made by tasks of reasoning-gym, by side.

What must hold: no row to train on asks what a held-out one asks. Seeds of the two sides never meet, but a task with few
different questions asks the same one with several of them; such rows are left out of training, counted by reason.
"""

from typing import Any

from lifecycle.core.config import digest
from lifecycle.core.progress import Progress
from lifecycle.rl.gym import gym_rows
from lifecycle.stages.own_rows import DOUBLED, HELDOUT, TRAIN, asked
from lifecycle.text.config import RowsConfig
from lifecycle.text.rows import RowsReport

HELD_OUT_TOO = "asks what a held-out row asks"
TOO_FEW = "let its settings make more different questions, lower held_out, or raise rows.max_dropped"


def make_gym_rows(settings: RowsConfig, progress: Progress) -> tuple[dict[str, list[dict[str, Any]]], list[RowsReport]]:
    """The rows of both sides in the order of the tasks, and for each task what became of its rows to train on.

    Raises `ConfigError` for what reasoning-gym refuses, and `RowError` if too many rows of a task are left out.
    """
    sides: dict[str, list[dict[str, Any]]] = {TRAIN: [], HELDOUT: []}
    for task in settings.reasoning_gym:
        sides[HELDOUT] += gym_rows(task, progress, is_held_out=True)
    held_out = {asked(row) for row in sides[HELDOUT]}
    seen: set[str] = set()
    reports = []
    for task in settings.reasoning_gym:
        report = RowsReport(f"rows.reasoning_gym, {task.task}")
        for row in gym_rows(task, progress):
            report.rows += 1
            name, content = f"{task.task}, seed {row['reasoning_gym']['seed']}", digest(row)
            if asked(row) in held_out:
                report.drop(name, HELD_OUT_TOO)
            elif content in seen:
                report.drop(name, DOUBLED)
            else:
                report.keep(name)
                sides[TRAIN].append(row)
            seen.add(content)
        report.require(settings.max_dropped, TOO_FEW)
        reports.append(report)
    return sides, reports
