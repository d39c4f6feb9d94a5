"""Adapters as models of the API: each has a name of its own, and is loaded and unloaded while the server runs.

An adapter stays with the version of the model on which it was loaded, which keeps its meaning when an alias moves to
another. What must hold: only folders that the operator named are read, and only for keys that may load adapters.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lifecycle.core.rendezvous import JobError
from lifecycle.serving.choices import Served
from lifecycle.serving.config import ADAPTER_NAME, AdaptersConfig
from lifecycle.serving.desk import Desk
from lifecycle.serving.errors import RequestError
from lifecycle.serving.looking_up import card
from lifecycle.serving.parsing import Body
from lifecycle.serving.record import Recorder
from lifecycle.weights.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterError


class AdaptedModels(Mapping[str, Served]):
    """Models by name, and after them the adapters of the first one; a model's name goes before an adapter's."""

    def __init__(self, models: Mapping[str, Served], config: AdaptersConfig) -> None:
        """Loads the adapters of `config`. Raises `AdapterError` for one that does not fit."""
        self._models, self._adapters = models, dict[str, Served]()
        self._changing = threading.Lock()
        for name, folder in config.models.items():
            self.load(name, folder)

    def __getitem__(self, name: str) -> Served:
        adapters = self._adapters
        return self._models[name] if name in self._models or name not in adapters else adapters[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._models
        yield from [name for name in list(self._adapters) if name not in self._models]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def load(self, name: str, folder: Path) -> Served:
        """Serves the adapter in a folder under a name, from any thread. Raises `AdapterError`, and `WeightsError` for
        damaged files."""
        with self._changing:
            if name in self:
                raise AdapterError(f"{name!r} is served already: unload it first, or choose another name")
            base = next(iter(self._models.values()))
            held = base.engine.load_adapter(folder)
            served = Served(base.engine, int((folder / ADAPTER_WEIGHTS).stat().st_mtime), held)
            self._adapters = {**self._adapters, name: served}
            return served

    def unload(self, name: str) -> None:
        """Takes an adapter's name away, from any thread; its requests go on to their ends. Raises `KeyError`."""
        with self._changing:
            served = self._adapters[name]
            self._adapters = {other: own for other, own in self._adapters.items() if other != name}
            assert served.adapter is not None and served.engine.adapters is not None
            served.engine.adapters.unload(served.adapter)


class LoadAdapterRequest(Body):
    """`POST /v1/load_lora_adapter`, as vLLM has it. `lora_path`: absolute, or relative to a configured folder."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"load_inplace": (False,), "is_3d_lora_weight": (False,)}
    lora_name: Annotated[str, Field(pattern=ADAPTER_NAME)]
    lora_path: str


class UnloadAdapterRequest(Body):
    """`POST /v1/unload_lora_adapter`, as vLLM has it."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"lora_int_id": ()}
    lora_name: str


class Unloaded(BaseModel):
    """A model that is no longer served, in the form of OpenAI's deleted models."""

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True


class Adapting:
    """`/v1/load_lora_adapter` and `/v1/unload_lora_adapter`."""

    def __init__(self, desk: Desk, models: AdaptedModels, folders: Sequence[Path]) -> None:
        self._desk, self._models, self._folders = desk, models, folders

    async def load(self, request: Request) -> Response:
        """Serves an adapter under a name."""

        async def work(ask: LoadAdapterRequest, recorder: Recorder) -> Response:
            _require_right(recorder, ask.lora_name)
            served = await self._desk.in_thread(self._loaded, ask)
            recorder.record.version = served.version
            recorder.finish(200)
            return JSONResponse(card(ask.lora_name, served, self._models))

        return await self._desk.recorded(request, LoadAdapterRequest, work)

    async def unload(self, request: Request) -> Response:
        """Ends an adapter; requests that use it go on."""

        async def work(ask: UnloadAdapterRequest, recorder: Recorder) -> Response:
            _require_right(recorder, ask.lora_name)
            try:
                await self._desk.in_thread(self._models.unload, ask.lora_name)
            except KeyError:
                message = f"there is no adapter {ask.lora_name!r}"
                raise RequestError(404, message, "lora_name", "model_not_found") from None
            recorder.finish(200)
            return JSONResponse(Unloaded(id=ask.lora_name).model_dump())

        return await self._desk.recorded(request, UnloadAdapterRequest, work)

    def _loaded(self, ask: LoadAdapterRequest) -> Served:
        folder = next(filter(None, (_inside(root, ask.lora_path) for root in self._folders)), None)
        if folder is None:
            message = f"lora_path: {ask.lora_path!r} is no adapter's folder in one of those that may be loaded from"
            raise RequestError(400, message, "lora_path", "invalid_value")
        try:
            return self._models.load(ask.lora_name, folder)
        except JobError as error:
            raise RequestError(503, str(error), code="unavailable") from None
        except ValueError as error:  # of the adapter, its files, or the room for it
            raise RequestError(400, str(error), "lora_path", "invalid_value") from None


def _require_right(recorder: Recorder, name: str) -> None:
    if not recorder.account.may_load_adapters:
        raise RequestError(403, "this key may not load or unload adapters", code="not_allowed")
    if not recorder.account.may_use(name):
        raise RequestError(403, f"this key may not use the name {name!r}", "lora_name", "model_not_allowed")


def _inside(root: Path, given: str) -> Path | None:
    """The folder of an adapter below `root`, links followed; None if it, or one of its files, is not there."""
    try:
        top, folder = root.resolve(), (root / given).resolve()
        files = [(folder / name).resolve(strict=True) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    except (OSError, ValueError):  # no such file, or no name of any
        return None
    return folder if all(path.is_relative_to(top) for path in (folder, *files)) else None
