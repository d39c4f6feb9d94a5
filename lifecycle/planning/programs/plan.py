"""One program planned: compiled for a topology, measured, and remembered.

A plan is kept under a hash of what it depends on: the config, the mesh, the topology, the compiler's options (those
of the environment too), this package's code and the versions of JAX and the compiler. What must hold: a kept plan is
what compiling again would give.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

import lifecycle
from lifecycle.core.config import digest
from lifecycle.core.progress import Progress
from lifecycle.planning.chips import GIB
from lifecycle.planning.compiled.memory import Memory, known_bytes, memory_of
from lifecycle.planning.compiled.program import Program, Spender
from lifecycle.planning.estimate.step import Estimate, estimate
from lifecycle.planning.topology import Topology

if TYPE_CHECKING:
    from jax.sharding import Mesh

CODE = ("core", "parallel", "kernels", "model", "training", "inference", "planning")  # what a compiled step is made of
ENVIRONMENT = ("LIBTPU_INIT_ARGS", "XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION")  # change what is compiled
LIBRARIES = ("jax", "jaxlib", "libtpu", "optax")
_NEEDS = re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM")
_UNITS = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}


@dataclass(frozen=True)
class Planned:
    """A program on a topology. Of one that does not fit `needs_bytes` is known, and `known_bytes`: what its parameters,
    optimizer and other lasting arrays take of it."""

    topology: str
    mesh: dict[str, int]
    program: str
    options: dict[str, str]
    versions: dict[str, str]
    fits: bool
    needs_bytes: int
    memory: Memory | None
    estimate: Estimate | None
    spenders: tuple[Spender, ...]
    compile_s: float
    known_bytes: Mapping[str, int] = field(default_factory=dict)  # per device, by argument; empty for one that fits

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def plan_program(
    name: str,
    topology: Topology,
    mesh: "Mesh",
    lower: Callable[[], Any],
    seen_share: float,
    options: Mapping[str, str],
    progress: Progress,
) -> Planned:
    """Compiles what `lower` gives (a `jax.stages.Lowered` for the mesh) and measures it."""
    from jax.errors import JaxRuntimeError

    started = time.monotonic()
    head = {
        "topology": topology.name,
        "mesh": dict(mesh.shape),
        "program": name,
        "options": dict(options),
        "versions": versions(),
    }
    lowered = _with_progress(lower, progress)
    try:
        compiled = _with_progress(lambda: lowered.compile(compiler_options=dict(options)), progress)
    except JaxRuntimeError as error:
        needs = _NEEDS.search(str(error))
        if needs is None:
            raise
        size = int(float(needs[1]) * _UNITS[needs[2]])
        took = time.monotonic() - started
        parts = known_bytes(lowered, mesh.size)
        nothing = {"memory": None, "estimate": None, "spenders": ()}
        return Planned(**head, fits=False, needs_bytes=size, compile_s=took, known_bytes=parts, **nothing)
    memory = memory_of(compiled, topology.chip)
    found, spenders = measure(compiled.as_text(), topology, mesh, seen_share)
    return Planned(
        **head,
        fits=memory.peak_bytes <= memory.hbm_bytes,
        needs_bytes=memory.peak_bytes,
        memory=memory,
        estimate=found,
        spenders=spenders,
        compile_s=time.monotonic() - started,
    )


def measure(text: str, topology: Topology, mesh: "Mesh", seen_share: float) -> tuple[Estimate, tuple[Spender, ...]]:
    """The estimate of a compiled module's text, and what its cycles are spent on."""
    from lifecycle.planning.compiled.collectives import MeshShape, collectives
    from lifecycle.planning.compiled.hlo import parse_module
    from lifecycle.planning.compiled.host import host_moves
    from lifecycle.planning.compiled.kernels import kernel_work
    from lifecycle.planning.estimate.network import Network, places_of

    program = Program(parse_module(text))
    shape = MeshShape(tuple(mesh.axis_names), mesh.devices.shape, topology.num_slices)
    network = Network(topology, shape, places_of(mesh.devices))
    found = collectives(program, shape)
    is_exchanged = any(c.kind == "ragged-all-to-all" for c in found)
    kernels = kernel_work(program.kernels, seen_share, is_exchanged)
    return estimate(program, [*found, *host_moves(program)], kernels, network, topology), tuple(program.spenders())


def _with_progress[T](work: Callable[[], T], progress: Progress) -> T:
    """Runs `work` in a thread and tells the seconds it has taken. The main thread waits in Python, so that Ctrl-C ends
    the program at once, and not after the minutes that a compilation takes."""
    box: dict[str, Any] = {}

    def run() -> None:
        try:
            box["result"] = work()
        except BaseException as error:  # handed to the main thread, whatever it is
            box["error"] = error

    started = time.monotonic()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.5)
        progress.update(int(time.monotonic() - started))
    if "error" in box:
        raise box["error"]
    return box["result"]


def versions() -> dict[str, str]:
    """The libraries that decide what a compiled program is, as far as they are installed."""
    found = {name: next(iter(importlib.metadata.Distribution.discover(name=name)), None) for name in LIBRARIES}
    return {name: library.version for name, library in found.items() if library is not None}


def code_hash() -> str:
    """SHA-256 of this package's code behind a compiled step."""
    root, digest_ = Path(lifecycle.__file__).parent, hashlib.sha256()
    for path in sorted(p for room in CODE for p in (root / room).rglob("*.py")):
        digest_.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest_.hexdigest()


class Kept:
    """Plans on disk, one JSON file each, named by their key's hash."""

    def __init__(self, folder: Path | None = None) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.folder = folder or cache / "lifecycle" / "plans"
        self._code = code_hash()

    def path(self, key: Mapping[str, Any]) -> Path:
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        whole = {**key, "code": self._code, "versions": versions(), "environment": environment}
        return self.folder / f"{digest(whole)}.json"

    def get(self, key: Mapping[str, Any]) -> Planned | None:
        path = self.path(key)
        if not path.is_file():
            return None
        return TypeAdapter(Planned).validate_json(path.read_bytes())

    def put(self, key: Mapping[str, Any], planned: Planned) -> None:
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(planned.plain(), indent=1), encoding="utf-8")
        partial.replace(path)
