"""A run file that would not do what it says is refused when it is read, with the setting and the remedy."""

from pathlib import Path

import pytest

from lifecycle.core.config import ConfigError, load_config
from lifecycle.planning.run_file import read_step
from lifecycle.stages import keys
from lifecycle.stages.config import RunConfig

CONFIGS = Path(__file__).parents[2] / "configs"


def load(name: str, *overrides: str) -> RunConfig:
    return load_config(RunConfig, CONFIGS / f"{name}.yaml", overrides)


@pytest.mark.parametrize("stage", ["pretrain", "sft", "prefer"])
@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_a_warm_up_that_leaves_no_step_is_refused(stage: str, kind: str) -> None:
    schedule = f"train.{stage}.optimizer.schedule"
    settings = (f"train.{stage}.steps=20", f"{schedule}.kind={kind}")
    with pytest.raises(ConfigError, match=rf"warmup_steps=20 leaves no step of steps=20 for the {kind} .* below 20"):
        load("debug", *settings, f"{schedule}.warmup_steps=20")
    assert load("debug", *settings, f"{schedule}.warmup_steps=19").name == "debug"


def test_a_constant_rate_may_warm_up_to_the_end() -> None:
    schedule = "train.pretrain.optimizer.schedule"
    assert load("debug", "train.pretrain.steps=20", f"{schedule}.kind=constant", f"{schedule}.warmup_steps=20")


def test_the_rows_of_experts_have_a_name_where_experts_are_cut_only() -> None:
    assert "expert_rows" in (load("mixtral_8x7b_v5p_128").train["pretrain"].remat or {})
    with pytest.raises(ConfigError, match=r"train\.pretrain\.remat: .* no expert_rows on this mesh; it has input, q,"):
        load("mixtral_8x7b_v5p_128", "mesh.expert=1", "mesh.fsdp=64")


