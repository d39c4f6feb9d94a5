"""Whole runs of tiny models in this process: graphs other than the shipped ones, and a job that changes its mesh."""

import json
import math
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest

from lifecycle.core.config import ConfigError, load_config, validate
from lifecycle.core.progress import Silent
from lifecycle.core.runlog import METRICS, read_log
from lifecycle.inference.bundle import load_bundle, load_head
from lifecycle.model.config import DrafterConfig, ModelConfig
from lifecycle.ops.lineage import trace_artifact
from lifecycle.ops.registry import Registry
from lifecycle.stages.chain import bring_up_to_date, finished_stage
from lifecycle.stages.config import RunConfig
from lifecycle.testing.families import random_params
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatTemplate
from lifecycle.weights.published import save_weights

CONFIGS = Path(__file__).parents[2] / "configs"
MODEL = {"vocab_size": 264, "d_model": 32, "d_ff": 64, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2,
         "head_dim": 16, "max_seq_len": 128}  # fmt: skip
SIZES = {"steps": 2, "seq_len": 128, "global_batch_size": 4, "eval_every": 2, "log_every": 1}


def chat_rows(path: Path, count: int = 24) -> Path:
    rows = (
        {"messages": [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": f"It is {i}."}]}
        for i in range(count)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """What an import of a tiny model leaves."""
    folder, model, words = tmp_path / "bundle", ModelConfig.model_validate(MODEL), ByteTokenizer()
    folder.mkdir()
    save_weights(model, random_params(model, 3), folder)
    words.save(folder)
    ChatTemplate(words).save(folder)
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.5}')
    return folder


@pytest.mark.slow
def test_the_shipped_fine_tuning_of_a_bundle_makes_a_registered_chat_model(tmp_path: Path, bundle: Path) -> None:
    """configs/from_smollm2.yaml as it is, but for another bundle and sizes that a test can afford."""
    sizes = (f"train.chat.{name}={value}" for name, value in (SIZES | {"optimizer": "{}"}).items())
    rows = chat_rows(tmp_path / "own.jsonl")
    config = load_config(
        RunConfig,
        CONFIGS / "from_smollm2.yaml",
        [f"model={MODEL}", "tokenizer={kind: bytes}", f"rows.chat=[{rows}]", f"train.chat.from={bundle}", *sizes,
         f"root={tmp_path}", "train.chat.steps=0", "train.chat.epochs=2"],
    )  # fmt: skip
    made = bring_up_to_date(config, ["report"], Silent())
    assert list(made) == ["tokenizer", "rows", "chat", "export", "register", "report"]
    epochs = 2 * made["rows"].stats["epoch_rows"]["chat"] / SIZES["global_batch_size"]
    assert made["chat"].stats["steps"] == math.ceil(epochs) > 0
    model = load_bundle(made["export"].path)
    assert model.defaults.temperature == 0.5  # as the bundle that the weights go back to
    before = load_bundle(bundle).params
    moved = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), model.params, before)
    assert 0 < max(jax.tree.leaves(moved)) < 0.1  # went on from it, and learned
    trained = trace_artifact(made["export"].path)["inputs"]["chat"]
    assert trained["inputs"]["bundle"]["path"] == str(bundle) and trained["inputs"]["bundle"]["state"] == "no manifest"
    version = Registry(config.registry_path).resolve("production")
    assert version.kind == "chat" and made["register"].stats["promoted"]


