"""A framework for a language model's full life cycle; `docs/python.md` shows its use from Python."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lifecycle.core.cuda_plugin import silence_without_gpu
from lifecycle.core.version import VERSION as __version__

if TYPE_CHECKING:
    from lifecycle.core.run import Run, open_run
    from lifecycle.evals.texts import TextScore, score_texts
    from lifecycle.inference.bundle import load_bundle
    from lifecycle.inference.texts import embed_texts, generate_texts
    from lifecycle.parallel.mesh import make_mesh
    from lifecycle.training.trainer import Trainer

_HOMES = {
    "Run": "core.run",
    "TextScore": "evals.texts",
    "Trainer": "training.trainer",
    "embed_texts": "inference.texts",
    "generate_texts": "inference.texts",
    "load_bundle": "inference.bundle",
    "make_mesh": "parallel.mesh",
    "open_run": "core.run",
    "score_texts": "evals.texts",
}
__all__ = [
    "Run",
    "TextScore",
    "Trainer",
    "__version__",
    "embed_texts",
    "generate_texts",
    "load_bundle",
    "make_mesh",
    "open_run",
    "score_texts",
]

silence_without_gpu()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lifecycle' has no attribute {name!r}")
    return getattr(import_module(f"lifecycle.{_HOMES[name]}"), name)
