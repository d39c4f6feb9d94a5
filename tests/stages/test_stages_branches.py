"""Stages that go on from another stage's run: what they inherit, what may change, and what is refused."""

import re
from contextlib import nullcontext
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from lifecycle.cli.plan import _changes
from lifecycle.core.config import ConfigError, validate
from lifecycle.core.config_changes import said
from lifecycle.stages.branches import changes
from lifecycle.stages.chain import _check_job
from lifecycle.stages.config import RunConfig
from lifecycle.stages.graph import build_graph
from lifecycle.stages.keys import row_order
from lifecycle.stages.origins import Start
from lifecycle.training.optimizer import build_schedule
from tests.stages.trees import DATA, MODEL, SIZES, grpo, next_token, run_of, sft

CONFIGS = Path(__file__).parents[2] / "configs"


def stable(steps: int, decay_share: float, **settings: Any) -> dict[str, Any]:
    return next_token(steps=steps, optimizer={"schedule": {"decay_share": decay_share}}, **settings)


def test_a_stage_may_continue_anothers_run_and_has_its_order_of_rows() -> None:
    cooled = stable(100, 0.2, **{"from": "base@80"})
    config = run_of({"base": stable(90, 0), "more": next_token(), "cooled": cooled}, data=DATA)
    assert config.starts["cooled"] == Start(stage="base", step=80) and row_order(config, "cooled") == {"tokens": 0}
    key = build_graph(config)["cooled"].settings(config)
    for change in ({"from": "base@79"}, {"seq_len": 64}, {"mixture": {"own": 1}}, {"global_batch_size": 4}):
        train = {"base": stable(90, 0), "more": next_token(), "cooled": cooled | change}
        other = run_of(train, data=DATA)
        assert key != build_graph(other)["cooled"].settings(other), change


def test_the_weight_of_the_modules_loss_may_change_but_not_begin() -> None:
    def config(weight: float) -> RunConfig:
        base = stable(90, 0, mtp_weight=weight)
        rest = stable(100, 0.2, **{"from": "base@80"}, mtp_weight=0.1)
        return run_of({"base": base, "rest": rest}, data=DATA, model=MODEL | {"num_mtp_modules": 1})

    assert config(0.3).train["rest"].modules_weight == 0.1
    with pytest.raises(ConfigError, match=r"goes on with mtp_weight=0\.0; leave"):
        config(0.0)


def chain_of(train: dict[str, Any], **sections: Any) -> RunConfig:
    """A run whose stages are as given: those that go on inherit."""
    tree = {"name": "tiny", "tokenizer": {"kind": "bytes"}, "model": MODEL, "data": DATA, **sections}
    return validate(RunConfig, tree | {"train": train})


def test_a_run_that_goes_on_again_and_again_has_the_settings_of_the_first_but_those_given() -> None:
    first = next_token(**SIZES) | {
        "steps": 80, "z_weight": 0.1, "grad_accum": 2, "checkpoint": {"every": 40}, "mixture": {"own": 1},
        "optimizer": {"name": "muon", "rates": {"embed": 3}, "schedule": {"warmup_steps": 3, "decay_share": 0}},
    }  # fmt: skip
    train = {
        "a": first,
        "b": {"from": "a@40", "steps": 90, "global_batch_size": 8, "weights": "int4"},
        "c": {"from": "b@80", "steps": 100, "seq_len": 64, "mixture": {}},
        "d": {"from": "c@100", "steps": 120, "optimizer": {"schedule": {"decay_share": 0.1}}},
    }
    config = chain_of(train)
    a, b, c, d = (config.train[name] for name in train)
    assert b == a.model_copy(update={"start": "a@40", "steps": 90, "global_batch_size": 8, "weights": "int4"})
    assert c == b.model_copy(update={"start": "b@80", "steps": 100, "seq_len": 64, "mixture": {}})
    assert d.optimizer.rates == {"embed": 3} and d.optimizer.schedule.warmup_steps == 3 and d.checkpoint.every == 40
    assert [row_order(config, name) for name in train] == [{"tokens": 0}] * 4
    assert [config.remaining(name).steps for name in train] == [80, 50, 20, 20]
    made = {name: changes(name, config.train) for name in train}
    assert made["a"] == {} and (made["b"]["goes_on"]["stage"], made["b"]["goes_on"]["step"]) == ("a", 40)
    assert said(made["b"]["goes_on"]["settings"]) == 'steps 80 -> 90, global_batch_size 2 -> 8, weights null -> "int4"'
    assert said(made["c"]["goes_on"]["settings"]) == 'steps 90 -> 100, seq_len 32 -> 64, mixture {"own": 1.0} -> {}'
    assert made["d"]["goes_on"]["settings"]["optimizer.schedule.decay_share"] == [0.0, 0.1]
    shown = StringIO()
    Console(file=shown, width=200).print(_changes(config))
    assert re.search(r"c +step 80 of b +steps 90 -> 100, seq_len 32 -> 64, mixture", shown.getvalue())


