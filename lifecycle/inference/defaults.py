"""A bundle's sampling defaults for requests: `generation_config.json`, read and written.

Its keys are transformers' (`GenerationConfig`), and so is the rule for a file without sampling keys: greedy. Unlike in
transformers, a setting without `do_sample` means sampling, and without `top_k` all tokens are candidates, not 50. What
must hold: what is written reads back as the same settings. Nothing here imports JAX, so that a run that is up to date
is recognised without it.
"""

from pathlib import Path
from typing import Any

from pydantic import Field

from lifecycle.core.config import ConfigError, Section, validate
from lifecycle.core.json_file import read_json

GENERATION_FILE = "generation_config.json"
SELDOM = ("repetition_penalty", "typical_p")  # 1 changes nothing
SWITCH, ENDS = "do_sample", "eos_token_id"


MAX_TEMPERATURE = 1e6  # sampling is uniform long before, and float32 represents it
MAX_TOP_K = 2**31 - 1  # an int32 on the device
MIN_PENALTY, MAX_PENALTY = 1e-2, 1e2  # published ones are 1.0 to 1.3; scaled logits stay far from float32's limit


class SamplingConfig(Section):
    """The distribution that the next token is sampled from."""

    temperature: float = Field(default=1.0, ge=0, le=MAX_TEMPERATURE)  # 0: greedy
    top_k: int = Field(default=0, ge=0, le=MAX_TOP_K)  # 0: all tokens
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, le=1)  # share of the likeliest token's probability
    # The tokens whose surprise is nearest to the expected one, up to this probability (Meister et al. 2023, "Locally
    # Typical Sampling"); 1: all
    typical_p: float = Field(default=1.0, gt=0, le=1)
    # Of tokens that the prompt or the output has: divides positive logits, multiplies negative ones. 1: none.
    repetition_penalty: float = Field(default=1.0, ge=MIN_PENALTY, le=MAX_PENALTY)


GREEDY = SamplingConfig(temperature=0.0)


def read_generation(folder: Path) -> dict[str, Any]:
    """The content of the file in a bundle's folder; empty without a file. Raises `ConfigError` if it is damaged."""
    path = folder / GENERATION_FILE
    if not path.is_file():
        return {}
    tree = read_json(path, fix="copy it again, or delete it to decode greedily")
    if wrong := [end for end in end_ids(tree) if type(end) is not int or end < 0]:
        raise ConfigError(f"{path}: {ENDS} holds {wrong[0]!r}, which is not a token id")
    return tree


def sampling_of(folder: Path) -> SamplingConfig:
    """The settings of a bundle's folder. Raises `ConfigError` naming the file and an invalid key."""
    tree = read_generation(folder)
    given = {name: tree[name] for name in SamplingConfig.model_fields if tree.get(name) is not None}
    if not (given if tree.get(SWITCH) is None else tree[SWITCH]):
        given["temperature"] = 0.0
    return validate(SamplingConfig, given, where=str(folder / GENERATION_FILE))


def end_ids(tree: dict[str, Any]) -> list[int]:
    """The ids that end an answer: one, several or none in the file."""
    ends = tree.get(ENDS)
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


def sampling_of_run(sampling: SamplingConfig | None, origin: Path | None) -> SamplingConfig:
    """The sampling settings of a run: its own, else those of the bundle that its weights started from, else greedy."""
    if sampling is not None:
        return sampling
    return GREEDY if origin is None else sampling_of(origin)


def generation_of_run(sampling: SamplingConfig | None, origin: Path | None) -> dict[str, Any]:
    """The content of the file of a run's bundle, without the run's own token ids.

    `sampling` is the run's setting and replaces the sampling keys of `origin`, the bundle whose weights the run started
    from; with neither, greedy. The other keys of that bundle's file (`max_length`) are kept for other tools.
    """
    inherited = {} if origin is None else read_generation(origin)
    others = {key: value for key, value in inherited.items() if key not in {*SamplingConfig.model_fields, SWITCH}}
    sampling = sampling_of_run(sampling, origin)
    # `_from_model_config` and similar keys say how transformers made the file, which is no longer true
    return {key: value for key, value in others.items() if not key.startswith("_")} | _published(sampling)


def _published(sampling: SamplingConfig) -> dict[str, Any]:
    """The keys to write: all for sampling, since transformers' default is top_k=50, but for those of `SELDOM` that
    change nothing; for greedy only `do_sample` and a penalty."""
    keys = sampling.plain()
    seldom = {name: value for name in SELDOM if (value := keys.pop(name)) != 1}
    if sampling.temperature:
        return {SWITCH: True, **keys, **seldom}
    return {SWITCH: False} | {name: value for name, value in seldom.items() if name != "typical_p"}
