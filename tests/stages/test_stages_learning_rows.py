"""What a training stage reads: its sources in their shares, and held-out bits per byte in windows of its rows."""

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lifecycle.core.progress import Silent
from lifecycle.core.typing import Array
from lifecycle.data.shard_writing import write_token_shards
from lifecycle.data.shards import ShardError, TokenShards
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import forward
from lifecycle.model.embedding import logits
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.stages.learner import Learner, encoded_rows, rows_seen
from lifecycle.stages.learning_rows import chat_rows, heldout_bits, mixture_of, require_sources, step_rows
from lifecycle.stages.preference_rows import pair_rows
from lifecycle.stages.row_origins import write_origins
from lifecycle.stages.rows import epoch_rows
from lifecycle.testing.families import random_params
from lifecycle.testing.notes import Notes
from lifecycle.testing.tiny_rows import example
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.config import RowsConfig
from lifecycle.text.row_encoder import EncodedGroup
from lifecycle.text.row_files import RowError, write_rows
from lifecycle.text.rows import RowsReport
from lifecycle.training.hooks.evaluate import Evaluate
from lifecycle.training.likelihood import NextTokenConfig, SftConfig
from lifecycle.training.mixture import PERIOD
from lifecycle.training.optimizer_config import OptimizerConfig
from lifecycle.training.preference import DpoConfig, ProcessRewardModelConfig
from lifecycle.training.reference import REFERENCE
from lifecycle.training.step_rows import STEP_LABELS
from lifecycle.training.token_rows import TokenRows
from tests.held_out import Sources, one_source

CONFIG = ModelConfig(
    vocab_size=64, d_model=32, d_ff=64, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, max_seq_len=256
)
TRAIN = NextTokenConfig(
    steps=1, seq_len=16, global_batch_size=1, eval_bytes=800, optimizer=OptimizerConfig(name="adamw")
)


@pytest.mark.slow
def test_bits_are_of_windows_of_the_trainings_length() -> None:
    params, mesh = random_params(CONFIG), build_mesh(MeshConfig())
    params = jax.tree.map(lambda x: 8 * x, params)  # so that what is seen matters
    draw = np.random.default_rng(0)
    documents: Any = one_source(
        draw.integers(0, 64, 100) for _ in range(3)
    )  # 200 bytes each: a quarter of 800, not cut

    @jax.jit
    def logprobs_of(tokens: Array) -> Array:
        hidden = forward(CONFIG, params, tokens, jnp.arange(tokens.shape[1])[None])
        return jax.nn.log_softmax(logits(CONFIG, params, hidden))[0]

    def nats(length: int) -> float:
        total = 0.0
        for document in documents:
            for start in range(0, len(document) - 1, length):
                window = document[start : start + length + 1]
                logprobs = logprobs_of(window[None, :-1])
                total -= float(logprobs[np.arange(len(window) - 1), window[1:]].sum())
        return total

    evaluation = heldout_bits(CONFIG, TRAIN, documents, np.full(64, 2), mesh)
    assert evaluation is not None and evaluation.every == TRAIN.eval_every
    found = evaluation.measure(params)["heldout_bits_per_byte"]
    assert found == pytest.approx(nats(16) / math.log(2) / 600, rel=1e-5)
    assert abs(nats(16) - nats(256)) > 1e-2 * nats(16)  # with the model's context it would be another number


def test_each_source_is_measured_on_as_much_text() -> None:
    """Documents are in the order of their sources, and the first source alone has more text than is measured."""
    draw = np.random.default_rng(0)
    names = ["a"] * 30 + ["b"] * 3 + ["c"] * 20
    documents: Any = Sources([draw.integers(0, 64, 40) for _ in names], names)
    evaluation = heldout_bits(CONFIG, TRAIN, documents, np.full(64, 2), build_mesh(MeshConfig()))
    assert evaluation is not None
    measured = evaluation.measure(random_params(CONFIG))
    parts = {name: measured[f"heldout_bits_per_byte.{name}"] for name in "abc"}
    # 266 bytes of each: of a and c five documents of 66 bytes, a quarter, of b all three
    assert measured["heldout_bits_per_byte"] == pytest.approx((5 * parts["a"] + 3 * parts["b"] + 5 * parts["c"]) / 13)
    assert list(measured) == ["heldout_bits_per_byte", *(f"heldout_bits_per_byte.{name}" for name in "abc")]


