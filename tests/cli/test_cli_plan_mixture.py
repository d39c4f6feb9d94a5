"""The plan of mixtures: the setting before there are token shards, shares and epochs after."""

from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from lifecycle.cli import plan_mixture
from lifecycle.cli.plan_mixture import show_mixtures
from lifecycle.core.config import load_config
from lifecycle.stages.config import RunConfig
from tests.planning.shipped import ROOT


def shown(root: Path, *words: str) -> str:
    config = load_config(RunConfig, ROOT / "configs" / "debug.yaml", (f"root={root}", *words))
    out = StringIO()
    show_mixtures(config, Console(file=out, width=200))
    return out.getvalue()


def test_a_plan_has_shares_and_epochs_once_the_tokens_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = "train.pretrain.mixture=size"
    assert shown(tmp_path) == ""
    assert shown(tmp_path, size) == 'mixture of pretrain: "size"; shares and epochs once the stage tokens is done\n'

    def tokens_are_done(config: RunConfig, targets: tuple[str, ...]) -> list[Any]:
        train = config.train["pretrain"]
        trained = train.steps * train.global_batch_size * train.seq_len
        counted = {"stdlib": trained // 8, "[other]": trained // 8}
        return [SimpleNamespace(artifact=SimpleNamespace(stats={"source_tokens": {"train": counted}}))]

    monkeypatch.setattr(plan_mixture, "states", tokens_are_done)
    words = shown(tmp_path, size).split()
    assert words[:3] == ["mixture", "of", "pretrain"] and "[other]" in words
    assert [word for word in words if "%" in word] == ["50.00%", "50.00%"] and words.count("4.00") == 2
    alone = shown(tmp_path, "train.pretrain.mixture={stdlib: 1}")
    assert "100.00%" in alone and "warning: epochs of sources: stdlib 8.0; beyond about 4" in alone
