"""Stages that learn from a teacher: which models can be one, what decides their key, and whole runs."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from lifecycle.cli.plan_search import search_and_show
from lifecycle.core.artifact import Draft
from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Silent
from lifecycle.core.runlog import METRICS, read_log
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import abstract_params
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.planning.compiled.memory import bytes_by_part
from lifecycle.planning.programs.lowering import train_program
from lifecycle.planning.topology import parse_topology
from lifecycle.stages import keys
from lifecycle.stages.chain import bring_up_to_date
from lifecycle.stages.config import RunConfig
from lifecycle.stages.distillation_rows import require_shared
from lifecycle.stages.graph import build_graph, needed
from lifecycle.stages.own_rows import asked, read_own
from lifecycle.stages.weights import named_model, require_same_ids
from lifecycle.testing.families import random_params
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.row_encoder import EncodedRow, RowEncoder
from lifecycle.text.row_files import RowError
from lifecycle.text.rows import RowsReport
from lifecycle.training.checkpoints.integrity import steps_in
from lifecycle.training.distilling import DistillationConfig
from lifecycle.training.job import CHECKPOINTS
from lifecycle.weights.published import save_weights
from tests.stages.trees import MODEL, run_of, sft

NARROW = MODEL | {"d_model": 16, "head_dim": 8}
ROWS = {"chat": ["own.jsonl"]}
ANSWERS: dict[str, Any] = {"share": 0.5, "max_completion_tokens": 8}


def student(**settings: Any) -> dict[str, Any]:
    return {"objective": "distillation", "model": "narrow", "teacher": "wide", **settings}


def run_with(narrow: dict[str, Any] | None = None, wide: dict[str, Any] | None = None, **settings: Any) -> RunConfig:
    """A run with a wide model's stage and a narrow one that learns from it."""
    models = {"wide": MODEL | (wide or {}), "narrow": NARROW | (narrow or {})}
    train = {"wide": sft(model="wide"), "more": sft(model="narrow"), "small": student(**settings)}
    return run_of(train, model=models, rows=ROWS)


