"""The import rule of BUILD.md: rooms import one way, and no framework but JAX's is imported anywhere."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lifecycle"

# room -> rooms it may import, beside itself
MAY_IMPORT = {
    "core": "",
    "parallel": "core",
    "text": "core",
    "data": "core text",
    "kernels": "core parallel",
    "model": "core parallel kernels",
    "weights": "core parallel kernels model",
    "training": "core parallel text data kernels model weights",
    "inference": "core parallel text kernels model weights",
    "evals": "core parallel text data kernels model weights training inference",
    "annotation": "core parallel text data kernels model weights training inference evals",
    "serving": "core parallel text kernels model weights inference",
    "ops": "core parallel text data kernels model weights training inference evals",
    "report": "core parallel text data kernels model weights training inference evals ops",
    "planning": "core parallel text data kernels model weights training inference rl",
    "launching": "core parallel text data kernels model weights training inference planning",
    "rl": "core parallel text data kernels model weights training inference evals",
    "stages": "core parallel text data kernels model weights training inference evals rl serving ops report planning",
    "testing": "core parallel text kernels model weights data training inference serving",
    "cli": "core parallel text data kernels model weights training inference evals annotation rl serving ops report "
    "planning stages launching",
}
FOREIGN = {"torch", "tensorflow", "transformers", "trl", "keras"}
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all imported modules, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide the room"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str | None:
    """The room of a module of this package."""
    return module.split(".")[1] if module.startswith("lifecycle.") else None


def violations(file: str, source: str) -> list[str]:
    room = Path(file).parts[0].removesuffix(".py")
    modules = list(imported(ast.parse(source, file)))
    allowed = {room, *MAY_IMPORT.get(room, "").split()}
    wrong = [module for module in modules if room_of(module) not in {None, *allowed}]
    wrong += [module for module in modules if module.partition(".")[0] in FOREIGN | PICKLES]
    return [f"{file} imports {module}" for module in wrong]


FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_only_what_its_room_may(file: str) -> None:
    assert not violations(file, (PACKAGE / file).read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", sorted((PACKAGE.parent / "benchmarks").glob("*.py")), ids=lambda file: file.stem)
def test_a_benchmark_imports_no_stages(file: Path) -> None:
    rooms = {room_of(module) for module in imported(ast.parse(file.read_text(encoding="utf-8")))}
    assert not rooms & {"stages", "cli"}


def test_every_room_has_its_rule_and_the_rule_has_no_circles() -> None:
    assert {Path(file).parts[0].removesuffix(".py") for file in FILES} <= MAY_IMPORT.keys()
    for room, others in MAY_IMPORT.items():
        assert all(room not in MAY_IMPORT[other].split() for other in others.split())
    assert [room for room, others in MAY_IMPORT.items() if "stages" in others.split()] == ["cli"]
    assert not [room for room, others in MAY_IMPORT.items() if "testing" in others.split()]


def test_no_file_imports_itself_by_way_of_others() -> None:
    modules = {file.removesuffix(".py").replace("/", "."): (PACKAGE / file).read_text("utf-8") for file in FILES}
    names = {name: [dotted.removeprefix("lifecycle.") for dotted in imported(ast.parse(source))]
             for name, source in modules.items()}  # fmt: skip
    graph = {name: {module for module in modules for dotted in found if f"{dotted}.".startswith(f"{module}.")}
             for name, found in names.items()}  # fmt: skip
    TopologicalSorter(graph).prepare()  # raises `CycleError`, which names the files


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("training/loop.py", "def f():\n    from lifecycle.inference.engine import Engine"),
        ("inference/engine.py", "import lifecycle.training.step as s"),
        ("ops/gates.py", "from lifecycle import stages"),
        ("parallel/mesh.py", "from lifecycle.model.config import ModelConfig"),
        ("weights/published.py", "import torch.nn"),
        ("data/shards.py", "import pickle"),
    ],
)
def test_the_rule_finds_what_breaks_it(file: str, source: str) -> None:
    assert violations(file, source)


def test_reading_a_config_imports_no_jax() -> None:
    script = "import sys, lifecycle.stages.config; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