def test_a_mixture_has_each_source_in_its_share(tmp_path: Path) -> None:
    texts = {"code": ["x = 1\n" * 40] * 5, "prose": ["Two words. " * 30] * 9}
    for split in ("kept", "heldout"):
        table = [{"id": "0" * 32, "text": text, "source": name} for name, own in texts.items() for text in own]
        pq.write_table(pa.Table.from_pylist(table), tmp_path / f"{split}-00000.parquet")
    words = ByteTokenizer()
    write_token_shards({"": tmp_path}, words, tmp_path / "shards", Silent())
    shards = TokenShards(tmp_path / "shards")

    def is_code(mixture: dict[str, float]) -> list[bool]:
        rows = TokenRows(shards, TRAIN.seq_len, mixture, seed=0)
        return ["=" in words.decode(rows.row(n)["tokens"].tolist()) for n in range(PERIOD)]

    assert sum(is_code({})) / PERIOD == pytest.approx(1210 / 4198, abs=0.02)  # by their tokens
    assert sum(is_code({"code": 3, "prose": 1})) == PERIOD * 3 // 4
    assert all(is_code({"code": 1}))
    mixed = [TRAIN.model_copy(update={"mixture": {name: 1.0}}) for name in ("code", "law")]
    require_sources([TRAIN, mixed[0]], shards)
    with pytest.raises(ShardError, match="no document of source 'law' in train; there are code, prose"):
        require_sources([TRAIN, *mixed], shards)


def test_a_mixture_by_size_follows_from_the_shards_and_warns_of_many_epochs(tmp_path: Path) -> None:
    rows = [{"id": "0" * 32, "text": "x" * size, "source": name} for name, size in (("a", 98), ("a", 298), ("b", 98))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "kept-00000.parquet")
    stats = write_token_shards({"": tmp_path}, ByteTokenizer(), tmp_path / "shards", Silent())
    assert stats["source_tokens"] == {"train": {"a": 400, "b": 100}, "heldout": {}}
    shards, notes = TokenShards(tmp_path / "shards"), Notes()
    sized = TRAIN.model_copy(update={"mixture": "size", "steps": 100})  # 1,600 tokens
    weights, facts = mixture_of(sized, 100, shards, notes)
    assert weights == {"a": 819, "b": 205} and not notes.notes
    assert facts["mixture"]["b"] == {"tokens": 100, "share": 205 / PERIOD, "epochs": 16 * 205 / PERIOD}
    raised = sized.model_copy(update={"mixture": {"temperature": 1e9}})
    assert mixture_of(raised, 100, shards, notes)[0] == {"a": 512, "b": 512}
    assert notes.notes == ["mixture: epochs of sources: b 8.0; beyond about 4 repeated text adds little"]
    assert mixture_of(raised, 50, shards, notes)[1]["mixture"]["b"]["epochs"] == 4.0 and len(notes.notes) == 1
    phases = [TokenRows(shards, 16, mixture, seed=0) for mixture in (weights, {"a": 819.0, "b": 205.0})]
    assert phases[0].fingerprint == phases[1].fingerprint, "as the same weights by hand"
    assert mixture_of(TRAIN, 100, shards, notes) == ({}, {})


def test_nothing_held_out_is_no_measurement() -> None:
    nothing: Any = one_source([])
    assert heldout_bits(CONFIG, TRAIN, nothing, np.ones(64, np.int64), build_mesh(MeshConfig())) is None