def test_rows_of_131072_positions_go_on_from_published_weights() -> None:
    config = load("llama3_8b_128k_v5p_128").train["pretrain"]
    assert config.start is not None and config.optimizer.schedule.warmup_steps < config.steps / 10


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_run_says_how_to_start_it_and_what_to_expect(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    header = text[: text.index("\nname:")]
    assert load(path.stem).name == path.stem
    assert f"uv run lifecycle run configs/{path.name}" in header
    said = ("Expected by `lifecycle plan`", "Expected by arithmetic", "Hardware:", "docs/real-weights.md")
    assert any(words in header for words in said)


@pytest.mark.parametrize(
    ("mixture", "says"),
    [
        ("{stdlb: 1}", r"train.pretrain.mixture: no source 'stdlb' in data.sources; did you mean 'stdlib'"),
        ("{stdlib: 0}", "greater than 0"),
        ("{stdlib: .inf}", "finite"),
    ],
)
def test_a_mixture_has_positive_shares_of_sources(mixture: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load("debug", f"train.pretrain.mixture={mixture}")
    assert load("debug", "train.pretrain.mixture={stdlib: 2}").name == "debug"


@pytest.mark.parametrize(
    ("config", "settings", "says"),
    [
        ("debug", ["train.pretrain.precision=int4"], "train.pretrain.precision"),
        (
            "debug",
            ["train.pretrain.precision=int8", "train.pretrain.global_batch_size=2048"],
            r"precision=int8: .* over up to 262,144 tokens .* 133,144 products of int8 values; raise grad_accum",
        ),
        (  # 32,768 tokens on each of 8 devices that exchange rows: all may be one expert's
            "mixtral_8x7b_v5p_128",
            [
                "train.pretrain.precision=int8",
                "mesh={fsdp: 4, expert: 8}",
                "train.pretrain.global_batch_size=256",
            ],
            r"precision=int8: .* over up to 262,144 tokens",
        ),
        ("debug", ["train.pretrain.optimizer.param_dtype=float16"], "train.pretrain.optimizer.param_dtype"),
        ("debug", ["train.pretrain.weights=int2"], "train.pretrain.weights"),
        (
            "debug",
            ["train.pretrain.weights=int4", "train.pretrain.precision=int8"],
            r"precision=int8 would round weights again that weights=int4 has rounded for serving; leave one",
        ),
    ],
)
def test_a_precision_that_cannot_be_is_refused(config: str, settings: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(config, *settings)


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ("debug", ["train.prefer.precision=int8"]),
        ("debug", ["train.pretrain.precision=fp8", "mesh.stage=2"]),
        ("mixtral_8x7b_v5p_128", ["train.pretrain.precision=int8"]),
    ],
)
def test_preferences_pipelines_and_experts_take_a_precision(config: str, settings: list[str]) -> None:
    assert any(stage.precision for stage in load(config, *settings).train.values())


@pytest.mark.parametrize("setting", ["precision=int8", "weights=int4"])
def test_a_precision_is_part_of_what_is_learned(setting: str) -> None:
    plain, narrow = load("debug"), load("debug", f"train.pretrain.{setting}", "train.pretrain.grad_accum=2")
    assert keys.training(plain, "pretrain") != keys.training(narrow, "pretrain")


@pytest.mark.parametrize("axis", ["stage", "context"])
def test_completions_are_sampled_on_meshes_of_inference_alone(axis: str) -> None:
    with pytest.raises(ConfigError, match=rf"train.largest: completions .* without mesh\.{axis}; give .* mesh\.fsdp"):
        load("grpo_toy", f"mesh.{axis}=2")
    load("grpo_toy", "mesh.fsdp=2")


def test_a_stage_whose_score_is_a_reward_learns_one() -> None:
    def loaded(objective: str) -> RunConfig:
        judge = f"train.judge={{from: fresh, objective: {objective}, steps: 1, seq_len: 64, global_batch_size: 2}}"
        return load("grpo_toy", "rows.pairs=[pairs.jsonl]", "train.largest.reward=judge", judge)

    assert "judge" in loaded("reward_model").train
    with pytest.raises(ConfigError, match=r"train\.largest\.reward=judge: orpo learns no reward; .*reward_model"):
        loaded("orpo")


def test_a_reward_function_is_in_the_key_with_its_content_and_not_with_its_place(tmp_path: Path) -> None:
    def key_of(function: Path, *overrides: str) -> object:
        given = f"train.largest.rewards=[{{function: '{function}:brief'}}]"
        return keys.training(load("grpo_toy", given, *overrides), "largest")

    file, moved = tmp_path / "rewards.py", tmp_path / "moved.py"
    for path in (file, moved):
        path.write_text("def brief(completions, **_):\n    return [-len(text) for text in completions]\n")
    before = key_of(file)
    assert before == key_of(moved) == key_of(file, "train.largest.num_slots=8", "train.largest.eval_prompts=4")
    file.write_text("def brief(completions, **_):\n    return [+len(text) for text in completions]\n")
    assert before != key_of(file)


def test_scores_and_bundle_are_of_the_format_that_the_weights_are_for() -> None:
    plain, narrow = load("debug"), load("debug", "train.prefer.weights=int4")
    assert keys.evaluation(plain, "prefer") != keys.evaluation(narrow, "prefer")
    assert keys.evaluation(plain, "sft") == keys.evaluation(narrow, "sft")
    assert keys.export(plain) != keys.export(narrow)


def test_a_drafter_is_trained_for_its_model_as_it_is_served() -> None:
    drafts = "train.draft={objective: eagle, from: prefer, steps: 2, seq_len: 32, global_batch_size: 2, weights: int4}"
    sizes = ("model.num_layers=3", drafts)
    assert load("debug", *sizes, "train.prefer.weights=int4").train["draft"].weights == "int4"
    with pytest.raises(ConfigError, match=r'draft.weights="int4": .* prefer, .* train.prefer.weights=null'):
        load("debug", *sizes)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["tasks={names: [chioce]}"], r"tasks\.names: no task 'chioce' in evaluate\.tasks; did you mean 'choice'"),
        (["tasks={names: [module]}"], r"task 'module' is of kind generate, which generates text"),
        (["tasks={names: [choice, choice]}"], "'choice' is listed twice"),
        (["tasks={names: []}"], "at least 1 item"),
        (["tasks={names: [choice], limits: 3}"], "limits: no such setting"),
        (
            ["tasks={names: [choice]}", "checkpoint.best=choice/acuracy"],
            "best=choice/acuracy: not measured on a task .* is: choice/accuracy, ",
        ),
        (
            ["tasks={names: [choice], every: 5}", "eval_every=4", "checkpoint={every: 10, best: heldout_loss}"],
            "is measured every eval_every=4 steps",
        ),
        (["checkpoint={every: 10, best: choice/accuracy}"], "what is: none: name tasks in tasks.names"),
        (
            ["tasks={names: [choice]}", "checkpoint={every: 10, best: choice/accuracy}"],
            "best when it is highest; set .*best_is=highest",
        ),
        (
            ["tasks={names: [choice], every: 4}", "checkpoint={every: 10, best: choice/accuracy, best_is: highest}"],
            "is measured every tasks.every=4 steps, and checkpoint.every=10 is not a multiple",
        ),
    ],
)
def test_tasks_measured_in_training_are_known_and_scored_by_likelihood(settings: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load("debug", *["train.pretrain.checkpoint.every=10", *(f"train.pretrain.{text}" for text in settings)])


def test_the_best_by_a_tasks_metric_is_asked_for_where_it_is_measured() -> None:
    best = "checkpoint={every: 12, best: text/bits_per_byte}"
    load(
        "debug",
        "train.pretrain.tasks={names: [text], every: 4}",
        f"train.pretrain.{best}",
        "train.pretrain.eval_every=5",
    )


def test_a_sources_name_with_a_slash_makes_no_metric_of_a_task() -> None:
    best = "checkpoint={every: 10, best: heldout_bits_per_byte.web/cc}"
    words = ("train.pretrain.tasks={names: [text], every: 4}", "train.pretrain.eval_every=5", f"train.pretrain.{best}")
    assert load("debug", *words).train["pretrain"].measured_every("heldout_bits_per_byte.web/cc") == 5
    with pytest.raises(ConfigError, match="'heldout_text' begins with heldout_"):
        load("debug", "evaluate.tasks=[{name: heldout_text, kind: bits_per_byte, rows: x.jsonl}]")


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "..", ".hidden", "''", "x" * 101])
def test_a_name_is_that_of_one_folder(name: str) -> None:
    with pytest.raises(ConfigError, match=r"name: "):
        load("debug", f"name={name}")


