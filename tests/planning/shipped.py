"""Shipped runs as candidates of a search, for tests of its arithmetic."""

from dataclasses import dataclass
from pathlib import Path

from lifecycle.core.config import load_config
from lifecycle.model.config import ModelConfig, Remat
from lifecycle.parallel.axes import AXES
from lifecycle.planning.compiled.device_groups import MeshShape
from lifecycle.planning.estimate.network import Network
from lifecycle.planning.search.candidates import Candidate
from lifecycle.planning.topology import Topology, parse_topology
from lifecycle.stages.config import RunConfig
from lifecycle.training.likelihood import NextTokenConfig
from tests.planning.fakes import coordinates

ROOT = Path(__file__).parents[2]
# The first pipeline comparison of docs/meshes.md, without stages
EIGHT_LAYERS = (
    "model.num_layers=8", "mesh.fsdp=16", "train.pretrain.global_batch_size=64", "train.pretrain.seq_len=4096",
    "train.sft.global_batch_size=64", "train.prefer.global_batch_size=64",
)  # fmt: skip
INPUT_OFFLOADED = "train.pretrain.remat={input: offload}"
TWO_SLICES = ("mesh.replica=2", "train.pretrain.global_batch_size=256")


def load(name: str, *words: str) -> RunConfig:
    return load_config(RunConfig, ROOT / "configs" / f"{name}.yaml", words)


def pretraining(config: RunConfig) -> NextTokenConfig:
    """The settings of a shipped run's first stage."""
    train = config.train["pretrain"]
    assert isinstance(train, NextTokenConfig)
    return train


@dataclass(frozen=True)
class Shipped:
    """A run's pre-training as it is configured, or with another policy."""

    model: ModelConfig
    train: NextTokenConfig
    candidate: Candidate
    topology: Topology
    network: Network


def shipped(name: str, topology: str, *words: str, remat: Remat | None = None) -> Shipped:
    config, where = load(name, *words), parse_topology(topology)
    kept = pretraining(config).remat if remat is None else remat
    assert kept is not None
    train = pretraining(config)
    candidate = Candidate(config.mesh, train.grad_accum, "own", kept, train.loss_chunks)
    shape = MeshShape(AXES, tuple(config.mesh.plain().values()), where.num_slices)
    return Shipped(config.model, train, candidate, where, Network(where, shape, coordinates(where)))
