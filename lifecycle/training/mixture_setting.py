"""How a mixture's weights are given: by hand, in a file, by the sources' tokens, or by these at a temperature.

`mixture: size` gives each source the share of its tokens. `{temperature: T}` gives it a share in proportion to
tokens^(1/T): T = 1 is `size`, a higher one raises small sources, towards equal shares (Arivazhagan et al. 2019,
"Massively Multilingual Neural Machine Translation in the Wild", section 3.3; mT5, Xue et al. 2021, section 3.2, has
the exponent 1/T = 0.3). What must hold: equal tokens give equal weights, on any machine, so these are whole rows of a
period.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, TypeAdapter, ValidatorFunctionWrapHandler, WrapValidator

from lifecycle.core.config import ConfigError, nearest
from lifecycle.core.strict_yaml import parse_yaml
from lifecycle.data.topic_names import divided
from lifecycle.training.config import PERIOD
from lifecycle.training.mixture import rows_per_period

SIZE, TEMPERATURE = "size", "temperature"
MOST_EPOCHS = 4.0  # up to here repeated text is worth nearly as much as new (Muennighoff et al. 2023, section 6)

_WEIGHTS = TypeAdapter(dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]])


def _read(given: Any, _: ValidatorFunctionWrapHandler) -> Any:
    if given == SIZE:
        return given
    weights = _WEIGHTS.validate_python(_content_of(given) if isinstance(given, str) else given)
    if set(weights) == {TEMPERATURE} and weights[TEMPERATURE] < 1:
        raise ValueError(f"{TEMPERATURE}={weights[TEMPERATURE]:g}: it is 1 (the sources' own shares) or higher")
    return weights


def _content_of(path: str) -> Any:
    if not path.endswith((".yaml", ".yml", ".json")):
        raise ValueError(f"expected {SIZE}, {{{TEMPERATURE}: 2}}, {{SOURCE: WEIGHT}}, or a .yaml file of these weights")
    try:
        return parse_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as weights of sources: {error}") from None


# The name of a file is replaced by its content when the setting is read, as a preset's is.
type MixtureSetting = Annotated[dict[str, float] | str, WrapValidator(_read)]


def exponent_of(mixture: Mapping[str, float] | str) -> float | None:
    """The power of the sources' tokens that their shares are in proportion to; None for weights that are given."""
    if isinstance(mixture, str):
        return 1.0
    return 1 / mixture[TEMPERATURE] if set(mixture) == {TEMPERATURE} else None


def named_in(mixture: Mapping[str, float] | str) -> tuple[str, ...]:
    """The sources, or corpora, that weights are given for; none where sizes decide."""
    return () if isinstance(mixture, str) or exponent_of(mixture) is not None else tuple(mixture)


def source_weights(mixture: Mapping[str, float] | str, tokens: Mapping[str, int]) -> dict[str, float]:
    """The weight of each source, from the tokens of all; empty without a mixture.

    A name stands for what `parts_of` says, which shares its weight by its tokens. Weights that follow from tokens are
    rows of a period, and each source has one of them or more. Raises `ConfigError` for a name that is none.
    """
    power = exponent_of(mixture)
    if power is not None:
        return whole_rows({name: float(count) ** power for name, count in tokens.items()})
    weights = dict(mixture) if not isinstance(mixture, str) else {}
    parts = {name: _sources_in(name, tokens) for name in weights}
    if all(own == [name] for name, own in parts.items()):
        return weights
    spread: dict[str, float] = {}
    for name, own in parts.items():
        total = sum(tokens[source] for source in own)
        for source in own:
            if source in spread:
                raise ConfigError(f"mixture: {source!r} has a weight of its own and one as a part of another name")
            spread[source] = weights[name] * tokens[source] / total
    return whole_rows(spread)


def _sources_in(name: str, tokens: Mapping[str, int]) -> list[str]:
    if not (own := parts_of(name, tokens)):
        raise ConfigError(f"mixture: no text of {name!r}{nearest(name, tokens)}")
    return own


def parts_of(name: str, sources: Collection[str]) -> list[str]:
    """The sources that a name in a mixture stands for: that one; those of a corpus, or the topics of a source; or a
    topic of all sources, or of a corpus's."""
    if name in sources:
        return [name]
    if (topical := divided(name)) is not None:
        whole, topic = topical
        return [own for own in sources if own.startswith(whole and f"{whole}/") and own.endswith(f"/{topic}")]
    return [own for own in sources if own.startswith(f"{name}/")]


def whole_rows(weights: Mapping[str, float]) -> dict[str, float]:
    """The rows of a period, one or more of each source, else in proportion to the weights."""
    if len(weights) > PERIOD:
        raise ConfigError(f"mixture: {len(weights):,} sources, and a mixture has {PERIOD} at most; join some")
    small: set[str] = set()
    while True:
        large = {name: weight for name, weight in weights.items() if name not in small}
        room, total = PERIOD - len(small), sum(large.values())
        below = {name for name, weight in large.items() if weight / total * room < 1}
        if not below:
            break
        small |= below
    rows = rows_per_period(large, room) | dict.fromkeys(small, 1)
    return {name: float(rows[name]) for name in sorted(rows)}


def mixed_shares(weights: Mapping[str, float], tokens: Mapping[str, int], trained: int) -> dict[str, dict[str, float]]:
    """Of each source of a mixture: its tokens, its share of the rows, and the epochs of it that training on `trained`
    tokens takes."""
    shares = {name: rows / PERIOD for name, rows in rows_per_period(weights).items()}
    return {
        name: {"tokens": tokens[name], "share": share, "epochs": trained * share / tokens[name]}
        for name, share in shares.items()
    }


def repeated(shares: Mapping[str, Mapping[str, float]]) -> str | None:
    """A warning that names the sources which are read more than `MOST_EPOCHS` times, if any are."""
    often = ", ".join(f"{name} {of['epochs']:,.1f}" for name, of in shares.items() if of["epochs"] > MOST_EPOCHS)
    return f"epochs of sources: {often}; beyond about {MOST_EPOCHS:g} repeated text adds little" if often else None
