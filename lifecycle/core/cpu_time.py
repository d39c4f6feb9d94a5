"""The CPU time of a run, wherever its processes are."""

import os

_elsewhere = [0.0]


def cpu_seconds() -> float:
    """CPU time of this process, of its finished children, and of the others that have told theirs."""
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system + _elsewhere[0]


def add_cpu_seconds(seconds: float) -> None:
    """Counts CPU time of processes that are no children of this one: a fork server's, or another machine's."""
    _elsewhere[0] += seconds
