"""Writes the contracts of the shipped configs with a mesh, and of the debug model on the meshes that none of them has:
`uv run python tests/golden/make_contracts.py`.

A changed line is a changed sharding, activation or collective: read the diff before it is kept.
"""

from pathlib import Path

from lifecycle.core.config import load_config
from lifecycle.parallel.axes import MeshConfig
from lifecycle.planning.programs.contract import contract
from lifecycle.stages.config import RunConfig
from lifecycle.training.likelihood import NextTokenConfig

REPOSITORY = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "contracts"
# Mesh and micro-batches a step; the files are in the folder `meshes`.
MESHES: dict[str, tuple[MeshConfig, int]] = {
    "fsdp_tensor": (MeshConfig(fsdp=4, tensor=2), 1),
    "replica_fsdp_accum": (MeshConfig(replica=2, fsdp=2), 2),
    "stage_fsdp": (MeshConfig(stage=2, fsdp=4), 1),
    "fsdp_context": (MeshConfig(fsdp=4, context=2), 1),
}


def shipped() -> list[str]:
    """Names of the configs whose mesh is more than one device."""
    found = sorted((REPOSITORY / "configs").glob("*.yaml"))
    return [path.stem for path in found if load_config(RunConfig, path).mesh.size > 1]


def lines_of(name: str) -> list[str]:
    config = load_config(RunConfig, REPOSITORY / "configs" / f"{name}.yaml")
    first = config.training_stages[0]
    return contract(config.trained_model(first), config.train[first], config.mesh)


def _pretraining(config: RunConfig) -> NextTokenConfig:
    train = config.train["pretrain"]
    assert isinstance(train, NextTokenConfig)
    return train


def lines_on(mesh: MeshConfig, grad_accum: int) -> list[str]:
    """The contract of `configs/debug.yaml`'s model on a mesh, everything computed again in the backward pass."""
    config = load_config(RunConfig, REPOSITORY / "configs" / "debug.yaml")
    train = _pretraining(config).model_copy(update={"grad_accum": grad_accum, "remat": {}})
    return contract(config.model, train, mesh)


def main() -> None:
    (FOLDER / "meshes").mkdir(parents=True, exist_ok=True)
    for name in shipped():
        (FOLDER / f"{name}.txt").write_text("\n".join(lines_of(name)) + "\n", encoding="utf-8")
    for name, (mesh, grad_accum) in MESHES.items():
        lines = lines_on(mesh, grad_accum)
        (FOLDER / "meshes" / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
