"""`lifecycle data mix`: the mixture of a run's sources, learnt from small runs with other shares of them.

lifecycle data mix CONFIG                          24 proxies; prints the best shares, and writes them into a file
lifecycle data mix CONFIG --plan                   the proxies and their share of the run's FLOPs; trains nothing
lifecycle run CONFIG train.pretrain.mixture=RUN/mixture.yaml        the run with these shares
"""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lifecycle.cli.arguments import ConfigPath, Overrides, read_config
from lifecycle.cli.display import progress_on
from lifecycle.cli.make import start_jax
from lifecycle.cli.terminal import terminal
from lifecycle.core import distributed
from lifecycle.core.artifact import Artifact
from lifecycle.core.config import ConfigError, digest
from lifecycle.core.distributed import errors_are_shared
from lifecycle.core.files import write_text
from lifecycle.core.progress import Progress, Silent
from lifecycle.core.runlog import METRICS
from lifecycle.report.format import share
from lifecycle.stages.chain import bring_up_to_date
from lifecycle.stages.config import RunConfig
from lifecycle.stages.ladder import target_of
from lifecycle.stages.storage import readable
from lifecycle.training.config import PERIOD
from lifecycle.training.mixture_setting import mixed_shares

if TYPE_CHECKING:
    from lifecycle.stages.proxies import Advice

WEIGHTS, NUMBERS = "mixture.yaml", "mixture.json"  # in the run's folder

type Runs = Annotated[int, Parameter(help="How many proxies are trained, besides the one that checks the result.")]
type Depth = Annotated[int | None, Parameter(help="Layers of the proxies; a sixth of the model's by default.")]
type Budget = Annotated[
    float, Parameter(help="Of the model's tokens per parameter, for the proxies.", validator=Number(gt=0, lte=1))
]
type Target = Annotated[
    list[str] | None, Parameter(help="A corpus, source or topic whose held-out text counts; all by default.")
]
type OnlyPlan = Annotated[bool, Parameter(name="--plan", negative="", help="Train nothing.")]


@errors_are_shared()
def mix(
    config: ConfigPath, /, *overrides: Overrides, runs: Runs = 24, depth: Depth = None, share_of_tokens: Budget = 0.25,
    target: Target = None, only_plan: OnlyPlan = False,
) -> None:  # fmt: skip
    """Trains small models on mixtures of the run's sources, and writes the shares with the lowest predicted loss."""
    run = read_config(config, overrides)
    target_of(run)
    console = terminal()
    if not only_plan:
        distributed.start({"config": digest(run.plain())[:12], "stages": "mix"})  # before `is_writer` is asked
    with progress_on(console) if distributed.is_writer() else nullcontext(Silent()) as progress:
        if only_plan:
            _show_plan(run, runs, depth, share_of_tokens, console)
        else:
            _learn(run, runs, depth, share_of_tokens, tuple(target or ()), progress, console)


def _show_plan(run: RunConfig, runs: int, depth: int | None, budget: float, console: Console) -> None:
    from lifecycle.stages.proxies import NAME, proxies

    _, (one,) = proxies(run, depth, budget, {f"{NAME}0": {}})
    whole = (runs + 1) * one.flops / target_of(run).flops
    console.print(
        f"{runs} proxies and one to check them, each of {one.params:,} parameters for {one.tokens:,} tokens: "
        f"{share(whole)} of the FLOPs of train.{target_of(run).stage}",
        highlight=False,
    )