def bundle_in(folder: Path, model: dict[str, Any] = MODEL, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    config, words = ModelConfig.model_validate(model), ByteTokenizer()
    save_weights(config, random_params(config, seed), folder)
    words.save(folder)
    ChatTemplate(words).save(folder)
    return folder


def test_a_stage_comes_after_its_teacher_and_holds_its_model() -> None:
    config = run_with()
    assert config.training_stages == ("wide", "more", "small")
    assert [stage.name for stage in needed(build_graph(config), ("small",))][2:] == ["wide", "more", "small"]
    assert config.held_models("small") == {"teacher": config.models["wide"]} and not config.held_models("wide")
    assert config.held_flops("small") > config.train["small"].flops_per_token(config.models["narrow"]) / 3


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"teacher": "wid"}, r"train\.small\.teacher=wid: no such training stage; did you mean 'wide'"),
        ({"teacher": "more"}, r"train\.small\.teacher=more: the stage starts from these weights itself"),
        ({"narrow": {"vocab_size": 272}}, r"train\.small\.teacher=wide: it has model\.vocab_size=264, .* 272"),
        ({"shared_ids": 265}, r"train\.small\.teacher=wide: shared_ids=265 is above model\.vocab_size=264"),
        ({"wide": {"max_seq_len": 32}, "seq_len": 48}, r"train\.small\.teacher=wide: seq_len=48 is above .*=32"),
        ({"teacher": "small"}, r"train: small -> small: these stages wait for each other"),
        ({"beta": 1.5}, r"train\.small\.beta: Input should be less than or equal to 1"),
        ({"temperature": 0}, r"train\.small\.temperature: Input should be greater than or equal to 0\.01"),
        ({"loss_top_k": 265}, r"teacher=wide: loss_top_k=265 is above the 264 ids that are compared"),
        ({"loss_top_k": 9, "shared_ids": 8, "loss_add_tail": False}, r"loss_top_k=9 is above the 8 ids"),
        ({"loss_top_k": 9, "shared_ids": 100}, r"shared_ids compares parts of them; set loss_add_tail=false"),
        ({"loss_add_tail": False}, r"over few ids; set loss_top_k, or leave it out"),
        ({"loss_top_k": 9, "on_policy": ANSWERS}, r"answers are not known then; leave out loss_top_k, or on_policy"),
        ({"sft_weight": 0.1, "on_policy": ANSWERS}, r"these are the student's own; set it to 0"),
        ({"on_policy": ANSWERS | {"max_completion_tokens": 32}}, r"behind its prompt does not fit seq_len=32; lower"),
        ({"on_policy": ANSWERS | {"prompts_per_step": 3}}, r"global_batch_size=2 rows of seq_len=32, which hold 2"),
        ({"on_policy": ANSWERS | {"max_prompt_tokens": 25}}, r"does not fit seq_len=32; lower"),
        ({"on_policy": ANSWERS | {"share": 0}}, r"on_policy\.share: Input should be greater than 0"),
    ],
)
def test_what_cannot_be_a_teacher_is_said_when_the_file_is_read(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run_with(**settings)


def test_a_reward_model_is_no_teacher_and_a_bundle_no_reward() -> None:
    judge = {"objective": "reward_model", "model": "wide"}
    with pytest.raises(ConfigError, match=r"train\.small\.teacher=wide: a reward model predicts no tokens"):
        run_of(
            {"wide": judge, "small": student()},
            model={"wide": MODEL, "narrow": NARROW},
            rows=ROWS | {"pairs": ["pairs.jsonl"]},
        )
    rl = {"objective": "grpo", "reward": "a/bundle", "max_prompt_tokens": 8, "max_completion_tokens": 8}
    sizes = {"prompts_per_step": 1, "group_size": 2}
    with pytest.raises(ConfigError, match=r"train\.rl\.reward=a/bundle: no training stage"):
        run_of({"rl": rl | sizes}, rows={"prompts": ["prompts.jsonl"]})


def test_the_content_of_a_teachers_bundle_is_in_the_key_and_not_its_place(tmp_path: Path) -> None:
    def key(folder: Path, **settings: Any) -> str:
        config = run_with(teacher=str(folder), **settings)
        stage = build_graph(config)["small"]
        folders = {use: start.bundle for use, start in stage.bundles.items() if start.bundle is not None}
        assert "wide" not in stage.inputs and list(folders) == ["bundle:teacher"]
        return Draft(config.folder, "small", stage.settings(config), {}, folders).key

    first, same = bundle_in(tmp_path / "first"), bundle_in(tmp_path / "same")
    assert key(first) == key(same) != key(bundle_in(tmp_path / "other", seed=1))
    assert key(first) != key(first, beta=0.25)
    assert run_with(teacher=str(first)).held_models("small")["teacher"].d_model == MODEL["d_model"]


def test_how_answers_are_sampled_follows_from_the_stage() -> None:
    """As many as fit in any case: one in each row, or three of at most ten tokens with their prompts."""
    for own, prompt, num in (({}, 24, 2), ({"max_prompt_tokens": 2}, 2, 6), ({"prompts_per_step": 1}, 24, 1)):
        train = run_with(on_policy=ANSWERS | own).train["small"]
        assert isinstance(train, DistillationConfig) and train.answering is not None
        found = train.answering
        assert (found.max_prompt_tokens, found.prompts_per_step, found.share) == (prompt, num, 0.5)
        assert train.epoch_rows(100, 40) == 80
    whole = run_with(on_policy=ANSWERS | {"share": 1}).train["small"]
    assert whole.epoch_rows(100, 40) == 100 and not run_with().train["small"].samples


def test_answers_are_in_the_key_and_not_how_many_are_sampled_at_a_time() -> None:
    def key(**own: Any) -> Any:
        return keys.training(run_with(on_policy=ANSWERS | own), "small")["train"]

    assert key() == key(num_slots=4) != key(temperature=0.5)
    assert key()["on_policy"]["share"] == 0.5 and keys.training(run_with(), "small")["train"]["on_policy"] is None


def test_answers_are_not_sampled_where_positions_are_cut() -> None:
    with pytest.raises(ConfigError, match=r"sampled on the stage's mesh, without mesh\.context"):
        tree = {"wide": sft(model="wide"), "small": student(on_policy=ANSWERS)}
        run_of(tree, model={"wide": MODEL, "narrow": NARROW}, rows=ROWS, mesh={"context": 2})


def test_a_teacher_that_is_asked_before_is_in_no_step() -> None:
    config = run_with(loss_top_k=8)
    assert not config.held_models("small") and config.other_models("small") == {"teacher": config.models["wide"]}
    assert config.held_flops("small") == 0 and run_with().held_models("small") == run_with().other_models("small")


def rows_file(folder: Path) -> Path:
    path = folder / "own.jsonl"
    told = ({"role": "user", "content": f"What is {i}?"} for i in range(24))
    rows = ({"messages": [asked, {"role": "assistant", "content": "It is so."}]} for asked in told)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tree_of(tmp_path: Path, **of_student: Any) -> dict[str, Any]:
    sizes = {"seq_len": 64, "global_batch_size": 4, "eval_every": 10, "log_every": 1}
    learned = {"optimizer": {"learning_rate": 0.01, "schedule": {"kind": "constant", "warmup_steps": 2}}}
    return {
        "root": tmp_path,
        "rows": {"chat": [str(rows_file(tmp_path))], "heldout_fraction": 0.3},
        "model": {"wide": MODEL, "narrow": NARROW},
        "train": {
            "wide": sft(model="wide", steps=4, **sizes | learned),
            "small": student(**sizes | learned | {"steps": 20} | of_student),
        },
    }  # fmt: skip


def run_from(tree: dict[str, Any], **changes: Any) -> RunConfig:
    return run_of(tree["train"], **{name: value for name, value in tree.items() if name != "train"} | changes)


@pytest.mark.slow
def test_a_student_learns_from_a_stage_and_no_checkpoint_has_the_teacher(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, sft_weight=0.5, faults={"policy": "skip"})
    made = bring_up_to_date(run_from(tree), ["small"], Silent())
    assert made["small"].manifest.inputs["wide"] == made["wide"].path.name
    records = list(read_log(made["small"].path / METRICS))
    heldout = [record["heldout_loss"] for record in records if "heldout_loss" in record]
    assert len(heldout) == 3 and heldout[-1] < 0.9 * heldout[0]
    assert {"entropy", "nll_loss", "heldout_entropy", "heldout_nll_loss"} <= {name for r in records for name in r}
    folder = made["small"].path / CHECKPOINTS
    assert steps_in(folder) == [20] and not [path for path in folder.rglob("*") if "teacher" in path.name]
    config = run_from(tree)
    facts = made["small"].stats
    of_student = config.train["small"].flops_per_token(config.models["narrow"])
    assert facts["train_flops_per_token"] == of_student + config.held_flops("small")
    again = bring_up_to_date(run_from(tree), ["small"], Silent())
    assert again["small"].path == made["small"].path


@pytest.mark.long
def test_a_bundle_is_a_teacher(tmp_path: Path) -> None:
    """Its tables have more rows than the student's."""
    bundle = bundle_in(tmp_path / "bundle", MODEL | {"vocab_size": 272}, seed=3)
    learned = {"steps": 2, "teacher": str(bundle), "beta": 0.0, "shared_ids": 264}
    made = bring_up_to_date(run_from(tree_of(tmp_path, **learned)), ["small"], Silent())
    assert set(made) == {"tokenizer", "rows", "small"} and made["small"].stats["loss"] > 0
    assert made["small"].manifest.inputs["bundle:teacher"] == str(bundle)


@pytest.mark.long
def test_a_student_learns_from_its_own_answers(tmp_path: Path) -> None:
    """Epochs count its prompts; no row's answer is learned."""
    answers = {"share": 1, "max_completion_tokens": 8, "max_prompt_tokens": 56}
    tree = tree_of(tmp_path, on_policy=answers, steps=0, epochs=4)
    made = bring_up_to_date(run_from(tree), ["small"], Silent())
    records = list(read_log(made["small"].path / METRICS))
    heldout = [record["heldout_loss"] for record in records if "heldout_loss" in record]
    prompts = made["small"].stats["examples"]
    assert made["small"].stats["steps"] == prompts == made["rows"].stats["epoch_rows"]["small"] and 10 < prompts < 20
    assert heldout[-1] < 0.9 * heldout[0]
    assert sum(record.get("on_policy", 0) for record in records) == prompts


@pytest.mark.long
def test_a_student_learns_from_a_teacher_that_was_asked_before(tmp_path: Path) -> None:
    notes = Notes()
    made = bring_up_to_date(run_from(tree_of(tmp_path, loss_top_k=16)), ["small"], notes)
    records = list(read_log(made["small"].path / METRICS))
    heldout = [record["heldout_loss"] for record in records if "heldout_loss" in record]
    assert len(heldout) == 3 and heldout[-1] < 0.5 * heldout[0]
    assert len(list(made["small"].path.glob("teacher-*.npz"))) == 2
    assert [title for title in notes.started if title.startswith("teacher")] == [
        "teacher, train rows", "teacher, heldout rows",
    ]  # fmt: skip
    of_student = run_from(tree_of(tmp_path)).train["small"].flops_per_token(run_with().models["narrow"])
    assert made["small"].stats["train_flops_per_token"] == of_student


def token_rows(folder: Path, num: int = 24) -> Path:
    """A teacher that is sure of a few letters."""
    path = folder / "tokens.jsonl"
    rows = []
    for number in range(num):
        ids, size = [1, 70 + number, 71], 6
        said = [70 + (number + place) % 3 for place in range(size)]
        blank: list[list[Any]] = [[] for _ in ids]
        row: dict[str, Any] = {"input_ids": ids + said, "labels": [-100] * 3 + said}
        row["teacher_ids"] = blank + [[one, one + 9] for one in said]
        rows.append(row | {"teacher_logprobs": blank + [[-0.2, -2.0]] * size})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def offline(tmp_path: Path, **own: Any) -> RunConfig:
    learned = {"optimizer": {"learning_rate": 0.02, "schedule": {"kind": "constant", "warmup_steps": 2}}}
    sizes = {"seq_len": 32, "global_batch_size": 4, "eval_every": 20, "log_every": 10, "steps": 40, "loss_top_k": 3}
    stage = {"objective": "offline_distillation", **sizes, **learned, **own}
    rows = {"taught": [str(token_rows(tmp_path))], "heldout_fraction": 0.3}
    return run_of({"small": stage}, root=tmp_path, rows=rows)


@pytest.mark.slow
def test_a_student_learns_from_rows_that_have_a_teachers_numbers(tmp_path: Path) -> None:
    made = bring_up_to_date(offline(tmp_path), ["small"], Silent())
    heldout = [r["heldout_loss"] for r in read_log(made["small"].path / METRICS) if "heldout_loss" in r]
    assert len(heldout) == 3 and heldout[-1] < 0.5 * heldout[0]
    assert made["small"].stats["examples"] + 4 <= made["rows"].stats["own"]["taught"]["kept"] == 24


def test_token_rows_are_checked_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(RowError, match=r"a token has 2 teacher_ids, and train\.small\.loss_top_k=1; raise that"):
        bring_up_to_date(offline(tmp_path, loss_top_k=1), ["rows"], Silent())
    with pytest.raises(ConfigError, match=r"a row of tokens is learned whole"):
        offline(tmp_path, truncation="keep_start")


def test_token_rows_are_compared_with_evaluation_rows_and_split_by_their_prompts(tmp_path: Path) -> None:
    """By what they decode to; two answers to one prompt are on one side."""
    config = offline(tmp_path)
    encoder = RowEncoder(ChatTemplate(ByteTokenizer()))
    names: dict[str, set[str]] = {"ignore": set(), "rename": set()}
    rows, _ = read_own("taught", config.rows, encoder, len_of, names, Silent())
    assert list(rows[0].texts) == [ByteTokenizer().decode(rows[0].columns["input_ids"])]
    other = dict(rows[0].columns, input_ids=[*rows[0].columns["input_ids"][:-1], 90])
    assert asked(other) == asked(rows[0].columns) != asked(rows[1].columns)


def len_of(encoded: Any) -> int:
    return len(encoded.ids)


class Notes(Silent):
    """Keeps what has begun."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def start(self, stage: str, total: int | None = None) -> None:
        self.started.append(stage)


def test_prompts_that_cannot_be_answered_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    short = {"share": 0.5, "max_completion_tokens": 8, "max_prompt_tokens": 3}
    with pytest.raises(RowError, match=r"small: 24 of 24 rows have no prompt .* longer than on_policy\.max_prompt_to"):
        bring_up_to_date(run_from(tree_of(tmp_path, on_policy=short)), ["rows"], Silent())


def test_a_bundle_that_is_no_teacher_of_this_stage_is_refused_before_anything_runs(tmp_path: Path) -> None:
    other = bundle_in(tmp_path / "other", MODEL | {"vocab_size": 272})
    with pytest.raises(ConfigError, match=r"train\.small\.teacher: it has model\.vocab_size=272"):
        bring_up_to_date(run_from(tree_of(tmp_path, teacher=str(other))), ["small"], Silent())
    with pytest.raises(ConfigError, match=r"teacher=.*none: no config\.json here; give a bundle's folder"):
        bring_up_to_date(run_from(tree_of(tmp_path, teacher=str(tmp_path / "none"))), ["small"], Silent())


class OtherTokens(ByteTokenizer):
    """Bytes whose first two have changed places."""

    @property
    def native(self) -> bytes:
        return super().native + b"others"

    def _bytes_of(self, token_id: int) -> bytes:
        return super()._bytes_of({8: 9, 9: 8}.get(token_id, token_id))


def test_a_teacher_of_other_tokens_is_refused(tmp_path: Path) -> None:
    config = run_with(teacher=str(bundle_in(tmp_path / "bundle")))
    with pytest.raises(ConfigError, match=r"its tokenizer is not the run's \(id 8 is .*, not .*\); set shared_ids=8 "):
        named_model(config, "small", "teacher", {}, OtherTokens(), build_mesh(MeshConfig()))
    require_same_ids("teacher", ByteTokenizer(), OtherTokens(), 8)
    with pytest.raises(ConfigError, match=r"set shared_ids=8"):
        require_same_ids("teacher", ByteTokenizer(), OtherTokens(), 9)


@pytest.mark.parametrize("rows", [256, 272])
def test_a_teacher_with_more_or_fewer_rows_has_the_students(tmp_path: Path, rows: int) -> None:
    folder = bundle_in(tmp_path / "bundle", MODEL | {"vocab_size": rows})
    config = run_with(teacher=str(folder), shared_ids=256)
    model, params = named_model(config, "small", "teacher", {}, ByteTokenizer(), build_mesh(MeshConfig()))
    own = random_params(ModelConfig.model_validate(MODEL | {"vocab_size": rows}))
    assert model.vocab_size == 264
    for name in ("embed", "head"):
        assert params[name].shape == (264, MODEL["d_model"]) and not np.any(params[name][rows:])
        np.testing.assert_array_equal(params[name][:256], own[name][:256])


def test_rows_with_ids_that_the_teacher_does_not_know_are_named() -> None:
    train = DistillationConfig(teacher="wide", steps=1, seq_len=8, global_batch_size=1, shared_ids=100)
    report = RowsReport("own.jsonl")
    report.names.extend(["own.jsonl:1", "own.jsonl:2"])
    known, unknown = EncodedRow([1, 99], [False, True]), EncodedRow([1, 100], [False, True])
    require_shared(train, [known, known], report)
    with pytest.raises(ConfigError, match=r"1 of 2 rows, the first of them own\.jsonl:2, have ids from shared_ids=100"):
        require_shared(train, [known, unknown], report)


def test_a_plan_counts_the_teacher() -> None:
    config = run_with()
    train, model = config.train["small"], config.trained_model("small")
    mesh, others = build_mesh(MeshConfig()), config.held_models("small")
    alone, both = (train_program(model, train, mesh, "train.small", more) for more in ({}, others))
    sizes = [bytes_by_part(program.arguments())["parameters"] for program in (alone, both)]
    of_teacher = sum(array.size for array in jax.tree.leaves(abstract_params(others["teacher"])))
    assert sizes[1] - sizes[0] == 4 * of_teacher  # float32 on a CPU
    assert both.work.flops == alone.work.flops + both.work.tokens * config.held_flops("small")
    assert len(jax.tree.leaves(both.lower().in_avals)) > len(jax.tree.leaves(abstract_params(model)))
    with pytest.raises(ConfigError, match=r"train\.small\.teacher: the search reckons with one model"):
        search_and_show(config, "small", True, parse_topology("v5e:2x2"), Console(), Silent())
