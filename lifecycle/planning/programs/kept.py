"""Compilations cached on disk, keyed by the hash of everything that determines them.

That is the lowered program, the devices, the compiler's options (including those from the environment), the libraries'
versions and the fields of `Compilation`. What must hold: a cached compilation is what compiling again would give. It
holds the compiler's facts and no estimates: everything else is derived from it anew, so this package's code is in no
key. Only the names of operations may be out of date: they are those at the time of compilation.
"""

import gzip
import importlib.metadata
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from lifecycle.core.config import digest
from lifecycle.core.files import user_cache
from lifecycle.planning.compiled.compilation import Compilation
from lifecycle.planning.compilers import Compiler
from lifecycle.planning.programs.fingerprint import fingerprint
from lifecycle.planning.topology import Topology, device_coordinates

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from jax.stages import Lowered

ENVIRONMENT = ("LIBTPU_INIT_ARGS", "XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION")  # change what is compiled


def versions(compiler: Compiler) -> dict[str, str]:
    """Versions of the installed libraries that determine what a program compiles to."""
    names = compiler.libraries
    installed = {name: next(iter(importlib.metadata.Distribution.discover(name=name)), None) for name in names}
    return {name: library.version for name, library in installed.items() if library is not None}


def compilation_key(lowered: "Lowered", topology: Topology, mesh: "Mesh", options: Mapping[str, str]) -> str:
    """The hash of everything that determines a compilation."""
    return digest(
        {
            "program": fingerprint(lowered),
            "topology": topology.name,
            "wrap": topology.wrap,
            "chip_config": topology.compiler.target(topology.chip),
            "devices": device_coordinates(topology, mesh.devices).tolist(),
            "options": dict(options),
            "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
            "versions": versions(topology.compiler),
            "facts": [field.name for field in fields(Compilation)],
        }
    )


class CompilationCache:
    """One compressed JSON file per compilation, named by its key."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or user_cache() / "compiled"

    def get(self, key: str) -> Compilation | None:
        """The compilation cached under this key; `None` if absent."""
        path = self._path(key)
        if not path.is_file():
            return None
        return TypeAdapter(Compilation).validate_json(gzip.decompress(path.read_bytes()))

    def put(self, key: str, compilation: Compilation) -> None:
        """Stores a compilation. A process killed while writing leaves nothing incomplete under the key."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_bytes(gzip.compress(TypeAdapter(Compilation).dump_json(compilation), compresslevel=6))
        partial.replace(path)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json.gz"
