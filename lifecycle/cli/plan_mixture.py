"""What `lifecycle plan` says of mixtures: the share of each source, and how often it will be read."""

import json
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lifecycle.stages.chain import states
from lifecycle.stages.config import RunConfig
from lifecycle.training.likelihood import NextTokenConfig
from lifecycle.training.mixture_setting import mixed_shares, repeated, source_weights


def show_mixtures(config: RunConfig, console: Console) -> None:
    """Prints the mixtures of a run's stages, with shares and epochs once the token shards are there."""
    mixed = [name for name in config.training_stages if mixture_setting(config, name)]
    if not mixed:
        return
    shards = states(config, ("tokens",))[-1].artifact
    counted = {} if shards is None else shards.stats.get("source_tokens", {})  # an earlier version's stage lacks them
    tokens = counted.get("train")
    for name in mixed:
        if tokens is None:
            setting = json.dumps(mixture_setting(config, name))
            console.print(
                f"mixture of {name}: {setting}; shares and epochs once the stage tokens is done", markup=False
            )
        else:
            _show(config, name, tokens, console)


def mixture_setting(config: RunConfig, name: str) -> dict[str, float] | str:
    """A stage's setting; empty for one without a mixture."""
    train = config.train[name]
    return train.mixture if isinstance(train, NextTokenConfig) else {}


def _show(config: RunConfig, name: str, tokens: Mapping[str, int], console: Console) -> None:
    train = config.remaining(name)
    weights = source_weights(mixture_setting(config, name), tokens)
    shares = mixed_shares(weights, tokens, train.steps * train.global_batch_size * train.seq_len)
    table = Table(title=f"mixture of {name}", title_justify="left", box=None, header_style="bold")
    for column in ("source", "tokens", "share", "epochs"):
        table.add_column(column, justify="left" if column == "source" else "right")
    for source, of in shares.items():
        table.add_row(escape(source), f"{of['tokens']:,}", f"{of['share']:.2%}", f"{of['epochs']:,.2f}")
    console.print(table)
    if (warning := repeated(shares)) is not None:
        console.print(f"warning: {warning}", markup=False)
