"""The graph that a run file declares: its stages and their inputs, and what decides each one's key."""

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
from lifecycle.core.config import ConfigError, load_config, said, validate
from lifecycle.stages.branches import changes
from lifecycle.stages.chain import _check_job
from lifecycle.stages.config import RunConfig
from lifecycle.stages.graph import build_graph, needed
from lifecycle.stages.keys import row_order
from lifecycle.stages.origins import Start
from lifecycle.training.optimizer import build_schedule

CONFIGS = Path(__file__).parents[2] / "configs"
SIZES = {"steps": 3, "seq_len": 32, "global_batch_size": 2}
MODEL = {"vocab_size": 264, "d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2,
         "head_dim": 16, "max_seq_len": 64}  # fmt: skip
DATA = {"sources": [{"name": "own", "path": "corpus"}]}
TEXT = {"name": "text", "kind": "bits_per_byte", "rows": "@documents/heldout-*.parquet"}


def read(*overrides: str) -> RunConfig:
    return load_config(RunConfig, CONFIGS / "debug.yaml", overrides)


def run_of(train: dict[str, dict[str, Any]], **sections: Any) -> RunConfig:
    """A run with these training stages, of a tiny model of bytes."""
    tree = {"name": "tiny", "tokenizer": {"kind": "bytes"}, "model": MODEL, **sections}
    return validate(RunConfig, tree | {"train": {name: SIZES | stage for name, stage in train.items()}})


def next_token(**settings: Any) -> dict[str, Any]:
    return {"objective": "next_token", **settings}


def sft(**settings: Any) -> dict[str, Any]:
    return {"objective": "sft", **settings}


def dpo(**settings: Any) -> dict[str, Any]:
    return {"objective": "dpo", **settings}


def names(config: RunConfig, *targets: str) -> list[str]:
    return [stage.name for stage in needed(build_graph(config), targets or ("report",))]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_run_has_a_graph_and_its_file_says_how_to_run_it(path: Path) -> None:
    graph = build_graph(load_config(RunConfig, path))
    met: set[str] = set()
    for stage in graph.values():
        assert met.issuperset(stage.inputs), stage.name
        met.add(stage.name)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert f"lifecycle run configs/{path.name}" in " ".join(header)


def test_rows_that_a_stage_only_measures_come_before_it_and_change_no_key() -> None:
    plain, measuring = read(), read("train.pretrain.tasks={names: [choice, text]}")
    stages = [build_graph(config)["pretrain"] for config in (plain, measuring)]
    assert [stage.measured for stage in stages] == [(), ("rows", "documents")]
    assert stages[0].inputs == stages[1].inputs and stages[0].settings(plain) == stages[1].settings(measuring)
    assert "rows" in names(measuring, "pretrain") and "rows" not in names(plain, "pretrain")


def test_a_run_of_five_stages_follows_its_declaration() -> None:
    train = {
        "base": next_token(),
        "anneal": next_token(),
        "chat": sft(replay_share=0.5),
        "aligned": dpo(),
        "other": dpo(**{"from": "anneal"}),
    }
    rows = {"chat": ["chat.jsonl"], "pairs": ["pairs.jsonl"]}
    evaluate = {"after": ["base", "chat"], "tasks": [TEXT]}
    config = run_of(train, data=DATA, rows=rows, evaluate=evaluate, export={"of": "aligned"})
    graph = build_graph(config)
    assert names(config) == [
        "tagging", "documents", "tokenizer", "tokens", "rows", "base", "anneal", "chat", "aligned", "other",
        "baseline", "evaluate-base", "evaluate-chat", "evaluate-aligned", "export", "register", "report",
    ]  # fmt: skip
    assert graph["anneal"].inputs == ("tokenizer", "tokens", "base")
    assert graph["chat"].inputs == ("tokenizer", "rows", "tokens", "anneal")
    assert graph["other"].inputs == ("tokenizer", "rows", "anneal")
    assert graph["rows"].inputs == ()  # the user's own files
    assert graph["evaluate-chat"].inputs == ("chat", "tokenizer", "documents")
    assert graph["export"].inputs == ("aligned", "tokenizer")
    assert graph["register"].inputs == ("export", "evaluate-aligned")  # the gate compares it, asked for or not
    assert names(config, "evaluate-other")[-2:] == ["other", "evaluate-other"]


