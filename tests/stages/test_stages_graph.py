"""The graph that a run file declares: its stages and their inputs, and what decides each one's key."""

from pathlib import Path
from typing import Any

import pytest

from lifecycle.core.config import ConfigError, load_config
from lifecycle.stages.config import RunConfig
from lifecycle.stages.graph import build_graph, needed
from lifecycle.stages.keys import row_order
from lifecycle.stages.origins import Start
from tests.stages.trees import DATA, MODEL, dpo, grpo, next_token, run_of, sft

CONFIGS = Path(__file__).parents[2] / "configs"
TEXT = {"name": "text", "kind": "bits_per_byte", "rows": "@documents/heldout-*.parquet"}


def read(*overrides: str) -> RunConfig:
    return load_config(RunConfig, CONFIGS / "debug.yaml", overrides)


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
    assert graph["rows"].inputs == ("tokenizer",)  # and the user's own files
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
    "a divergence from fresh weights": ({"a": grpo(beta=0.1)}, r"train\.a: grpo takes its initial weights as the ref"),
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
    with pytest.raises(ConfigError, match=r"shards\.count: without a data section there are no token shards"):
        run_of(train, rows=own, shards={"count": 8})
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
        ("train.pretrain.eval_every=7", set()),
        ("train.pretrain.eval_bytes=7", set()),
        ("model.context_attention=ring", set()),
        ("model.max_seq_len=512", {"export", "evaluate-pretrain", "evaluate-sft", "evaluate-prefer"}),
        ("train.prefer.optimizer.schedule.decay_share=0.3", {"prefer"}),
        ("tokenizer.sample_bytes=9", {"tokenizer"}),
        ("train.sft.from=fresh", {"sft"}),  # no stage before it has read the replayed rows
        ("gate.level=0.99", {"register"}),
        ("price.core_hour=7", {"report"}),
        ("data.quality.gopher.min_words=51", {"documents"}),
        ("data.quality.languages={de: {gopher: {min_words: 9}}}", {"documents"}),
        ("data.quality.stop_words={de: [der, die]}", {"tagging"}),
        ("data.language.keep=[en]", {"documents"}),
        ("data.heldout_fraction=0.2", {"documents"}),
        ("data.decontamination.min_overlap=0.4", {"documents"}),
        ("data.language.min_score=0.5", {"tagging"}),
        ("data.pii.keep=[email]", {"tagging"}),
        ("data.max_document_bytes=9999", {"tagging"}),
        ("rows.heldout_fraction=0.5", set()),  # of the user's own rows: here are none
    ],
)  # fmt: skip
def test_a_setting_decides_over_the_stages_that_it_changes(override: str, changed: set[str]) -> None:
    before, after = read(), read(override)
    pairs = ((stage.settings(before), other.settings(after), stage.name) for stage, other in zip(
        build_graph(before).values(), build_graph(after).values(), strict=True
    ))  # fmt: skip
    assert {name for old, new, name in pairs if old != new} == changed


@pytest.mark.parametrize(
    ("common", "override", "changed"),
    [
        (("model.qk_norm=none", "model.family=llama"), "model.family=mistral", {"export"}),
        (("train.sft.optimizer.schedule.kind=cosine",), "train.sft.optimizer.schedule.decay_share=0.3", set()),
        (("train.sft.optimizer.schedule.kind=cosine",), "train.sft.optimizer.schedule.final_share=0.3", {"sft"}),
        (("train.sft.optimizer.schedule.kind=constant",), "train.sft.optimizer.schedule.final_share=0.3", set()),
        (("tokenizer={kind: bytes}",), "tokenizer.sample_bytes=9", set()),
    ],
)
def test_a_setting_decides_over_no_stage_that_has_no_use_for_it(
    common: tuple[str, ...], override: str, changed: set[str]
) -> None:
    before, after = read(*common), read(*common, override)
    keys_of = [{n: stage.settings(c) for n, stage in build_graph(c).items()} for c in (before, after)]
    assert {name for name, key in keys_of[0].items() if keys_of[1][name] != key} == changed


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
    assert required["sft"] == ["seq_len", "global_batch_size"] and required["next_token"] == ["seq_len"]
    one_of = {option["properties"]["objective"]["const"]: option.get("anyOf") for option in stages}
    assert one_of["sft"] == [{"required": ["steps"]}, {"required": ["epochs"]}] and one_of["next_token"] is None
    assert preset["type"] == "string" and changed["required"] == ["preset"]
    assert "preset" not in in_full["properties"] and {"d_model"} <= changed["properties"].keys()
