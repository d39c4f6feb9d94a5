"""The model that is asked about documents: at a server of OpenAI's API, or this project's own in this process."""

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from lifecycle.cli.arguments import SEED
from lifecycle.core.config import ConfigError
from lifecycle.core.web_address import WebAddress, is_on_web

if TYPE_CHECKING:
    from lifecycle.annotation.respondents import Respondent, Sampled
    from lifecycle.inference.model import Model

type ModelName = Annotated[
    str,
    Parameter(
        name="model", help="http://HOST:PORT/v1#NAME, a bundle's folder, or a training stage or a version of the run."
    ),
]
type OwnModelName = Annotated[
    str, Parameter(name="model", help="A bundle's folder, or a training stage or a version of the run.")
]
type MostBytes = Annotated[int, Parameter(help="Of a text, from its beginning.", validator=Number(gte=1))]

CONTEXT = 2048  # tokens of a text that is measured, at a time


@Parameter(name="*")
@dataclass(frozen=True)
class Asking:
    """How a model is asked."""

    temperature: Annotated[float | None, Parameter(help="0 is greedy.", validator=Number(gte=0, lte=2))] = None
    max_tokens: Annotated[int | None, Parameter(help="Of an answer.", validator=Number(gte=1))] = None
    seed: Annotated[int, Parameter(help="Decides which documents are taken, and what is sampled.", validator=SEED)] = 0
    concurrency: Annotated[
        int, Parameter(help="Questions that are answered at a time.", validator=Number(gte=1, lte=1024))
    ] = 16
    key_variable: Annotated[str, Parameter(help="The environment variable with the server's key, if it needs one.")] = (
        ""
    )
    timeout_s: Annotated[float, Parameter(help="Of an answer by a server.", validator=Number(gt=0))] = 300.0
    tries: Annotated[int, Parameter(help="Of each question to a server.", validator=Number(gte=1, lte=20))] = 6

    def sampled(self, temperature: float, max_tokens: int) -> "Sampled":
        """How answers are sampled, by default with these."""
        from lifecycle.annotation.respondents import Sampled

        own_temperature = temperature if self.temperature is None else self.temperature
        return Sampled(own_temperature, self.max_tokens or max_tokens, self.seed)


DEFAULTS = Asking()


@contextmanager
def respondent(
    config: Path, overrides: tuple[str, ...], name: str, asking: Asking, sampled: "Sampled"
) -> Generator["Respondent"]:
    """The model that a command line names, ready to be asked."""
    from lifecycle.annotation.respondents import AHEAD, EngineRespondent, ServerRespondent
    from lifecycle.evals.chat_client import ChatClient

    if is_on_web(name):
        address, _, model = name.partition("#")
        where = WebAddress.of(address)
        if not model or where.query:
            raise ConfigError(f"--model={where}: write it as http://HOST:PORT/v1#NAME, with the model's name there")
        client = ChatClient(str(where), model, asking.key_variable, asking.timeout_s, asking.tries, asking.concurrency)
        client.key()
        yield ServerRespondent(client, sampled)
        return
    from lifecycle.inference.engine import Engine

    own, slots = own_model(config, overrides, name), asking.concurrency
    with Engine(own, slots, AHEAD * slots, dispatch_s=math.inf) as engine:
        yield EngineRespondent(engine, sampled)


def own_model(config: Path, overrides: tuple[str, ...], name: str) -> "Model":
    """The model of a bundle's folder, or of a training stage or a version of the run."""
    from lifecycle.cli.open_model import open_model

    return open_model(Path(name), ())[0] if Path(name).is_dir() else open_model(config, (name, *overrides))[0]


def measuring_model(config: Path, overrides: tuple[str, ...], name: str) -> tuple["Model", str]:
    """The model of a bundle's folder, or of a training stage or a version of the run, for texts that are no chats, and
    what names its weights. A bundle need not have a chat template; of its context no more than `CONTEXT` is used."""
    from lifecycle.cli.make import BUNDLES, start_jax
    from lifecycle.core.artifact import intact_hash
    from lifecycle.core.files import user_cache

    if not Path(name).is_dir():
        model = own_model(config, overrides, name)
        return model, model.version
    start_jax(user_cache() / BUNDLES)
    from lifecycle.evals.model import open_bundle
    from lifecycle.parallel.axes import MeshConfig
    from lifecycle.parallel.mesh import build_mesh

    return open_bundle(Path(name), CONTEXT, build_mesh(MeshConfig())).model, intact_hash(Path(name))


def shown_model(name: str) -> str:
    """A model's address or place, as records have it."""
    return f"{WebAddress.of(name.partition('#')[0])}#{name.partition('#')[2]}" if is_on_web(name) else name


def recorded(sampled: "Sampled") -> dict[str, Any]:
    """What decides an answer beside question and model, JSON-ready."""
    return {"temperature": sampled.temperature, "max_tokens": sampled.max_tokens, "seed": sampled.seed}
