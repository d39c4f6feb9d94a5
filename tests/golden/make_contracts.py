"""Writes the contracts of the shipped configs with a mesh: `uv run python tests/golden/make_contracts.py`.

A changed line is a changed sharding, activation or collective: read the diff before it is kept.
"""

from pathlib import Path

from lifecycle.core.config import load_config
from lifecycle.planning.contract import contract
from lifecycle.stages.config import RunConfig

REPOSITORY = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "contracts"


def shipped() -> list[str]:
    """Names of the configs whose mesh is more than one device."""
    found = sorted((REPOSITORY / "configs").glob("*.yaml"))
    return [path.stem for path in found if load_config(RunConfig, path).mesh.size > 1]


def lines_of(name: str) -> list[str]:
    config = load_config(RunConfig, REPOSITORY / "configs" / f"{name}.yaml")
    return contract(config.model, config.pretrain, config.mesh)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in shipped():
        (FOLDER / f"{name}.txt").write_text("\n".join(lines_of(name)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
