"""The numbers of a report, read from the artifacts of one run: no text, no layout.

Conventions, stated in the report too:

- FLOPs are the model's own (`forward_flops_per_token`, times three for training; causal attention counted half),
  whatever else the program computes.
- The matmul peak is that of one large product on one device, measured by the stage itself after its last step. The
  utilisation (MFU) divides by that peak times the mesh's devices and is of the median logging interval: wall time, so
  that other programs on the machine lower it. FLOPs per core-second suffer little from them.
- A stage's wall time and core-seconds are its manifest's, those of runs that were killed included.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

from lifecycle.core.artifact import Artifact
from lifecycle.core.runlog import read_log
from lifecycle.evals.comparison import compare
from lifecycle.evals.results import LEVEL, EvalResult, read_results
from lifecycle.evals.statistics import Comparison, compare_paired
from lifecycle.model.config import ModelConfig, forward_flops_per_token
from lifecycle.ops.cost import PriceConfig
from lifecycle.report.blocks import Exchange, Point
from lifecycle.training.loop import METRICS

FUNNEL = "funnel.json"  # the documents' file that has the samples too
TRAINED = {"pretrain": "pre-training", "sft": "fine-tuning", "prefer": "preference tuning"}
BASELINES = {"trigram-seen": "trigram of the tokens seen", "trigram-whole": "trigram of the whole split"}


@dataclass(frozen=True)
class Link:
    """An artifact of the chain and what it cost."""

    stage: str
    key: str
    content_hash: str
    inputs: dict[str, str]  # stage -> content hash
    created: str
    code: str
    wall_s: float
    core_s: float
    money: float


@dataclass(frozen=True)
class Training:
    """A training stage. `curves`: by metric, (step, value) in order."""

    stage: str
    settings: Mapping[str, Any]
    stats: Mapping[str, Any]
    curves: dict[str, tuple[Point, ...]]
    flops_per_token: float
    num_devices: int
    core_s: float  # of the steps alone

    @property
    def utilisation(self) -> float:
        """Of the measured matmul peak, in the median interval."""
        peak = self.stats["matmul_peak_flops"] * self.num_devices
        return self.stats["tokens_per_s"] * self.flops_per_token / peak

    @property
    def flops_per_core_s(self) -> float | None:
        """None for a run too short for the operating system's clock of 10 ms."""
        return self.stats["tokens"] * self.flops_per_token / self.core_s if self.core_s else None

    def last(self, metric: str) -> float | None:
        points = self.curves.get(metric)
        return points[-1][1] if points else None


@dataclass(frozen=True)
class Task:
    """An evaluation task after each training stage; `changes`: by stage, against the stage before."""

    name: str
    results: dict[str, EvalResult]
    changes: dict[str, Comparison]

    @property
    def final(self) -> EvalResult:
        return self.results["prefer"]

    @property
    def chance(self) -> float | None:
        return self.final.other.get("chance")


@dataclass(frozen=True)
class Baseline:
    """A model to compare with; `against`: by stage, the trained one minus this one, on the same documents."""

    name: str
    tokens: int
    result: EvalResult
    against: dict[str, Comparison]


@dataclass(frozen=True)
class Numbers:
    """Everything that a report tells."""

    run: str
    version: Mapping[str, Any]
    model: ModelConfig
    parameters: int
    data: Artifact
    sources: Mapping[str, Mapping[str, Any]]  # by name: files, bytes and the hash of what was read
    funnel: Sequence[Mapping[str, Any]]
    tokenizer: Mapping[str, Any]
    tokens: Mapping[str, Any]
    rows: Mapping[str, Any]
    trainings: tuple[Training, ...]
    tasks: tuple[Task, ...]
    text_task: Task | None  # the one that measures the baselines' text
    baselines: tuple[Baseline, ...]
    samples: tuple[Exchange, ...]
    links: tuple[Link, ...]
    price: PriceConfig
    machine: Mapping[str, str]

    @property
    def wall_s(self) -> float:
        return sum(link.wall_s for link in self.links)

    @property
    def core_s(self) -> float:
        return sum(link.core_s for link in self.links)

    @property
    def money(self) -> float:
        return sum(link.money for link in self.links)


