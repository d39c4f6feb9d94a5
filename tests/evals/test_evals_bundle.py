"""A bundle scored on a file of tasks, without a run: what is asked, what is kept, and bundles without turns."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lifecycle.cli.evaluate_bundle import results_table
from lifecycle.core.config import ConfigError, load_config, validate
from lifecycle.core.progress import Silent
from lifecycle.evals.bundle import BundleTasksConfig, score_bundle
from lifecycle.evals.greedy import greedy_loglikelihoods
from lifecycle.evals.results import read_results
from lifecycle.model.config import ModelConfig
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.testing.families import random_params
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import DEFAULT_TEMPLATE, TEMPLATE_FILE
from lifecycle.training.scoring import document_nats, loglikelihoods
from lifecycle.weights.published import save_weights

MODEL = ModelConfig(
    vocab_size=264, d_model=32, d_ff=64, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=16, max_seq_len=64
)
TEXTS = ("A first document, of some length.", "A second one.")
ROWS = {
    "text": [{"text": text} for text in TEXTS],
    "choice": [{"query": "2 + 2 =", "choices": [" 4", " 5"], "gold": n} for n in (0, 1)],
    "word": [{"prompt": "2 + 2 =", "answer": answer} for answer in ("4", "5")],
    "ask": [{"prompt": prompt, "answer": "4"} for prompt in ("2 + 2?", "1 + 3?")],
}
KINDS = {"text": "bits_per_byte", "choice": "multiple_choice", "word": "greedy_match", "ask": "generate"}
PARAMS = random_params(MODEL)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A bundle without a chat template."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    save_weights(MODEL, PARAMS, folder)
    ByteTokenizer().save(folder)
    return folder


def tasks(folder: Path, names: Iterable[str], **settings: object) -> Path:
    """A file of these kinds of tasks, with these settings for those that may be chats."""
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    each = [{"name": name, "kind": KINDS[name], "rows": str(folder / f"{name}.jsonl")} for name in names]
    own = {"text": {}, "choice": settings, "word": settings, "ask": settings | {"max_tokens": 4}}
    chats = [task | own[task["name"]] for task in each]
    path = folder / "tasks.yaml"
    path.write_text(json.dumps({"tasks": chats, "root": str(folder / "evaluations")}))  # JSON is YAML
    return path


@pytest.mark.slow
def test_a_base_model_is_scored_in_plain_text(base: Path, tmp_path: Path) -> None:
    result = score_bundle(load_config(BundleTasksConfig, tasks(tmp_path, KINDS, chat=False)), base, Silent())
    text, choice, word, ask = read_results(result.path)
    tokenizer = ByteTokenizer()
    ids = [np.array([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]) for text in TEXTS]
    nats = float(sum(document_nats(MODEL, PARAMS, ids, MODEL.max_seq_len, build_mesh(MeshConfig()))))
    tokens, size = sum(len(document) - 1 for document in ids), sum(len(text) for text in TEXTS)
    assert text.mean == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert text.other == {"perplexity": pytest.approx(math.exp(nats / tokens), rel=1e-5)}
    assert choice.mean == 0.5  # the same choices, once with each of them as the right one
    asked = [([tokenizer.bos_id, *tokenizer.encode("2 + 2 =")], tokenizer.encode(answer)) for answer in "45"]
    nats = -sum(loglikelihoods(MODEL, PARAMS, asked, build_mesh(MeshConfig())))
    assert word.other == {"nats_per_answer": pytest.approx(nats / 2, rel=1e-5)}
    assert [len(example.detail["output"]) > 0 for example in ask.examples] == [True, True]


def test_the_greedy_continuation_is_the_likeliest_at_each_position() -> None:
    """Against the log-likelihoods of every id of the vocabulary, one position at a time."""
    mesh, ids, steps = build_mesh(MeshConfig()), [ByteTokenizer().bos_id, *b"2 + 2 ="], []
    for _ in range(2):
        by_id = loglikelihoods(MODEL, PARAMS, [(ids, [token]) for token in range(MODEL.vocab_size)], mesh)
        steps.append(np.argsort(by_id))
        ids = [*ids, int(steps[-1][-1])]
    context, best, second = ids[:-2], ids[-2:], [int(order[-2]) for order in steps]
    pairs = [(context, best), (context, [second[0], best[1]]), (context, [best[0], second[1]]), (context, best[:1])]
    scored = greedy_loglikelihoods(MODEL, PARAMS, pairs, mesh, MODEL.vocab_size)
    assert [is_greedy for _, is_greedy in scored] == [True, False, False, True]
    assert [logprob for logprob, _ in scored] == pytest.approx(loglikelihoods(MODEL, PARAMS, pairs, mesh), rel=1e-5)


def test_the_table_says_which_rows_were_scored(make_result: Any) -> None:
    rows = {"kind": "generate", "rows": "x"}
    tasks = [{"name": "a", **rows, "limit": 3}, {"name": "b", **rows, "head": 3}, {"name": "c", **rows}]
    result = make_result("a", [1.0, 0.0, 1.0]).model_copy(
        update={"skipped": ["x:1: empty"] * 7, "doubtful": ["x:2: y"]}
    )
    table = results_table(validate(BundleTasksConfig, {"tasks": tasks}), [result] * 3)
    shown = [list(column.cells) for column in table.columns]
    assert shown[-2:] == [["3"] * 3, [f"skipped 7  doubtful 1{how}" for how in ("  rows by hash", "  first rows", "")]]


def test_a_chat_task_needs_a_template(base: Path, tmp_path: Path) -> None:
    config = load_config(BundleTasksConfig, tasks(tmp_path, ["ask"]))
    with pytest.raises(ConfigError, match=r"no chat template; set `chat: false`"):
        score_bundle(config, base, Silent())
    (base / TEMPLATE_FILE).write_text(DEFAULT_TEMPLATE)
    assert score_bundle(config, base, Silent()).stats["tasks"]["ask"]["n"] == 2


def test_the_same_question_is_answered_once(base: Path, tmp_path: Path) -> None:
    path = tasks(tmp_path, ["text"])
    first = score_bundle(load_config(BundleTasksConfig, path), base, Silent())
    assert score_bundle(load_config(BundleTasksConfig, path), base, Silent()).manifest == first.manifest
    shorter = score_bundle(load_config(BundleTasksConfig, path, ["max_seq_len=16"]), base, Silent())
    assert shorter.path != first.path
    assert shorter.stats["tasks"]["text"]["mean"] != first.stats["tasks"]["text"]["mean"]
    (base / "config.json").write_text((base / "config.json").read_text() + "\n")
    assert score_bundle(load_config(BundleTasksConfig, path), base, Silent()).path not in (first.path, shorter.path)


def test_rows_of_a_runs_artifacts_are_not_there(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "tasks.yaml"
    path.write_text("tasks: [{name: text, kind: bits_per_byte, rows: '@documents/heldout-*.parquet'}]")
    with pytest.raises(ConfigError, match="no input 'documents'"):
        score_bundle(load_config(BundleTasksConfig, path, [f"root={tmp_path}"]), base, Silent())


@pytest.mark.long
def test_a_mesh_gives_the_same_scores_and_is_no_part_of_the_question(base: Path, tmp_path: Path) -> None:
    path = tasks(tmp_path, KINDS, chat=False)
    one = score_bundle(load_config(BundleTasksConfig, path), base, Silent())
    again = load_config(BundleTasksConfig, path, ("mesh.tensor=2", "mesh.fsdp=2"))
    assert score_bundle(again, base, Silent()).path == one.path
    elsewhere = again.model_copy(update={"root": tmp_path / "sharded"})
    sharded = score_bundle(elsewhere, base, Silent())
    for found, expected in zip(read_results(sharded.path), read_results(one.path), strict=True):
        assert found.mean == pytest.approx(expected.mean, rel=1e-5)
        assert found.other == pytest.approx(expected.other, rel=1e-5)
        outputs = [[example.detail.get("output") for example in result.examples] for result in (found, expected)]
        assert outputs[0] == outputs[1]
    with pytest.raises(ConfigError, match=r"mesh\.tensor=4 does not divide model\.num_heads=2"):
        odd = elsewhere.model_copy(update={"mesh": MeshConfig(tensor=4), "root": tmp_path / "other"})
        score_bundle(odd, base, Silent())