def test_a_run_of_pre_training_alone_asks_for_no_rows_and_evaluates_nothing() -> None:
    config = run_of({"base": next_token()}, data=DATA)
    assert names(config) == ["tagging", "documents", "tokenizer", "tokens", "base", "export", "register", "report"]
    assert config.exported == "base" and config.evaluated == ()


def test_a_run_from_a_bundle_on_rows_of_its_own_needs_no_data(tmp_path: Path) -> None:
    config = run_of({"chat": sft(**{"from": f"{tmp_path}/bundle"})}, rows={"chat": ["own.jsonl"]})
    assert names(config) == ["tokenizer", "rows", "chat", "export", "register", "report"]
    assert config.starts == {"chat": Start(bundle=tmp_path / "bundle")}
    assert config.origin_of("chat") == tmp_path / "bundle"


def test_a_folder_without_a_slash_is_a_bundle_if_it_looks_like_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imported").mkdir()
    with pytest.raises(
        ConfigError, match=r"train\.chat\.from=imported: not a training stage and not a bundle's folder"
    ):
        run_of({"chat": sft(**{"from": "imported"})}, rows={"chat": ["own.jsonl"]})
    (tmp_path / "imported/config.json").write_text("{}")
    config = run_of({"chat": sft(**{"from": "imported"})}, rows={"chat": ["own.jsonl"]})
    assert config.starts["chat"].bundle == Path("imported")


def test_a_stage_may_name_one_that_the_file_has_later() -> None:
    config = run_of({"late": next_token(**{"from": "early"}), "early": next_token(**{"from": "fresh"})}, data=DATA)
    assert config.training_stages == ("early", "late")
    assert config.exported == "early"  # the last of the file


def test_stages_of_two_models_each_go_on_from_the_last_of_their_own() -> None:
    models = {"policy": MODEL, "small": MODEL | {"d_model": 16, "head_dim": 8}}
    train = {
        "big": next_token(),
        "small": next_token(model="small"),
        "chat": sft(),
        "small-chat": sft(model="small"),
    }
    config = run_of(train, model=models, data=DATA, rows={"chat": ["own.jsonl"]})
    assert {name: start.stage for name, start in config.starts.items()} == {
        "big": None, "small": None, "chat": "big", "small-chat": "small",
    }  # fmt: skip
    assert config.model_of("small-chat").d_model == 16 and config.model_of("chat").d_model == 32
    graph = build_graph(config)
    assert graph["small-chat"].settings(config)["model"]["d_model"] == 16
    assert graph["export"].settings(config)["model"]["d_model"] == 16