def _learn(
    run: RunConfig, runs: int, depth: int | None, budget: float, named: tuple[str, ...], progress: Progress,
    console: Console,
) -> None:  # fmt: skip
    from lifecycle.stages.proxies import CHECK, NAME, advise, losses_of, mean_loss, mixtures, proxies, targets_of
    from lifecycle.stages.scaling import require_same_text

    prepare = partial(start_jax, run.folder)
    counted = _counted(bring_up_to_date(run, ("tokens",), progress, prepare)["tokens"])
    tokens, heldout = counted["train"], counted["heldout"]
    targets = targets_of(heldout, named)
    if silent := sorted(tokens.keys() - heldout.keys()):
        progress.note(f"no text of {', '.join(silent)} is held out, so what the model learns of it does not count")
    chosen = {f"{NAME}{number}": mixture for number, mixture in enumerate(mixtures(tokens, runs, run.seed))}
    small, rungs = proxies(run, depth, budget, chosen)
    artifacts = bring_up_to_date(small, [rung.stage for rung in rungs], progress, prepare)
    require_same_text(rungs, artifacts)
    for rung in rungs:
        readable(run).fetch(artifacts[rung.stage], [METRICS])  # a process that did not write it
    losses = [losses_of(artifacts[rung.stage], targets) for rung in rungs]
    advice = advise(run, list(chosen.values()), losses, tokens, heldout, targets)
    check, (best,) = proxies(run, depth, budget, {CHECK: advice.rows})
    checked = bring_up_to_date(check, (best.stage,), progress, prepare)[best.stage]
    if distributed.is_writer():
        measured = mean_loss(losses_of(checked, targets), [heldout[source] for source in targets])
        advice = replace(advice, measured=measured)
        _write(run, advice, tokens)
        _show(run, advice, tokens, console)


def _counted(tokens: Artifact) -> dict[str, dict[str, int]]:
    if "source_tokens" not in tokens.stats:
        raise ConfigError(f"{tokens.path}: an earlier version's token shards, without counts of sources; delete it")
    return tokens.stats["source_tokens"]


def _write(run: RunConfig, advice: "Advice", tokens: Mapping[str, int]) -> None:
    """The file that a stage's `mixture` may name, and the numbers behind it."""
    origin = f"rows in {PERIOD} of each source, learnt by `lifecycle data mix` from {advice.runs} proxies"
    comments = [f"# {line}" for line in (origin, *_said(advice))]
    weights = [f"{json.dumps(name)}: {rows:g}" for name, rows in advice.rows.items()]
    write_text(run.folder / WEIGHTS, "\n".join([*comments, *weights]) + "\n")
    numbers = advice.plain() | {"tokens": dict(tokens)}
    write_text(run.folder / NUMBERS, json.dumps(numbers, indent=1) + "\n")


def _said(advice: "Advice") -> list[str]:
    """What the proxies say, in words."""
    assert advice.measured is not None
    said = [
        f"held-out bits per byte of {', '.join(advice.targets)}, of proxies: predicted {advice.predicted:.4f}, by size "
        f"{advice.predicted_size:.4f}; measured {advice.measured:.4f}, by size {advice.measured_size:.4f}",
        f"errors at proxies left out: {advice.error:.4f} bits (root mean square); rank correlation "
        f"{advice.rank_correlation:.2f}",
    ]
    if not advice.is_clear:
        said.append("the predicted gain is within the error: train more or longer proxies, or keep `mixture: size`")
    return said


def _show(run: RunConfig, advice: "Advice", tokens: Mapping[str, int], console: Console) -> None:
    stage, trained = target_of(run).stage, target_of(run).tokens
    best, by_size = (mixed_shares(rows, tokens, trained) for rows in (advice.rows, advice.size_rows))
    table = Table(title="shares of the sources", title_justify="left", box=None, header_style="bold")
    for column in ("source", "tokens", "by size", "best", f"epochs in {stage}"):
        table.add_column(column, justify="left" if column == "source" else "right")
    for name, of in best.items():
        row = f"{tokens[name]:,}", f"{by_size[name]['share']:.2%}", f"{of['share']:.2%}", f"{of['epochs']:,.2f}"
        table.add_row(escape(name), *row)
    console.print(table)
    for line in _said(advice):
        console.print(line, markup=False, highlight=False)
    path = run.folder / WEIGHTS
    text = f"written: {path}; use it with train.{stage}.mixture={path}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)
