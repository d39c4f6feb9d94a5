"""`lifecycle doctor`: rows as the model sees them, and what becomes of them, without training anything."""

import json
from pathlib import Path

import pytest

from lifecycle.cli.doctor import doctor, shown
from lifecycle.core.config import ConfigError
from lifecycle.core.lease import InUse, locked
from lifecycle.stages.doctor import packed, suggested_length
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.row_encoder import EncodedRow
from lifecycle.text.row_files import RowError

RUN = """
name: run
tokenizer: {kind: bytes}
rows: {chat: [own.jsonl], pairs: [pairs.json], max_dropped: 0.5}
model:
  {vocab_size: 261, d_model: 8, d_ff: 8, num_layers: 1, num_heads: 1, num_kv_heads: 1, head_dim: 8, max_seq_len: 512}
train:
  sft: {objective: sft, epochs: 2, seq_len: 64, global_batch_size: 2}
  prefer: {objective: dpo, steps: 4, seq_len: 96, global_batch_size: 2, truncation: keep_start}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    rows = [{"prompt": f"q{n}: ", "completion": "an answer"} for n in range(9)]
    rows += [rows[0], {"prompt": "long", "completion": "a" * 90}, {"prompt": "e", "completion": ""}]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": f"q{n}", "chosen": "a" * 60, "rejected": "\x1b[31mb"} for n in range(4)]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    (tmp_path / "run.yaml").write_text(RUN)
    return tmp_path / "run.yaml"


def test_rows_are_printed_as_the_model_sees_them(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor(run, "sft", rows=2)
    out = capsys.readouterr().out
    assert "own.jsonl:2\n⟨<s>⟩q1: «an answer⟨</s>⟩»\n" in out and out.count("⟨<s>⟩") == 2
    assert "own rows: 10 of 12 kept; dropped: 1 doubled, 1 empty completion" in out
    assert "own.jsonl:10: doubled (as own.jsonl:1)" in out
    assert "contamination: the run has no files of evaluation rows" in out
    assert (
        "train rows: 8 of 9 rows kept; dropped: 1 longer than 64 tokens\n  own.jsonl:11: longer than 64 tokens" in out
    )
    assert "heldout rows: 1 of 1 rows kept" in out
    assert "packing: 8 examples of an epoch in 2 rows of 64 tokens, 93.8% full; 2 steps of 2 rows are 2 epochs" in out
    assert "suggested: train.sft.seq_len=128: 0 of 9 training rows are longer, and packed rows are" in out
    assert {path.name.partition("-")[0] for path in (run.parent / "runs/run").iterdir() if path.is_dir()} == {
        "tokenizer", "rows",
    }  # fmt: skip


def test_rows_are_examined_while_a_job_runs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(made_folder(run)), pytest.raises(InUse):
        doctor(run, "sft", rows=0)  # nothing is made yet, and only the owner may
    doctor(run, "sft", rows=0)
    before = capsys.readouterr().out
    with locked(made_folder(run)):
        doctor(run, "sft", rows=0)
        assert capsys.readouterr().out == before
        doctor(run, "prefer", rows=0)  # the same rows' artifact


def made_folder(run: Path) -> Path:
    folder = run.parent / "runs/run"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_rows_that_overlap_an_evaluation_row_are_counted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = "Which of the many small animals that live under the old stones of a garden wall has most legs?"
    (run.parent / "task.jsonl").write_text(json.dumps({"prompt": asked, "answer": "7"}) + "\n")
    (run.parent / "own.jsonl").write_text(
        "".join(json.dumps({"prompt": p, "completion": "a"}) + "\n" for p in (asked, "one", "two", "three"))
    )
    doctor(run, "sft", "evaluate={tasks: [{name: t, kind: generate, rows: task.jsonl}]}", rows=0)
    out = capsys.readouterr().out
    assert "contamination: 1 rows overlap" in out and "own.jsonl:1: overlaps an evaluation row (task.jsonl:1, " in out


def test_both_answers_of_a_pair_are_printed_as_they_are_cut(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor(run, "prefer", "train.prefer.seq_len=64", rows=1)
    out = capsys.readouterr().out
    assert "chosen\n⟨<s>⟩q" in out and "rejected\n⟨<s>⟩q" in out
    assert "«" + "a" * 51 + "»" in out and "\x1b" not in out and "\\x1b[31mb⟨</s>⟩»" in out
    assert "3 of 3 rows kept, 3 of them shortened" in out


def test_rows_of_which_too_many_would_be_dropped_are_examined_all_the_same(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doctor(run, "sft", "rows.max_dropped=0.01", rows=0)
    assert "own rows: 10 of 12 kept" in capsys.readouterr().out


def test_a_stage_without_rows_and_broken_rows_are_told(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"no training stage 'sff'; did you mean 'sft'"):
        doctor(run, "sff")
    (run.parent / "own.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(RowError, match=r"own\.jsonl:1: columns prompt; expected messages"):
        doctor(run, "sft")
    (run.parent / "tokens.yaml").write_text(
        RUN.replace("objective: sft, epochs: 2", "objective: next_token, epochs: 2").replace("chat: [own.jsonl], ", "")
        + "data: {sources: [{name: s, path: ., license: MIT}]}\n"
    )
    with pytest.raises(RowError, match="reads token shards"):
        doctor(run.parent / "tokens.yaml", "sft")


def test_colours_and_marks_say_the_same() -> None:
    words = ByteTokenizer()
    row = EncodedRow([words.bos_id, *b"q\n", *b"a", words.eos_id], [False] * 3 + [True] * 2)
    marked, coloured = shown(words, row, False), shown(words, row, True)
    assert marked.plain == "⟨<s>⟩q⏎\n«a⟨</s>⟩»" and coloured.plain == "<s>q⏎\na</s>"
    styles = {coloured.plain[span.start : span.end]: span.style for span in coloured.spans}
    assert styles == {"<s>": "yellow", "q⏎\n": "dim", "a": "green", "</s>": "bold yellow"}
    steps = EncodedRow([*b"q", *b"ab"], [False, True, True], [0.0, 1.0, 0.0])
    assert shown(words, steps, False).plain.startswith("q«a»=1«b»=0")


def test_a_suggestion_holds_nearly_all_rows() -> None:
    assert suggested_length([100] * 99 + [5000], 4096) == (128, 1)
    assert suggested_length([100] * 90 + [5000] * 10, 4096) == (4096, 10)
    assert suggested_length([129], 4096) == (256, 0)
    assert packed([60, 56, 8, 4], 64, wraps=False).fill == 1.0