def test_one_schedule_may_be_shared_by_stages_that_go_on_anywhere_in_it() -> None:
    """Also in the warm-up: Llama 3 doubled its batch 60 steps into one of 8,000."""
    schedule = {"kind": "cosine", "warmup_steps": 50, "steps": 300}
    train = {"a": next_token(**SIZES | {"steps": 10}, optimizer={"schedule": schedule})}
    config = chain_of(train | {"b": {"from": "a@10", "steps": 200}, "c": {"from": "b@200", "steps": 300}})
    rates = [build_schedule(config.train[name].optimizer, config.train[name].steps) for name in "abc"]
    assert len({np.asarray(rate(150)).item() for rate in rates}) == 1
    with pytest.raises(ConfigError, match=r"optimizer\.schedule\.steps=300 ends before steps=301"):
        chain_of(train | {"b": {"from": "a@10", "steps": 301}})
    longer = {"from": "a@10", "steps": 200, "optimizer": {"schedule": {"steps": 400}}}
    with pytest.raises(ConfigError, match=r"b is stable for its first 51 steps only.*give both stages one schedule"):
        chain_of(train | {"b": longer, "c": {"from": "b@180", "steps": 190, "optimizer": {"schedule": {"steps": 190}}}})


def test_the_batches_and_lengths_of_llama_3_are_the_stages_of_the_docs() -> None:
    text = (CONFIGS.parent / "docs/checkpoints.md").read_text()
    (block,) = re.findall(r"```yaml\n(train:.*?)```", text, re.DOTALL)
    sources = {"sources": [{"name": name, "path": "corpus"} for name in ("web", "code", "books")]}
    config = chain_of(yaml.safe_load(block)["train"], model=MODEL | {"max_seq_len": 32768}, data=sources)
    begun, tokens = 0, [0]
    for train in config.train.values():
        tokens.append(tokens[-1] + (train.steps - begun) * train.global_batch_size * train.seq_len)
        begun = train.steps
    a_step = [train.global_batch_size * train.seq_len / 2**20 for train in config.train.values()]
    assert a_step == [4, 8, 16, 16] and tokens[1] / 1e6 == pytest.approx(252, rel=0.01)
    assert tokens[2] / 1e12 == pytest.approx(2.87, rel=0.01)
    with pytest.raises(ConfigError, match=r"train\.long\.seq_len=32768 is above model\.max_seq_len=16384"):
        chain_of(yaml.safe_load(block)["train"], model=MODEL | {"max_seq_len": 16384}, data=sources)


BRANCHES = {
    "settings that differ": (
        {"b": stable(100, 0.2, z_weight=1, freeze=["embed"], **{"from": "a@80"})},
        r"train\.b\.from=a@80: the run of a goes on with freeze=\[\], z_weight=0\.0; leave these out of train\.b, or",
    ),
    "a source that is not there": (
        {"b": {"steps": 100, "mixture": {"owm": 1}, "from": "a@72"}},
        r"train\.b\.mixture: no source 'owm' in data\.sources; did you mean 'own'\?",
    ),
    "another objective": (
        {"b": sft(steps=100, **{"from": "a@80"})},
        r"from=a@80: the run of a goes on with no loss, objective=\"next_token\"",
    ),
    "a step of the run before": (
        {"b": {"steps": 100, "from": "a@72"}, "c": {"steps": 110, "from": "b@72"}},
        r"c\.from=b@72: b goes on from step 72 of a; choose a later checkpoint of it, or train\.c\.from=a@72",
    ),
    "runs that go on from each other": (
        {"b": {"steps": 100, "from": "c@9"}, "c": {"steps": 110, "from": "b@12"}},
        r"train: b -> c -> b: these stages wait for each other's weights; change a `from`",
    ),
    "an early decay": (
        {"b": stable(100, 0.5, **{"from": "a@80"})},
        r"a@80: the learning rate of b is stable for its first 51 steps only; .*train\.b\.optimizer\.schedule\.decay",
    ),
    "a checkpoint in the decay": (
        {"b": stable(100, 0.01, **{"from": "a@90"})},
        r"a@90: the learning rate of a is stable for its first 82 steps only",
    ),
    "a divergence": (
        {"b": grpo(), "c": grpo(beta=0.1, steps=9, **{"from": "b@1"})},
        r"train\.c\.from=b@1: the reference of grpo is a stage's initial weights; start from b",
    ),
    "no step left": ({"b": stable(80, 0, **{"from": "a@80"})}, r"train\.b\.steps=80 counts from the start of a;"),
    "beyond the end": ({"b": stable(200, 0, **{"from": "a@91"})}, r"a@91: a has 90 steps; choose one of its"),
    "an unknown stage": ({"b": stable(200, 0, **{"from": "aa@9"})}, r"from=aa@9: not a training stage .* mean 'a'"),
    "another optimizer": (
        {"b": next_token(steps=100, optimizer={"name": "muon", "momentum": 0.9}, **{"from": "a@80"})},
        r"with optimizer\.momentum=0\.95, optimizer\.name=.adamw.; leave these",
    ),
}


