"""The promotion gate: what it lets through, what it refuses, and what it says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lifecycle.core.config import ConfigError, validate
from lifecycle.ops.config import GateConfig
from lifecycle.ops.gates import GateRefused, judge, promote
from lifecycle.ops.registry import Registry, RegistryError

BETTER = [1.0] * 60 + [0.0] * 40
WORSE = [1.0] * 50 + [0.0] * 50  # ten examples lost, none won


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry.sqlite")


def add(registry: Registry, make_artifact: Any, text: str, *results: Any) -> str:
    return registry.register(make_artifact("export", {"w": text}).path, "chat", results).hash


def test_a_significant_fall_is_refused_and_explained(make_result: Any) -> None:
    report = judge({"t": make_result("t", BETTER)}, {"t": make_result("t", WORSE)})
    assert not report.passed
    text = str(report)
    assert "refused by t" in text
    assert "REFUSE t: 0.6000 -> 0.5000, difference -0.1000 [" in text
    assert "exact McNemar p=0.000977: significantly worse" in text


def test_a_fall_within_chance_and_a_gain_pass(make_result: Any) -> None:
    report = judge({"t": make_result("t", BETTER)}, {"t": make_result("t", [*BETTER[1:], 0.0])})
    assert report.passed
    assert "a fall within chance" in str(report)
    report = judge({"t": make_result("t", WORSE)}, {"t": make_result("t", BETTER)})
    assert report.passed
    assert "no worse" in str(report)


def test_bits_per_byte_is_better_when_lower(make_result: Any) -> None:
    rng = np.random.default_rng(0)
    sizes = list(rng.integers(100, 10_000, 50).astype(float))
    before = list(rng.normal(1.8, 0.3, 50))
    after = [bits + 0.02 + float(rng.normal(0, 0.01)) for bits in before]
    old = make_result("bpb", before, sizes, higher_is_better=False)
    new = make_result("bpb", after, sizes, higher_is_better=False)
    refused = judge({"bpb": old}, {"bpb": new})
    assert not refused.passed
    comparison = refused.verdicts[0].comparison
    assert comparison is not None
    assert comparison.test == "paired t"
    assert comparison.difference == pytest.approx(new.mean - old.mean)
    assert judge({"bpb": new}, {"bpb": old}).passed


def test_pairing_sees_what_unpaired_scores_hide(make_result: Any) -> None:
    """The same fall: plain on the same examples, lost in the spread between examples otherwise."""
    rng = np.random.default_rng(1)
    before = list(rng.normal(2.0, 1.0, 40))
    after = [score - 0.05 for score in before]
    old, same = make_result("t", before), make_result("t", after)
    other = make_result("t", after, ids=[f"other {i}" for i in range(40)])
    assert not judge({"t": old}, {"t": same}).passed
    unpaired = judge({"t": old}, {"t": other})
    assert unpaired.passed
    assert "Welch's t" in str(unpaired)


def test_examples_are_paired_by_id_and_not_by_place(make_result: Any) -> None:
    ids = [str(i) for i in range(100)]
    shuffled = make_result("t", BETTER[::-1], ids=ids[::-1])
    report = judge({"t": make_result("t", BETTER, ids=ids)}, {"t": shuffled})
    assert report.verdicts[0].comparison is not None
    assert report.verdicts[0].comparison.p == 1.0


def test_false_refusals_are_as_rare_as_stated(make_result: Any) -> None:
    rng = np.random.default_rng(2)
    refused = 0
    for _ in range(400):
        base = rng.normal(0, 1, 30)
        old, new = (make_result("t", list(base + rng.normal(0, 0.5, 30))) for _ in range(2))
        refused += not judge({"t": old}, {"t": new}).passed
    assert 0.005 <= refused / 400 <= 0.05


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (["t"], [], "not measured on it"),
        (["t", "u"], ["t"], "REFUSE u: 0.6000 -> -: the new version was not measured"),
        ([], [], "nothing was measured"),
    ],
)
def test_what_was_not_measured_is_refused(make_result: Any, before: list[str], after: list[str], message: str) -> None:
    results = {name: make_result(name, BETTER) for name in ("t", "u")}
    report = judge({name: results[name] for name in before}, {name: results[name] for name in after})
    assert not report.passed
    assert message in str(report)


def test_a_changed_task_cannot_be_compared(make_result: Any) -> None:
    report = judge({"t": make_result("t", WORSE)}, {"t": make_result("t", BETTER, definition="new")})
    assert not report.passed
    assert "definition has changed" in str(report)


def test_the_first_version_and_a_new_task_pass(make_result: Any) -> None:
    assert judge(None, {}).passed
    report = judge({"t": make_result("t", BETTER)}, {"t": make_result("t", BETTER), "u": make_result("u", WORSE)})
    assert report.passed
    assert "u: - -> 0.5000: measured for the first time" in str(report)
    assert not judge(None, {}, GateConfig(required=("t",))).passed


def test_level_decides_how_sure_a_fall_must_be(make_result: Any) -> None:
    before, after = [1.0] * 10, [0.0] * 5 + [1.0] * 5  # p = 1/32, between 0.025 and 0.05
    for level, passed in ((0.9, False), (0.95, True)):
        report = judge({"t": make_result("t", before)}, {"t": make_result("t", after)}, GateConfig(level=level))
        assert report.passed is passed
    with pytest.raises(ConfigError, match="level"):
        validate(GateConfig, {"level": 1.0})


def test_a_tolerated_fall_passes_and_is_named(make_result: Any) -> None:
    before, after = {"t": make_result("t", BETTER)}, {"t": make_result("t", WORSE)}  # falls by 0.1
    report = judge(before, after, GateConfig(tolerance={"t": 0.11}))
    assert report.passed
    assert "significantly worse, within the tolerance" in str(report)
    assert not judge(before, after, GateConfig(tolerance={"t": 0.09})).passed
    with pytest.raises(
        ConfigError, match=r"tolerance for 'tt', which neither version was evaluated on; tasks: \['t'\]"
    ):
        judge(before, after, GateConfig(tolerance={"tt": 0.1}))
    with pytest.raises(ConfigError, match=r"tolerance\.t: .*greater than or equal to 0"):
        validate(GateConfig, {"tolerance": {"t": -1}})


def test_promote_moves_and_records_what_the_gate_found(
    registry: Registry, make_artifact: Any, make_result: Any
) -> None:
    a = add(registry, make_artifact, "a", make_result("t", WORSE))
    b = add(registry, make_artifact, "b", make_result("t", BETTER))
    promote(registry, a, who="ada", why="first")
    report, move = promote(registry, b[:8], who="ada", why="better")
    assert report.passed
    assert (move.source, move.target) == (a, b)
    assert "no task is significantly worse" in registry.history("production")[-1].gate
    with pytest.raises(GateRefused, match=rf"{a[:12]} is not promoted to production: refused by t"):
        promote(registry, a, who="bob", why="back")
    assert registry.resolve("production").hash == b
    assert registry.rollback("production", who="bob", why="an operator may").target == a


def test_an_alias_that_moves_while_the_gate_looks(
    registry: Registry, make_artifact: Any, make_result: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = (add(registry, make_artifact, text, make_result("t", BETTER)) for text in "abc")
    promote(registry, a, who="ada", why="first")
    looked = Registry.evaluations

    def look_slowly(self: Registry, name: str) -> Any:
        Registry(self.path).move("production", b, who="bob", why="meanwhile")
        return looked(self, name)

    monkeypatch.setattr(Registry, "evaluations", look_slowly)
    with pytest.raises(RegistryError, match=r"was moved by someone else meanwhile.*by bob: meanwhile"):
        promote(registry, c, who="ada", why="late")
    assert registry.resolve("production").hash == b