@pytest.mark.parametrize(
    ("setting", "of_train", "of_heldout"), [("precision", "int8", None), ("weights", "rounded", "rounded")]
)
def test_a_reference_is_computed_as_the_stage_computes_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, of_train: str, of_heldout: str | None
) -> None:
    """With a `precision` held-out rows are those of plain weights; both are kept under names of their own. Weights for
    a format are rounded for all rows."""
    draw = np.random.default_rng(0)
    found: dict[str, tuple[str | None, str]] = {}
    plain = random_params(CONFIG)

    def load(_learner: Any, _inputs: Any, kind: str, split: str, _: Any) -> tuple[list[Any], RowsReport]:
        rows: Any = (example(draw, [1], 2), example(draw, [1], 3))
        group: Any = EncodedGroup(rows)
        return [group], RowsReport(kind, names=[f"{kind}-{split}.jsonl:1"])

    def reference(model: Any, params: Any, rows: Any, size: int, mesh: Any, path: Path, *rest: Any) -> Any:
        is_plain = jnp.array_equal(params["embed"], plain["embed"])
        found[rows.contents(0)["rows"][0].partition(":")[0]] = (
            rest[1].precision if is_plain else "rounded",
            path.name,
        )
        return {REFERENCE: np.zeros((rows.num_groups, 2), np.float32)}

    replaced = {"heldout_measurement": MagicMock()}
    for name, value in (replaced | {"encoded_rows": load, "reference_logprobs": reference}).items():
        monkeypatch.setattr(f"lifecycle.stages.preference_rows.{name}", value)
    train = DpoConfig.model_validate(
        {"objective": "dpo", "steps": 1, "seq_len": 16, "global_batch_size": 1, setting: "int8"}
    )
    start = {"start": plain, "start_hash": "", "seeds": {"pairs": 0}, "tokenizer": None}
    learner: Any = SimpleNamespace(train=train, model=CONFIG, mesh=build_mesh(MeshConfig()), **start)
    inputs: Any = {name: SimpleNamespace(path=tmp_path) for name in ("tokenizer", "rows")}
    pair_rows(learner, inputs, tmp_path, Silent())
    assert {split: precision for split, (precision, _) in found.items()} == {
        "pairs-train.jsonl": of_train,
        "pairs-heldout.jsonl": of_heldout,
    }
    assert len({name for _, name in found.values()}) == 2


def test_a_stage_knows_how_many_rows_its_steps_may_see() -> None:
    settings: dict[str, Any] = {"objective": "dpo", "seq_len": 16, "global_batch_size": 4}
    assert rows_seen(DpoConfig.model_validate(settings | {"steps": 5})) == 20
    for other in ({"epochs": 2}, {"steps": 5, "from": "a@3"}, {"steps": 5, "faults": {"policy": "rollback"}}):
        assert rows_seen(DpoConfig.model_validate(settings | other)) == math.inf


def test_rows_are_repeated_to_their_files_shares_and_known_by_the_users_lines(tmp_path: Path) -> None:
    ByteTokenizer().save(tmp_path)
    long = [{"text": "a" * 99}]
    for side in ("train", "heldout"):
        path = tmp_path / f"chat-{side}.jsonl"
        write_rows(path, [{"text": "one"}, {"text": "two"}, *long, {"text": "three"}, {"text": "four"}])
        write_origins(path, [(0, 2), (0, 3), (1, 7), (1, 8), (1, 9)])
    stats = {"own": {"chat": {"files": ["a.jsonl", "b.parquet"], "weights": [3.0, 1.0]}}}
    inputs: Any = {"rows": SimpleNamespace(path=tmp_path, stats=stats), "tokenizer": SimpleNamespace(path=tmp_path)}
    settings: dict[str, Any] = {"objective": "sft", "epochs": 1, "seq_len": 32, "global_batch_size": 1}
    train, notes = SftConfig.model_validate(settings), Notes()
    learner: Any = SimpleNamespace(train=train, tokenizer=ByteTokenizer(), own=RowsConfig(max_dropped=0.5))
    rows, report = encoded_rows(learner, inputs, "chat", "train", notes)
    assert Counter(map(report.name, range(len(rows)))) == {
        "a.jsonl:2": 3,
        "a.jsonl:3": 3,
        "b.parquet:8": 1,
        "b.parquet:9": 1,
    }
    assert rows[0] == rows[2] != rows[1] and report.examples == ["b.parquet:7: longer than 32 tokens (101)"]
    assert notes.notes == ["chat rows, train: 4 of 5 rows kept; dropped: 1 longer than 32 tokens"]
    assert len(encoded_rows(learner, inputs, "chat", "heldout", notes)[0]) == 4
    learner.own = RowsConfig()
    with pytest.raises(RowError, match=r"20.0% of the rows would be dropped, and rows\.max_dropped=0\.1: 4 of 5"):
        encoded_rows(learner, inputs, "chat", "train", notes)
    learner.train = train.model_copy(update={"truncation": "keep_end"})
    assert encoded_rows(learner, inputs, "chat", "train", notes)[1].truncated == 1


