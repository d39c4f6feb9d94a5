"""Proxies: small runs, each with other shares of the sources, from which a run's mixture is learnt.

As a ladder's rungs (`ladder.py`), proxies are training stages of the run's own folder: no data is prepared again, a
killed search goes on, and a proxy that is trained already is not trained twice. The first has the sources' own shares.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lifecycle.core.artifact import Artifact
from lifecycle.core.config import ConfigError, nearest
from lifecycle.core.runlog import METRICS, read_log
from lifecycle.parallel.axes import RULES
from lifecycle.planning.mixture_law import Fit, best_shares, drawn_shares, fit
from lifecycle.stages.config import RunConfig
from lifecycle.stages.ladder import Rung, run_of_rungs, shorter, smaller, target_of
from lifecycle.training.config import PERIOD
from lifecycle.training.mixture_setting import MOST_EPOCHS, SIZE, parts_of, source_weights, whole_rows

BITS = "heldout_bits_per_byte"  # with `.SOURCE` behind it
MODEL = "proxy"  # the name of their model
NAME, CHECK = "mix-", "mix-best"  # of a proxy, before its number, and of the one with the best shares
TEMPERATURE = 2.0  # of the shares that mixtures are drawn around: small sources have to vary, too

type Counts = Mapping[str, int]


@dataclass(frozen=True)
class Advice:
    """What proxies say of a mixture. `rows`: of each source in a period, the best ones and by size; `error`: the root
    mean square error at proxies that were left out, in bits per byte; `measured`: the proxies by size and at the best
    shares, the latter trained last to check the prediction."""

    rows: Mapping[str, float]
    size_rows: Mapping[str, float]
    predicted: float
    predicted_size: float
    error: float
    rank_correlation: float
    runs: int
    targets: tuple[str, ...]
    measured_size: float
    measured: float | None = None

    @property
    def is_clear(self) -> bool:
        """Whether the predicted gain over the sources' own shares is above the fit's error."""
        return self.predicted_size - self.predicted > self.error

    def plain(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"is_clear": self.is_clear}


def fewest_runs(sources: int) -> int:
    """The fewest proxies that a law of this many sources is fitted to."""
    return sources + 3


def mixtures(tokens: Counts, runs: int, seed: int) -> list[dict[str, float]]:
    """The rows of a period that the proxies have of each source. Raises `ConfigError` for too few sources or runs."""
    if len(tokens) < 2:
        raise ConfigError(f"a mixture is of two sources or more, and the token shards have {len(tokens)}")
    if runs < fewest_runs(len(tokens)):
        raise ConfigError(f"--runs={runs}: {len(tokens)} sources need {fewest_runs(len(tokens))} or more")
    around = source_weights({"temperature": TEMPERATURE}, tokens)
    centre = {name: rows / PERIOD for name, rows in around.items()}
    drawn = (whole_rows(drawn_shares(centre, number, seed)) for number in range(1, runs))
    return [source_weights(SIZE, tokens), *drawn]


def proxies(
    config: RunConfig, depth: int | None, share: float, chosen: Mapping[str, Mapping[str, float]]
) -> tuple[RunConfig, tuple[Rung, ...]]:
    """The run of the proxies, in the run's own folder, and the proxies; `chosen`: their mixtures, by stage. Raises
    `ConfigError` for a depth that is no model's below the target's."""
    target = target_of(config)
    layers = max(1, round(target.model.num_layers / 6)) if depth is None else depth
    if not 1 <= layers <= target.model.num_layers:
        raise ConfigError(f"--depth={depth}: train.{target.stage}'s model has {target.model.num_layers} layers")
    model = smaller(target.model, layers)
    shards = math.prod(getattr(config.mesh, axis) for axis in RULES["loss_rows"])
    train = shorter(target, model, MODEL, share, shards)
    rungs = tuple(
        Rung(stage, share, model, train.model_copy(update={"mixture": dict(mixture)}))
        for stage, mixture in chosen.items()
    )
    return run_of_rungs(config, rungs), rungs


def losses_of(artifact: Artifact, sources: Sequence[str]) -> list[float]:
    """A proxy's held-out bits per byte of each source after its last step."""
    last: dict[str, float] = {}
    for record in read_log(artifact.path / METRICS):
        last |= {name.removeprefix(f"{BITS}."): value for name, value in record.items() if name.startswith(f"{BITS}.")}
    return [last[source] for source in sources]


def targets_of(heldout: Counts, named: Sequence[str]) -> list[str]:
    """The sources whose held-out text is the target: all, or those that the names stand for."""
    known = {*heldout, *(source.split("/")[0] for source in heldout)}
    parts = {name: parts_of(name, heldout) for name in named}
    if unknown := [name for name, own in parts.items() if not own]:
        raise ConfigError(f"--target={unknown[0]}: no held-out text has this name{nearest(unknown[0], known)}")
    if len(heldout) < 2:
        raise ConfigError("held-out text of two sources or more is needed; raise data.heldout_fraction")
    return [source for source in heldout if not named or any(source in own for own in parts.values())]


def advise(
    config: RunConfig, chosen: Sequence[Mapping[str, float]], losses: Sequence[Sequence[float]],
    tokens: Counts, heldout: Counts, targets: Sequence[str],
) -> Advice:  # fmt: skip
    """The best mixture by the proxies' mixtures and `losses`, of each proxy on each target. The targets count by their
    held-out tokens. Shares are among those tried, and such that the run reads no source more than `MOST_EPOCHS` times,
    if any shares are."""
    names, stage = sorted(tokens), target_of(config).stage
    for number, loss in ((number, loss) for number, of in enumerate(losses) for loss in of):
        if not (math.isfinite(loss) and loss > 0):
            raise ConfigError(f"{NAME}{number} has the loss {loss:g}; lower the learning rate of train.{stage}")
    shares = np.array([[mixture[name] / PERIOD for name in names] for mixture in chosen])
    found = np.array(losses)
    weights = np.array([heldout[source] for source in targets], float)
    law = fit(shares, found, weights)
    rows = whole_rows(dict(zip(names, _best(config, law, shares, [tokens[name] for name in names]), strict=True)))
    best = np.array([rows[name] / PERIOD for name in names])
    return Advice(
        rows=rows, size_rows=chosen[0], predicted=float(law.law.loss(best)),
        predicted_size=float(law.law.loss(shares[0])), error=law.error, rank_correlation=law.rank_correlation,
        runs=len(chosen), targets=tuple(targets), measured_size=mean_loss(losses[0], weights),
    )  # fmt: skip


def mean_loss(losses: Sequence[float], weights: Sequence[float] | np.ndarray) -> float:
    """The targets' mean."""
    return float(np.average(losses, weights=weights))


def _best(config: RunConfig, law: Fit, shares: np.ndarray, tokens: Sequence[int]) -> list[float]:
    lowest, highest = shares.min(0), shares.max(0)
    unrepeated = MOST_EPOCHS * np.array(tokens) / target_of(config).tokens
    limited = np.maximum(np.minimum(highest, unrepeated), lowest)
    return best_shares(law.law, lowest, limited if limited.sum() > 1 else highest).tolist()