def test_each_stage_of_a_lineage_reads_its_rows_in_an_order_of_its_own() -> None:
    train = {
        "base": next_token(),
        "anneal": next_token(),
        "chat": sft(replay_share=0.5),
        "again": sft(),
        "branch": next_token(**{"from": "base"}),
    }
    config = run_of(train, data=DATA, rows={"chat": ["own.jsonl"]})
    orders = {name: row_order(config, name) for name in train}
    assert orders == {
        "base": {"tokens": 0}, "anneal": {"tokens": 1}, "chat": {"chat": 0, "tokens": 2}, "again": {"chat": 1},
        "branch": {"tokens": 1},
    }  # fmt: skip


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
        "b": {"from": "a@40", "steps": 90, "global_batch_size": 8},
        "c": {"from": "b@80", "steps": 100, "seq_len": 64, "mixture": {}},
        "d": {"from": "c@100", "steps": 120, "optimizer": {"schedule": {"decay_share": 0.1}}},
    }
    config = chain_of(train)
    a, b, c, d = (config.train[name] for name in train)
    assert b == a.model_copy(update={"start": "a@40", "steps": 90, "global_batch_size": 8})
    assert c == b.model_copy(update={"start": "b@80", "steps": 100, "seq_len": 64, "mixture": {}})
    assert d.optimizer.rates == {"embed": 3} and d.optimizer.schedule.warmup_steps == 3 and d.checkpoint.every == 40
    assert [row_order(config, name) for name in train] == [{"tokens": 0}] * 4
    assert [config.remaining(name).steps for name in train] == [80, 50, 20, 20]
    made = {name: changes(name, config.train) for name in train}
    assert made["a"] == {} and (made["b"]["goes_on"]["stage"], made["b"]["goes_on"]["step"]) == ("a", 40)
    assert said(made["b"]["goes_on"]["settings"]) == "steps 80 -> 90, global_batch_size 2 -> 8"
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
        r"from=a@80: the run of a goes on with objective=\"next_token\"",
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
    with pytest.raises(ConfigError, match=r"with seq_len=32; leave .* Only steps, global_batch_size, the schedule"):
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


WRONG = {
    "a cycle": (
        {"a": next_token(**{"from": "b"}), "b": next_token(**{"from": "a"})},
        r"train: a -> b -> a: these stages wait for each other's weights; change a `from`",
    ),
    "from itself": ({"a": next_token(**{"from": "a"})}, r"train: a -> a: these stages wait"),
    "a cycle by default": (
        {"a": next_token(**{"from": "b"}), "b": next_token()},
        r"train: a -> b -> a: these stages wait",
    ),
    "an unknown stage": (
        {"chat": next_token(), "more": next_token(**{"from": "chta"})},
        r"train\.more\.from=chta: not a training stage and not a bundle's folder; did you mean 'chat'\?",
    ),
    "a built-in name": ({"documents": next_token()}, r"train: 'documents' is a reserved name"),
    "the name of an evaluation": ({"evaluate-x": next_token()}, r"'evaluate-x' is a reserved name"),
    "an alias": ({"production": next_token()}, r"'production' is a reserved name"),
    "a name with a dot": ({"a.b": next_token()}, r"'a\.b' cannot name a stage"),
    "an unknown objective": ({"a": {"objective": "sfft"}}, r"train\.a: objective 'sfft' is not known; .*'sft'"),
    "no objective": ({"a": {}}, r"train\.a: objective is missing; known: next_token, sft, dpo, orpo"),
    "a setting of another objective": (
        {"a": next_token(beta=0.1)},
        r"train\.a\.beta: no such setting; known: .*eval_bytes.*, from, ",
    ),
    "a mistyped setting": ({"a": next_token(stepz=1)}, r"train\.a\.stepz: no such setting; did you mean 'steps'\?"),
    "an unknown model": ({"a": next_token(model="big")}, r"train\.a\.model=big: no such model; known: model"),
    "a reference of fresh weights": ({"a": dpo()}, r"train\.a: dpo takes its initial weights as the reference"),
    "no stages": ({}, r"train: Dictionary should have at least 1 item"),
}  # fmt: skip