def collect(
    run: str,
    artifacts: Mapping[str, Artifact],
    samples: Sequence[Exchange],
    price: PriceConfig,
    machine: Mapping[str, str],
) -> Numbers:
    """Reads the artifacts of the whole chain, by stage name."""
    evaluations = {name: read_results(artifacts[f"evaluate-{name}"].path) for name in TRAINED}
    tasks = _tasks(evaluations)
    baseline = artifacts["baseline"]
    reference = read_results(baseline.path)
    text = next((task for task in tasks if _same_text(task.final, reference[0])), None)
    return Numbers(
        run=run,
        version=artifacts["register"].stats,
        model=ModelConfig(**artifacts["export"].manifest.config["model"]),
        parameters=artifacts["export"].stats["parameters"],
        data=artifacts["documents"],
        sources=artifacts["tagging"].manifest.config["sources"],
        funnel=json.loads((artifacts["documents"].path / FUNNEL).read_text(encoding="utf-8"))["steps"],
        tokenizer=artifacts["tokenizer"].stats,
        tokens=artifacts["tokens"].stats,
        rows=artifacts["rows"].stats,
        trainings=tuple(_training(name, artifacts[name]) for name in TRAINED),
        tasks=tasks,
        text_task=text,
        baselines=tuple(_baseline(result, baseline.stats, text) for result in reference),
        samples=tuple(samples),
        links=tuple(_link(artifact, price) for artifact in artifacts.values()),
        price=price,
        machine=machine,
    )


def _training(stage: str, artifact: Artifact) -> Training:
    config = artifact.manifest.config
    records = list(read_log(artifact.path / METRICS))
    forward = forward_flops_per_token(ModelConfig(**config["model"]), config["train"]["seq_len"])
    mesh = artifact.manifest.how[-1]["mesh"]  # of the last session, as the peak
    core_s = sum(record.get("cpu_s", 0.0) for record in records)
    return Training(stage, config["train"], artifact.stats, _curves(records), 3 * forward, prod(mesh.values()), core_s)


def _curves(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Point, ...]]:
    curves: dict[str, list[Point]] = {}
    for record in records:
        for name, value in record.items():
            if name != "step":
                curves.setdefault(name, []).append((record["step"], value))
    return {name: tuple(points) for name, points in curves.items()}


def _tasks(evaluations: Mapping[str, Sequence[EvalResult]]) -> tuple[Task, ...]:
    by_name: dict[str, dict[str, EvalResult]] = {}
    for stage, results in evaluations.items():
        for result in results:
            by_name.setdefault(result.task, {})[stage] = result
    stages = list(TRAINED)
    return tuple(
        Task(
            name,
            results,
            {now: compare(results[then], results[now], LEVEL) for then, now in pairwise(stages)},
        )
        for name, results in by_name.items()
    )


def _same_text(result: EvalResult, baseline: EvalResult) -> bool:
    """Whether both were measured on the same documents, in the same order: an example's weight is its bytes."""
    return result.metric == baseline.metric and result.weights == baseline.weights


def _baseline(result: EvalResult, stats: Mapping[str, Any], text: Task | None) -> Baseline:
    found = {} if text is None else text.results
    against = {
        stage: compare_paired(result.scores, trained.scores, result.weights, result.higher_is_better, LEVEL)
        for stage, trained in found.items()
    }
    return Baseline(BASELINES[result.task], stats[result.task.removeprefix("trigram-")]["tokens"], result, against)


def _link(artifact: Artifact, price: PriceConfig) -> Link:
    m = artifact.manifest
    return Link(
        stage=m.stage, key=m.key, content_hash=m.content_hash, inputs=m.input_hashes, created=m.created, code=m.code,
        wall_s=m.wall_s, core_s=m.cpu_s, money=price.money(m.cpu_s),
    )  # fmt: skip
