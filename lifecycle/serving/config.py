"""Settings of the server."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from lifecycle.core.config import Section
from lifecycle.inference.speculation import SpeculationConfig
from lifecycle.model.config import CacheFormat, WeightFormat
from lifecycle.parallel.axes import MeshConfig

ADAPTER_NAME = r"^[\w.-]{1,64}$"


class AdaptersConfig(Section):
    """Low-rank adapters beside each model, of which a request may have one (docs/adapters.md)."""

    slots: int = Field(default=4, ge=1, le=1024)  # at a time; each takes memory, and time of every step
    rank: int = Field(default=16, ge=1, le=1024)  # the largest
    # folders in PEFT's form, loaded at the start, by the name to ask for
    models: dict[Annotated[str, Field(pattern=ADAPTER_NAME)], Path] = Field(default_factory=dict[str, Path])
    folders: tuple[Path, ...] = ()  # from whose folders others may be loaded over HTTP; none: there are no such routes

    @model_validator(mode="after")
    def _check_room(self) -> "AdaptersConfig":
        if len(self.models) > self.slots:
            raise ValueError(f"{len(self.models)} adapters do not fit {self.slots} slots; set slots={len(self.models)}")
        return self


class ServeConfig(Section):
    """The server's address and limits."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)  # 0: any free port
    num_slots: int = Field(default=8, ge=1)  # requests that decode together, for each model
    max_queue: int = Field(default=64, ge=0)  # requests that wait for a slot; more get HTTP 429
    max_seq_len: int | None = Field(default=None, ge=2)  # None: the model's; less saves cache memory
    cache_tokens: int | None = Field(default=None, ge=2)  # of all requests together; None: whole contexts for all slots
    speculation: SpeculationConfig | None = None  # foresees tokens: the same answers, sooner (docs/speculation.md)
    weights: WeightFormat | None = None  # rounded matrices (docs/precision.md); None: the compute dtype
    kv_cache: CacheFormat | None = None  # int8, fp8: keys and values in 8 bits (docs/precision.md)
    mesh: MeshConfig = MeshConfig()  # which devices hold the model; stage and context stay 1
    max_request_s: float = Field(default=600.0, gt=0)  # from a request's arrival to the end of its answer
    adapters: AdaptersConfig | None = None  # None: no room for any
    keys: Path | None = None  # a file of keys and their limits (`serving/keys.py`); None: no key needed