@pytest.mark.long
def test_stages_of_two_models_train_in_one_run(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    words = "The quick brown fox jumps over the lazy dog and then it goes home to sleep until the morning comes. "
    for number in range(12):
        (corpus / f"{number}.txt").write_text("".join(f"{number * i} {words}" for i in range(1, 9)))
    small = MODEL | {"d_model": 16, "head_dim": 8}
    tree: dict[str, Any] = {
        "name": "two",
        "root": tmp_path,
        "data": {
            "sources": [{"name": "own", "path": str(corpus)}], "heldout_fraction": 0.3, "workers": 1,
            "dedup": {"jaccard": 1},
            "quality": {"repetition": None, "gopher": {"min_stop_words": None, "min_alphabetic_words": None}},
        },
        "tokenizer": {"kind": "bytes"},
        "model": {"big": MODEL, "small": small},
        "train": {
            "base": {"objective": "next_token", **SIZES},
            "small": {"objective": "next_token", "model": "small", **SIZES},
            "more": {"objective": "next_token", "model": "small", **SIZES},
        },
        "export": {"of": "more"},
    }  # fmt: skip
    config = validate(RunConfig, tree)
    made = bring_up_to_date(config, ["report"], Silent())
    assert made["base"].stats["parameters"] > 2 * made["small"].stats["parameters"]
    assert made["more"].manifest.inputs["small"] == made["small"].path.name
    assert load_bundle(made["export"].path).config.d_model == 16
    assert Registry(config.registry_path).resolve("production").kind == "base"
    assert all(name in (made["report"].path / "report.md").read_text() for name in ("base", "small", "more"))
    shorter = validate(RunConfig, tree | {"seed": 1})
    with pytest.raises(ConfigError, match=r"stage more is not finished; run: .* --until more"):
        finished_stage(shorter, "more")


@pytest.mark.long
def test_a_run_trains_a_drafter_and_exports_it_with_its_target(tmp_path: Path, bundle: Path) -> None:
    sizes = SIZES | {"draft_steps": 2}
    drafts = {"objective": "eagle", "draft_vocab": 240, **sizes}
    model = MODEL | {"num_layers": 3}
    target = ModelConfig.model_validate(model)
    save_weights(target, random_params(target, 3), bundle)
    tree: dict[str, Any] = {
        "name": "drafted",
        "root": tmp_path,
        "rows": {"chat": [str(chat_rows(tmp_path / "own.jsonl"))], "heldout_fraction": 0.3},
        "tokenizer": {"kind": "bytes"},
        "model": model,
        "train": {"drafts": drafts | {"from": str(bundle)}, "more": drafts | {"steps": 4}},
    }
    made = bring_up_to_date(validate(RunConfig, tree), ["report"], Silent())
    exported, before = load_bundle(made["export"].path), load_bundle(bundle)
    head = load_head(exported.config, made["export"].path)
    assert load_head(before.config, bundle) is None and head is not None
    assert exported.config == before.config
    chex.assert_trees_all_equal(exported.params, before.params)
    assert head[0].drafter == DrafterConfig(vocab_size=240, d_ff=64, layers=(0, 1, 2))
    vocabulary = head[1]["vocabulary"]
    assert np.array_equal(vocabulary["head"], exported.params["head"][vocabulary["ids"].astype(int)])
    first, last = (list(read_log(made[stage].path / METRICS)) for stage in ("drafts", "more"))
    assert {"acceptance_1", "acceptance_2", "accepted", "loss"} <= set().union(*first)
    measured = [[record["heldout_loss"] for record in log if "heldout_loss" in record] for log in (first, last)]
    assert measured[1][0] == pytest.approx(measured[0][-1], rel=1e-6) != measured[0][0]  # the same drafter goes on
    # what comes after a drafter has none
    tree["train"]["chat"] = {"objective": "sft", "from": "drafts", **SIZES}
    chat = bring_up_to_date(validate(RunConfig, tree), ["export"], Silent())
    assert load_head(exported.config, chat["export"].path) is None


class Stopped(Exception):
    """What ends a session in the middle."""


class StopAt(Silent):
    """Ends the session once the steps are done: as a kill would, without a word to the loop."""

    def __init__(self, step: int) -> None:
        self.step = step

    def update(self, done: int, total: int | None = None, **metrics: Any) -> None:
        if "loss" in metrics and done >= self.step:
            raise Stopped


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in read_log(folder / "metrics.jsonl") if "loss" in record]


@pytest.mark.long
def test_a_job_that_comes_back_on_another_mesh_goes_on_from_its_checkpoint(tmp_path: Path, bundle: Path) -> None:
    rows = chat_rows(tmp_path / "own.jsonl", 60)
    sizes = SIZES | {"steps": 8, "global_batch_size": 8, "checkpoint": {"every": 2}}
    train = {"chat": {"objective": "sft", "from": str(bundle), **sizes}}

    def config(name: str, fsdp: int, **settings: Any) -> RunConfig:
        stages = {"chat": train["chat"] | settings}
        tree = {"name": name, "root": tmp_path, "tokenizer": {"kind": "bytes"}, "model": MODEL, "train": stages}
        return validate(RunConfig, tree | {"rows": {"chat": [rows]}, "mesh": {"fsdp": fsdp}})

    whole = bring_up_to_date(config("whole", 2), ["chat"], Silent())["chat"]
    with pytest.raises(Stopped):
        bring_up_to_date(config("moved", 2), ["chat"], StopAt(5))
    moved = bring_up_to_date(config("moved", 4, grad_accum=2, eval_every=4), ["chat"], Silent())["chat"]
    assert moved.path.name == whole.path.name  # the same key: what is learned is the same
    assert [step for step, _ in losses(moved.path)] == list(range(1, 9))
    np.testing.assert_allclose(*([loss for _, loss in losses(run.path)] for run in (moved, whole)), rtol=1e-6)
    sessions = [
        (how["mesh"]["fsdp"], *(how[name] for name in ("grad_accum", "eval_every", "from_step", "to_step")))
        for how in moved.manifest.how
    ]
    assert sessions == [(2, 1, 2, 0, 4), (4, 2, 4, 4, 8)]
    assert [record["step"] for record in read_log(moved.path / METRICS) if "heldout_loss" in record] == [0, 2, 4, 8]
    assert all(how["processes"] == 1 and len(how["hosts"]) == 1 for how in moved.manifest.how)
    context = config("whole", 2).model.max_seq_len
    assert [(how["mesh"]["fsdp"], how["max_seq_len"]) for how in whole.manifest.how] == [(2, context)]
