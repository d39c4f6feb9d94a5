"""Runs that go on from checkpoints: with a decay, to a longer stable run, with other batches, mixture and rows."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lifecycle.core.config import load_config
from lifecycle.core.run import Run, open_run
from lifecycle.data.shards import TokenShards
from lifecycle.stages.config import RunConfig
from lifecycle.testing.waiting import wait_until
from lifecycle.training.batches import RowBatches
from lifecycle.training.checkpoints.continued import load_data_state
from lifecycle.training.likelihood import NextTokenConfig
from lifecycle.training.mixture_setting import source_weights
from lifecycle.training.token_rows import TokenRows

pytestmark = pytest.mark.long


def stage(steps: int, decay_share: float, **settings: Any) -> dict[str, Any]:
    schedule = {"warmup_steps": 3, "decay_share": decay_share}
    optimizer = {"name": "muon", "learning_rate": 0.01, "average_decay": 0.5, "schedule": schedule}
    sizes = {"seq_len": 64, "global_batch_size": 8, "checkpoint": {"every": 8}, "log_every": 1}
    return {"objective": "next_token", "steps": steps, "optimizer": optimizer, **sizes, **settings}


def write_run(folder: Path, train: dict[str, Any], sources: dict[str, list[str]]) -> Path:
    """The file of a run of a tiny model that goes to `folder`; `sources`: which files of the standard library."""
    model = {"vocab_size": 512, "d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2}
    known = {"path": "${stdlib}", "license": "PSF-2.0"}
    run = {
        "name": "run",
        "root": str(folder),
        "data": {"sources": [{"name": n, "include": i, **known} for n, i in sources.items()], "heldout_fraction": 0.2},
        "tokenizer": {"vocab_size": 512},
        "model": {**model, "head_dim": 16, "max_seq_len": 128, "family": "qwen3", "qk_norm": "head"},
        "train": train,
    }
    folder.mkdir(exist_ok=True)
    config = folder / "run.yaml"
    config.write_text(json.dumps(run))  # YAML has JSON in it
    return config


def command(config: Path, until: str) -> list[str]:
    return [str(Path(sys.executable).with_name("lifecycle")), "run", str(config), "--until", until]


def test_a_decay_from_a_stable_checkpoint_is_the_run_that_had_it_from_the_start(tmp_path: Path) -> None:
    train = {
        "stable": stage(16, 0),
        "cooled": {"from": "stable@8", "steps": 14, "optimizer": {"schedule": {"decay_share": 0.4}}},
        "longer": {"from": "stable@16", "steps": 20},
        "cooled-at-once": stage(14, 0.4, **{"from": "fresh"}),
        "longer-at-once": stage(20, 0, **{"from": "fresh"}),
    }
    config = write_run(tmp_path, train, {"stdlib": ["json/*.py", "email/*.py", "http/*.py"]})
    for name in train:
        subprocess.run(command(config, name), check=True)
    made = open_run(tmp_path / "run")
    for name in ("cooled", "longer"):
        whole = made[f"{name}-at-once"]
        assert made[name].content_hash == whole.content_hash, name
        losses = [[record["loss"] for record in made.log(n) if "loss" in record] for n in (name, f"{name}-at-once")]
        assert losses[0] == losses[1][-len(losses[0]) :] and len(losses[0]) < len(losses[1])


CHAIN: dict[str, Any] = {
    "narrow": stage(12, 0),
    "wide": {"from": "narrow@12", "steps": 24, "global_batch_size": 16},
    "mixed": {"from": "wide@24", "steps": 36, "mixture": {"small": 30, "large": 1}},
    "long": {
        "from": "mixed@36", "steps": 48, "seq_len": 128, "global_batch_size": 16, "mixture": {"temperature": 3},
        "optimizer": {"schedule": {"decay_share": 0.2}},
    },
}  # fmt: skip


def pieces(config: RunConfig, made: Run) -> Iterator[tuple[str, list[int]]]:
    """(document, which of its tokens) of each row of a chain of stages, by the states in their checkpoints."""
    shards = TokenShards(made["tokens"].path)
    state: dict[str, Any] = {}
    for name in CHAIN:
        train, first = config.train[name], config.starts[name].step or 0
        assert isinstance(train, NextTokenConfig)
        weights = source_weights(train.mixture, shards.source_tokens())
        rows = TokenRows(shards, train.seq_len, weights, config.seed)
        batches = RowBatches(rows, train.global_batch_size, [0], prefetch=0)
        assert batches.continue_from(state) == first if state else first == 0
        for step in range(first, train.steps):
            yield from ((d["document"], d["tokens"]) for row in batches.contents(step) for d in row["documents"])
        state = load_data_state(made[name].path / "checkpoints", train.steps)
        assert json.loads(json.dumps(batches.state(train.steps))).items() <= state.items()


def test_other_batches_then_another_mixture_then_longer_rows_and_a_kill_change_nothing_that_follows(
    tmp_path: Path,
) -> None:
    """The weights are the undisturbed chain's, and in no source comes a token again before all others have come."""
    sources = {"small": ["json/*.py"], "large": ["wsgiref/*.py", "html/*.py"]}
    whole = write_run(tmp_path / "whole", CHAIN, sources)
    subprocess.run(command(whole, "long"), check=True)
    killed = write_run(tmp_path / "killed", CHAIN, sources)
    folder = tmp_path / "killed/run"
    for moment in ("mixed-*.partial/checkpoints/32/files.json", "long-*.partial/checkpoints/40/files.json"):
        process = subprocess.Popen(command(killed, "long"))
        wait_until(lambda moment=moment, p=process: any(folder.glob(moment)) or p.poll() is not None)
        assert process.poll() is None, f"ended before {moment}"
        process.kill()
        process.wait()
    subprocess.run(command(killed, "long"), check=True)

    made = open_run(folder)
    assert [made[name].content_hash for name in CHAIN] == [
        open_run(tmp_path / "whole/run")[name].content_hash for name in CHAIN
    ]
    assert made.log("mixed")[-1]["step"] == 36 and made.log("long")[-1]["step"] == 48
    shards = TokenShards(made["tokens"].path)
    lengths = {shards.name(number): int(length) for number, length in enumerate(shards.lengths)}
    seen = {
        source: Counter({(shards.name(int(n)), t): 0 for n in own for t in range(1, lengths[shards.name(int(n))])})
        for source, own in ((source, shards.of_source(source).numbers) for source in sources)
    }
    for document, (begin, end) in pieces(load_config(RunConfig, killed), made):
        counts = next(counts for counts in seen.values() if (document, 1) in counts)
        counts.update((document, token) for token in range(begin + 1, end))
        assert max(counts.values()) - min(counts.values()) <= 1
    assert max(seen["small"].values()) == 2  # an epoch rolled over
    trace = subprocess.run([*command(killed, "")[:1], "trace", killed, "long"], check=True, capture_output=True)
    said = " ".join(trace.stdout.decode().replace("│", " ").split())
    for change in (
        "after step 36 of mixed: steps 36 -> 48, seq_len 64 -> 128,",
        "after step 12 of narrow: steps 12 ->",
    ):
        assert change in said