@pytest.mark.parametrize(
    "setting",
    ["seed=2**70", f"seed={2**70}", "seed=true", f"train.pretrain.steps={10**30}", "train.pretrain.steps=true",
     "train.pretrain.optimizer.learning_rate=true", "export.sampling.top_k=5000000000"],
)  # fmt: skip
def test_numbers_have_bounds_and_are_no_truth_values(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.partition("=")[0].replace(".", r"\.")):
        load("debug", setting)


DIALLED = """
name: dialled
data: {sources: [{name: here, path: ., include: ["*.py"], license: MIT}]}
tokenizer: {vocab_size: 512}
model: {depth: 2, vocab_size: 512}
train: {pretrain: {objective: next_token, seq_len: 128}}
"""


def test_a_run_by_depth_is_the_run_in_plain_numbers(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(DIALLED)
    config = load_config(RunConfig, path)
    settings = {known.setting: known.value for known in config.filled}
    assert settings["model.d_model"] == config.model.d_model == 128
    path.write_text(DIALLED.replace("depth: 2, ", ""))
    plain = load_config(RunConfig, path, [f"{name}={value}" for name, value in settings.items()])
    assert plain.filled == () and keys.training(plain, "pretrain") == keys.training(config, "pretrain")
    path.write_text(DIALLED)
    assert read_step(path).train == config.train["pretrain"]  # as `plan` and the benchmarks read it
    other = load_config(RunConfig, path, ["model.depth=3", "train.pretrain.steps=7"])
    assert (other.model.num_layers, other.train["pretrain"].steps) == (3, 7)