@pytest.mark.parametrize(("train", "message"), WRONG.values(), ids=WRONG)
def test_a_graph_that_cannot_be_is_refused_with_the_fix(train: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_of(train, data=DATA)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"evaluate": {"after": ["chat", "bse"]}}, r"evaluate\.after: no training stage 'bse'; did you mean 'base'\?"),
        ({"export": {"of": "chatt"}}, r"export\.of: no training stage 'chatt'; did you mean 'chat'\?"),
        (
            {"evaluate": {"tasks": [TEXT | {"rows": "@docs/a.jsonl"}]}},
            r"task 'text': rows @docs/a\.jsonl: expected @doc",
        ),
        ({"data": None}, r"train\.base reads token rows, and there is no data section; add data\.sources"),
        ({"rows": {"chat": ["own.jsonl"], "pairs": ["own.jsonl"]}}, r"rows\.pairs lists files, but no training stage"),
        ({"model": {"one": MODEL, "two": MODEL}}, r"model\.two: no training stage uses this model"),
        ({"model": {"one": MODEL, "two": {"d_modle": 3}}}, r"model\.two\.d_modle: no such setting; .*'d_model'"),
        ({"model": MODEL | {"famly": "x"}}, r"model\.famly: no such setting; did you mean 'family'\?"),
    ],
)
def test_what_a_section_names_has_to_be_there(sections: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"data": DATA, "rows": {"chat": ["own.jsonl"]}}
    with pytest.raises(ConfigError, match=message):
        run_of({"base": next_token(), "chat": sft()}, **(given | sections))


def test_without_data_nothing_can_be_made_of_documents() -> None:
    train = {"chat": sft(**{"from": "bundles/x"})}
    own = {"chat": ["own.jsonl"]}
    with pytest.raises(ConfigError, match=r"rows\.docstrings reads the documents, and there is no data section"):
        run_of(train, rows={"docstrings": True})
    with pytest.raises(ConfigError, match=r"the tokenizer is trained on the documents .* no data section"):
        run_of(train, rows=own, tokenizer={"kind": "sentencepiece"})
    with pytest.raises(ConfigError, match=r"task 'text': rows @documents/.*: this run has no data section"):
        run_of(train, rows=own, evaluate={"tasks": [TEXT]})
    with pytest.raises(ConfigError, match=r"train\.chat reads token rows, and there is no data section"):
        run_of({"chat": sft(replay_share=0.5, **{"from": "bundles/x"})}, rows=own)


def test_docstrings_that_nothing_reads_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"rows\.docstrings: no training stage and no task uses these rows"):
        run_of({"base": next_token()}, data=DATA, rows={"docstrings": True})
    task = {"name": "choice", "kind": "multiple_choice", "rows": "@rows/eval-choice.jsonl"}
    config = run_of({"base": next_token()}, data=DATA, rows={"docstrings": True}, evaluate={"tasks": [task]})
    assert "rows" in names(config)


def test_a_stage_goes_on_from_its_own_model_only() -> None:
    models = {"big": MODEL, "small": MODEL | {"d_model": 16, "head_dim": 8}}
    train = {"base": next_token(), "more": next_token(model="small", **{"from": "base"})}
    with pytest.raises(ConfigError, match=r"train\.more\.from=base: base trains model 'big', more trains 'small'; set"):
        run_of(train, model=models, data=DATA)


def test_a_mesh_that_does_not_fit_is_refused_for_each_of_its_uses() -> None:
    generate = {"name": "ask", "kind": "generate", "rows": "ask.jsonl"}
    evaluate = {"tasks": [generate]}
    train = {"base": next_token(global_batch_size=8)}
    assert run_of(train, data=DATA, mesh={"fsdp": 4}, evaluate=evaluate | {"mesh": {"tensor": 2}})
    for sections in (
        {"mesh": {"tensor": 4}},
        {"evaluate": evaluate | {"mesh": {"tensor": 4}}},
        {"serve": {"mesh": {"tensor": 4}}},
    ):
        with pytest.raises(ConfigError, match=r"mesh\.tensor=4 does not divide model\.num_heads=2"):
            run_of(train, data=DATA, **sections)


def test_a_stage_that_is_given_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    text = (CONFIGS / "debug.yaml").read_text()
    path = tmp_path / "run.yaml"
    path.write_text(text.replace("\n  sft:\n", "\n  pretrain:\n"))
    lines = path.read_text().splitlines()
    first, second = (number for number, line in enumerate(lines, 1) if line == "  pretrain:")
    with pytest.raises(ConfigError, match=rf"'pretrain' was given in line {first} already(?s:.*)line {second}"):
        load_config(RunConfig, path)


