"""The numbers of a report, read from the artifacts of one run, whatever its graph: no text, no layout.

Conventions, stated in the report too:

- FLOPs are the model's own (`forward_flops_per_token`, times three for training; causal attention counted half),
  whatever else the program computes.
- The matmul peak is the vendor's of a known chip in bfloat16; else that of one large product on one device, measured
  once per process and dtype, before a stage's first step. The utilisation (MFU) divides the FLOP/s of the median
  logging interval by that peak times the mesh's devices. It uses wall time, so other programs on the machine lower it;
  they affect FLOPs per core-second only a little.
- A stage's wall time and core-seconds are its manifest's, killed runs included.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lifecycle.core.artifact import Artifact
from lifecycle.data.selecting.contamination import Evidence, Key, evidence_of
from lifecycle.model.config import ModelConfig
from lifecycle.model.counts import num_params
from lifecycle.ops.cost import PriceConfig
from lifecycle.report.blocks import Exchange
from lifecycle.report.evaluated import Baseline, Task, read_baselines, read_tasks
from lifecycle.report.trained import TrainedStage, Training, read_training

FUNNEL = "funnel.json"  # file of the documents artifact; unlike its stats, it has the samples


@dataclass(frozen=True)
class Link:
    """An artifact of the chain, with its cost."""

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
class Data:
    """The documents: their sources, the funnel, and what the model is tested on that was in them."""

    sources: Mapping[str, Any]  # by name: number of files, bytes, and a hash of paths and contents
    stats: Mapping[str, Any]
    funnel: Sequence[Mapping[str, Any]]
    evidence: Mapping[Key, Evidence]


@dataclass(frozen=True)
class Numbers:
    """Everything that a report shows. Parts that a run does not have are None or empty."""

    run: str
    model: ModelConfig
    parameters: int
    trainings: tuple[Training, ...]
    tasks: tuple[Task, ...]
    text_task: Task | None  # the task that measures the baselines' text
    baselines: tuple[Baseline, ...]
    data: Mapping[str, Data]  # by corpus; a run's only one may have the name ""
    tokenizer: Mapping[str, Any] | None
    tokens: Mapping[str, Any] | None
    rows: Mapping[str, Any] | None
    win_rates: Mapping[str, Any] | None
    version: Mapping[str, Any] | None
    samples: tuple[Exchange, ...]
    links: tuple[Link, ...]
    price: PriceConfig
    machine: Mapping[str, str]

    @property
    def wall_s(self) -> float:
        """Wall time of all stages in seconds."""
        return sum(link.wall_s for link in self.links)

    @property
    def core_s(self) -> float:
        """CPU time of all stages in core-seconds."""
        return sum(link.core_s for link in self.links)

    @property
    def money(self) -> float:
        """The price of all stages."""
        return sum(link.money for link in self.links)


def collect(
    run: str,
    model: ModelConfig,
    trained: Sequence[TrainedStage],
    artifacts: Mapping[str, Artifact],
    samples: Sequence[Exchange],
    price: PriceConfig,
    machine: Mapping[str, str],
) -> Numbers:
    """Reads the artifacts of a run, in the order of the graph.

    `model`: the one that it exports; `trained`: the training stages; `artifacts`: the artifacts of all stages, by name.
    Both have the finished stages of a run that goes on.
    """
    stats = {name: artifact.stats for name, artifact in artifacts.items()}
    tasks = read_tasks(trained)
    text, baselines = read_baselines(artifacts["baseline"], tasks) if "baseline" in artifacts else (None, ())
    return Numbers(
        run=run,
        model=model,
        parameters=stats["export"]["parameters"] if "export" in stats else num_params(model),
        trainings=tuple(map(read_training, trained)),
        tasks=tasks,
        text_task=text,
        baselines=baselines,
        data=_corpora(artifacts),
        tokenizer=stats.get("tokenizer"),
        tokens=stats.get("tokens"),
        rows=stats.get("rows"),
        win_rates=stats.get("win-rates"),
        version=stats.get("register"),
        samples=tuple(samples),
        links=tuple(_link(artifact, price) for artifact in artifacts.values()),
        price=price,
        machine=machine,
    )


def _corpora(artifacts: Mapping[str, Artifact]) -> dict[str, Data]:
    """The corpora of the finished stages."""
    names = [name.removeprefix("documents") for name in artifacts if re.fullmatch("documents(-.+)?", name)]
    return {name[1:]: _data(artifacts[f"tagging{name}"], artifacts[f"documents{name}"]) for name in names}


def _data(tagging: Artifact, documents: Artifact) -> Data:
    funnel = json.loads((documents.path / FUNNEL).read_text(encoding="utf-8"))["steps"]
    return Data(tagging.manifest.config["sources"], documents.stats, funnel, evidence_of(documents.path))


def _link(artifact: Artifact, price: PriceConfig) -> Link:
    m = artifact.manifest
    return Link(
        stage=m.stage, key=m.key, content_hash=m.content_hash, inputs=m.input_hashes, created=m.created, code=m.code,
        wall_s=m.wall_s, core_s=m.cpu_s, money=price.money(m.cpu_s),
    )  # fmt: skip