def reading(tmp_path: Path, kind: str, rows: list[dict[str, Any]], train: Any) -> tuple[Learner, Any]:
    """A learner with rows of a kind on both sides, and its inputs."""
    ByteTokenizer().save(tmp_path)
    for side in ("train", "heldout"):
        path = tmp_path / f"{kind}-{side}.jsonl"
        write_rows(path, rows)
        write_origins(path, [(0, number) for number in range(len(rows))])
    stats = {"own": {kind: {"files": ["own.jsonl"], "weights": []}}}
    inputs: Any = {"rows": SimpleNamespace(path=tmp_path, stats=stats), "tokenizer": SimpleNamespace(path=tmp_path)}
    model = CONFIG.model_copy(update={"vocab_size": 264})
    words, mesh = ByteTokenizer(), build_mesh(MeshConfig())
    return Learner(train, train.trained(model), mesh, train, words, {}, "", {kind: 0}, RowsConfig()), inputs


def test_wrapped_rows_are_full_and_none_is_too_long(tmp_path: Path) -> None:
    texts = ["a" * 99, "one", "b" * 50]
    settings: dict[str, Any] = {"objective": "sft", "steps": 1, "seq_len": 32, "global_batch_size": 1}
    train = SftConfig.model_validate(settings | {"packing": "wrapped"})
    learned = chat_rows(*reading(tmp_path, "chat", [{"text": text} for text in texts], train), tmp_path, Silent())
    assert learned.facts["examples"] == 3 and not learned.facts["dropped"]
    assert learned.rows is not None and learned.rows.num_rows == learned.epoch_rows == 5  # of 158 tokens
    sizes = [(learned.rows.row(index)["segment_ids"] > 0).sum() for index in range(5)]
    assert sorted(sizes) == [158 - 4 * 32, 32, 32, 32, 32]
    assert epoch_rows(train, [101, 5, 52]) == 5
    with pytest.raises(ValueError, match="packing=wrapped cuts rows of any length"):
        SftConfig.model_validate(settings | {"packing": "wrapped", "truncation": "keep_end"})


@pytest.mark.parametrize("last_step_only", [False, True])
def test_steps_are_learned_at_their_last_tokens(tmp_path: Path, last_step_only: bool) -> None:
    rows = [{"prompt": "1 + 1 + 1?", "completions": ["2", "3", "4"], "labels": [True, True, False]}]
    settings: dict[str, Any] = {"objective": "process_reward_model", "steps": 1, "seq_len": 32, "global_batch_size": 1}
    train = ProcessRewardModelConfig.model_validate(settings | {"last_step_only": last_step_only})
    learner, inputs = reading(tmp_path, "steps", rows, train)
    learned = step_rows(learner, inputs, tmp_path, Silent())
    assert learned.rows is not None and learned.rows.contents(0) == {"examples": ["own.jsonl:0"]}
    row = learned.rows.row(0)
    begin = 1 + len("1 + 1 + 1?")
    ends = {begin + 1: 1.0, begin + 3: 1.0, begin + 5: -1.0}  # of a step and the line's end behind it
    expected = {place: sign for place, sign in ends.items() if sign < 0 or not last_step_only}
    assert dict(zip(*np.nonzero(row[STEP_LABELS]), row[STEP_LABELS][row[STEP_LABELS] != 0], strict=True)) == expected
    params = random_params(learner.model)
    (measurement,) = learned.hooks
    assert isinstance(measurement, Evaluate)
    found = measurement.measure(params)
    hidden = forward(learner.model, params, jnp.asarray(row["tokens"])[None], jnp.arange(32)[None])[0]
    scores = np.asarray(hidden @ params["score"])[list(ends)]
    signs = np.array(list(ends.values()))
    assert found["heldout_loss"] == pytest.approx(np.log1p(np.exp(-signs * scores)).mean(), rel=1e-5)
    assert found["heldout_accuracy"] == pytest.approx((signs * scores > 0).mean())


@pytest.mark.parametrize(("epochs", "rows", "steps"), [(1, 8, 2), (2, 9, 5), (0.01, 9, 1), (0.5, 16.0, 2)])
def test_steps_follow_from_epochs(epochs: float, rows: float, steps: int) -> None:
    settings: dict[str, Any] = {"objective": "sft", "epochs": epochs, "seq_len": 32, "global_batch_size": 4}
    train = SftConfig.model_validate(settings)
    assert (train.steps, train.resolved(rows).steps) == (0, steps)
    given = SftConfig.model_validate(settings | {"epochs": None, "steps": 7})
    assert given.resolved(rows) is given
