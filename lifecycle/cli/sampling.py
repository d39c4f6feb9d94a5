"""How answers are sampled, as options of `chat` and `generate`."""

from dataclasses import asdict, dataclass
from typing import Annotated

from cyclopts import Parameter

from lifecycle.core.config import validate
from lifecycle.inference.sampling import SamplingParams

type System = Annotated[str | None, Parameter(help="The system message of each conversation.")]


@Parameter(name="*")
@dataclass(frozen=True)
class Sampling:
    """Options that replace the model's own settings."""

    temperature: Annotated[float | None, Parameter(help="0 is greedy.")] = None
    top_k: Annotated[int | None, Parameter(help="Sample from this many of the likeliest tokens; 0: from all.")] = None
    top_p: Annotated[float | None, Parameter(help="Sample from the likeliest tokens up to this probability.")] = None
    min_p: Annotated[float | None, Parameter(help="And only from those with this share of the likeliest one's.")] = None
    typical_p: Annotated[float | None, Parameter(help="And from those nearest to the expected surprise.")] = None
    repetition_penalty: Annotated[float | None, Parameter(help="Above 1: fewer tokens that are there already.")] = None
    presence_penalty: Annotated[float | None, Parameter(help="Subtracted for tokens that the answer has.")] = None
    frequency_penalty: Annotated[float | None, Parameter(help="And for each time that it has them.")] = None
    bad_words: Annotated[tuple[str, ...], Parameter(help="That an answer must not have; may be given again.")] = ()
    max_tokens: Annotated[int | None, Parameter(help="Of an answer; by default to the end of the context.")] = None
    min_tokens: Annotated[int | None, Parameter(help="Of an answer, before anything may end it.")] = None
    ignore_eos: Annotated[bool, Parameter(negative="", help="The model's own ends do not end an answer.")] = False
    stop: Annotated[tuple[str, ...], Parameter(help="A text that ends an answer; may be given again.")] = ()
    seed: Annotated[int | None, Parameter(help="Of answer N it is this plus N, from 0.")] = None

    def over(self, defaults: SamplingParams) -> SamplingParams:
        """A model's settings with these instead; raises `ConfigError` for one that is out of its range."""
        given = {name: value for name, value in asdict(self).items() if value is not None and value != ()}
        if given.pop("ignore_eos"):
            given["stop_ids"] = ()
        return validate(SamplingParams, defaults.model_dump() | given, where="options")


MODELS_OWN = Sampling()  # changes nothing