@pytest.mark.parametrize(("train", "message"), BRANCHES.values(), ids=BRANCHES)
def test_a_run_that_cannot_be_continued_is_refused_with_the_fix(train: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_of({"a": stable(90, 0.1), **train}, data=DATA)


def test_rows_that_are_not_of_tokens_keep_their_length() -> None:
    chat = sft(steps=80, optimizer={"schedule": {"decay_share": 0}})
    train = {"chat": chat, "more": {"from": "chat@80", "steps": 90, "seq_len": 16}}
    with pytest.raises(ConfigError, match=r"with seq_len=32; leave .* Only steps, global_batch_size, weights, the"):
        run_of({"chat": chat, "more": train["more"]}, rows={"chat": ["own.jsonl"]})
    with pytest.raises(ConfigError, match=r"train\.more\.mixture: no such setting"):
        chain_of(
            {"chat": SIZES | chat, "more": {"from": "chat@80", "steps": 90, "mixture": {"own": 1}}},
            rows={"chat": ["own.jsonl"]},
        )


def test_a_mistyped_run_to_go_on_from_is_named() -> None:
    train = {"first": next_token(**SIZES), "second": {"from": "frist@2", "steps": 4}}
    with pytest.raises(ConfigError, match=r"second\.from=frist@2: not a training stage; did you mean 'first'\?"):
        chain_of(train)
    for step in ("-1", "5.5", "last", ""):
        with pytest.raises(ConfigError, match=rf"second\.from=first@{step}: '{step}' is no step; give a number"):
            chain_of(train | {"second": {"from": f"first@{step}", "steps": 4}})


def test_a_run_that_goes_on_has_what_a_depth_decided_for_it() -> None:
    train = {"a": next_token(seq_len=32), "b": {"from": "a@80", "steps": 10_000}}
    first = {"steps": 9000, "optimizer": {"schedule": {"decay_share": 0.1}}}
    config = chain_of({**train, "a": train["a"] | first}, model={"depth": 2, "vocab_size": 264})
    assert config.train["b"].optimizer == config.train["a"].optimizer
    assert config.train["b"].global_batch_size == config.train["a"].global_batch_size


@pytest.mark.parametrize(
    ("step", "checkpoint", "message"),
    [
        (80, {"every": 20}, None),  # at 80 and 90
        (60, {"every": 20, "keep_every": 60}, None),
        (60, {"every": 20, "keep": 3}, None),
        (60, {"every": 20}, r"b\.from=a@60: a will have deleted .* set train\.a\.checkpoint\.keep_every=60"),
        (70, {"every": 20, "keep": 9}, r"b\.from=a@70: a saves no .* multiple of train\.a\.checkpoint\.every=20"),
    ],
)
def test_a_checkpoint_to_start_from_is_kept_or_refused(step: int, checkpoint: Any, message: str | None) -> None:
    """Only while its stage is still to run: of a finished one, the checkpoint is there or not."""
    train = {"a": stable(90, 0, checkpoint=checkpoint), "b": stable(100, 0, **{"from": f"a@{step}"})}
    config = run_of(train, data=DATA)
    graph = build_graph(config)
    _check_job(config, [graph["b"]])
    with pytest.raises(ConfigError, match=message) if message else nullcontext():
        _check_job(config, [graph["a"], graph["b"]])