def test_an_override_of_a_stage_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"override 'train.pretrian.steps=3': train has no 'pretrian'; .*'pretrain'"):
        read("train.pretrian.steps=3")
    assert (
        list(read("train.more={objective: next_token, steps: 1, seq_len: 32, global_batch_size: 8}").train)[-1]
        == "more"
    )


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("train.sft.log_every=1", set()),
        ("train.pretrain.checkpoint.every=1", set()),
        ("train.prefer.checkpoint.keep=9", set()),
        ("train.pretrain.grad_accum=2", set()),
        ("train.pretrain.remat={}", set()),
        ("train.pretrain.loss_chunks=2", set()),
        ("mesh.fsdp=2", set()),
        ("data.workers=7", set()),
        ("serve.port=1", set()),
        ("train.sft.steps=11", {"sft"}),
        ("train.pretrain.eval_every=7", {"pretrain"}),
        ("train.sft.from=fresh", {"sft"}),  # no stage before it has read the replayed rows
        ("gate.level=0.99", {"register"}),
        ("price.core_hour=7", {"report"}),
        ("data.quality.min_words=51", {"documents"}),
        ("data.language.keep=[en]", {"documents"}),
        ("data.heldout_fraction=0.2", {"documents"}),
        ("data.decontamination.min_overlap=0.4", {"documents"}),
        ("data.language.min_score=0.5", {"tagging"}),
        ("data.pii=[email]", {"tagging"}),
        ("data.max_document_bytes=9999", {"tagging"}),
        ("rows.heldout_fraction=0.5", {"rows"}),
    ],
)  # fmt: skip
def test_a_setting_decides_over_the_stages_that_it_changes(override: str, changed: set[str]) -> None:
    before, after = read(), read(override)
    pairs = ((stage.settings(before), other.settings(after), stage.name) for stage, other in zip(
        build_graph(before).values(), build_graph(after).values(), strict=True
    ))  # fmt: skip
    assert {name for old, new, name in pairs if old != new} == changed


def test_the_seed_decides_over_everything_random() -> None:
    before, after = read(), read("seed=1")
    changed = {name for name, stage in build_graph(before).items() if stage.settings(before) != stage.settings(after)}
    assert changed >= {"documents", "tokenizer", "rows", "pretrain", "sft", "prefer"}


def test_an_edited_source_file_is_another_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    config = read(f"data.sources=[{{name: own, path: {tmp_path}}}]")
    stage = build_graph(config)["tagging"]
    before = stage.settings(config)
    (tmp_path / "a.txt").write_text("two")
    assert stage.settings(config) != before


def test_the_schema_has_every_objective_and_one_model_or_several() -> None:
    schema = RunConfig.model_json_schema()
    whole, goes_on = schema["$defs"]["TrainConfig"]["anyOf"]
    stages = whole["oneOf"]
    by_name = {option["properties"]["objective"]["const"]: option["properties"] for option in stages}
    assert {"next_token", "sft", "dpo", "orpo"} <= by_name.keys()
    assert goes_on["required"] == ["from"] and {"beta", "mixture", "steps"} <= goes_on["properties"].keys()
    assert "beta" in by_name["dpo"] and "beta" not in by_name["sft"] and "from" in by_name["sft"]
    one, several = schema["properties"]["model"]["anyOf"]
    assert several["additionalProperties"] == one
    preset, changed, in_full, by_depth = schema["$defs"]["ModelConfig"]["anyOf"]
    assert by_depth["required"] == ["depth", "vocab_size"] and "num_layers" not in by_depth["properties"]
    required = {option["properties"]["objective"]["const"]: option["required"] for option in stages}
    assert "steps" in required["sft"] and required["next_token"] == ["seq_len"]
    assert preset["type"] == "string" and changed["required"] == ["preset"]
    assert "preset" not in in_full["properties"] and {"d_model"} <= changed["properties"].keys()
