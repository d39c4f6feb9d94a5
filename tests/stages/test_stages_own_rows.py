"""What becomes of the user's rows: doubled and contradictory ones, the held-out side, and shares of an epoch."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.core.progress import Silent
from lifecycle.stages.own_rows import OwnRow, asked, read_own, require_alike, split, without_contradictions
from lifecycle.stages.row_origins import Origins, epoch_of, read_origins, write_origins
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.config import RowsConfig
from lifecycle.text.row_encoder import RowEncoder
from lifecycle.text.row_files import RowError, write_rows
from lifecycle.text.rows import RowsReport

ENCODER = RowEncoder(ChatTemplate(ByteTokenizer()))


def own(rows: list[dict[str, Any]], name: str = "own") -> list[OwnRow]:
    return [OwnRow(0, line, f"{name}:{line}", row) for line, row in enumerate(rows, 1)]


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def labelled(completion: str, label: object) -> dict[str, Any]:
    return {"prompt": "q", "completion": completion, "label": label}


@pytest.mark.parametrize(
    ("kind", "rows", "kept"),
    [
        ("pairs", [pair("q", "a", "b"), pair("q", "b", "a"), pair("p", "b", "a"), pair("q", "a", "c")], [3, 4]),
        (
            "pairs",
            [pair("q ", "a", "b"), {"chosen": "q a", "rejected": "q b"}, {"chosen": "q b", "rejected": "q a"}],
            [1],
        ),
        ("labelled", [labelled("a", True), labelled("a", 0), labelled("b", 1), labelled("b", True)], [3, 4]),
        ("chat", [{"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "b"}], [1, 2]),
    ],
)
def test_rows_that_say_the_opposite_of_each_other_are_all_left_out(kind: str, rows: list, kept: list[int]) -> None:
    report = RowsReport(kind)
    assert [row.line for row in without_contradictions(kind, own(rows), report)] == kept
    assert report.dropped == ({"contradictory": len(rows) - len(kept)} if len(kept) < len(rows) else {})


def read(tmp_path: Path, kind: str, rows: list[dict[str, Any]], **settings: Any) -> tuple[list[OwnRow], RowsReport]:
    write_rows(tmp_path / "own.jsonl", rows)
    config = RowsConfig.model_validate({kind: str(tmp_path / "own.jsonl")} | settings)
    return read_own(kind, config, ENCODER, lambda encoded: encoded, {"ignore": set(), "rename": set()}, Silent())


def test_the_first_of_equal_rows_stays(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"text": "b"}, {"text": "a"}, {"text": "a"}]
    kept, report = read(tmp_path, "chat", rows)
    assert [row.line for row in kept] == [1, 2] and report.dropped == {"doubled": 2}
    assert report.examples[0] == f"{tmp_path}/own.jsonl:3: doubled (as {tmp_path}/own.jsonl:1)"
    rows = [{"text": "a", "id": 1}, {"text": "a", "id": 2}]  # what is left out does not tell them apart
    assert read(tmp_path, "chat", rows, ignore=["id"])[1].dropped == {"doubled": 1}


@pytest.mark.parametrize(
    ("kind", "row", "left_out"),
    [
        ("labelled", {"prompt": "q", "completion": "a", "label": True}, {"completion": ""}),
        ("steps", {"prompt": "q", "completions": ["a"], "labels": [1]}, {"completions": [], "labels": []}),
        ("prompts", {"prompt": "q", "answer": [4, {"by": "hand"}]}, {"prompt": ""}),
        ("pairs", pair("q", "a", "b") | {"margin": 0.5}, {"chosen": "b"}),
    ],
)
def test_each_kind_is_read_whole(tmp_path: Path, kind: str, row: dict[str, Any], left_out: dict[str, Any]) -> None:
    kept, report = read(tmp_path, kind, [row, row | left_out])
    assert [found.columns for found in kept] == [row] and report.dropped.total() == 1


@pytest.mark.parametrize(
    ("column", "problem"), [("[" * 2000 + "]" * 2000, "too deep"), ('"\\ud800"', "lone surrogate")]
)
def test_what_a_reward_function_could_not_be_given_is_told(tmp_path: Path, column: str, problem: str) -> None:
    (tmp_path / "own.jsonl").write_text(f'{{"prompt": "q", "answer": {column}}}\n')
    config = RowsConfig.model_validate({"prompts": str(tmp_path / "own.jsonl")})
    with pytest.raises(RowError, match=rf"own\.jsonl:1: .*{problem}"):
        read_own("prompts", config, ENCODER, lambda encoded: None, {}, Silent())


def test_all_pairs_have_a_margin_or_none() -> None:
    rows = own([pair("q", "a", "b") | {"margin": 1}, pair("p", "a", "b")])
    with pytest.raises(RowError, match=r"own:2: no margin, and own:1 has one; .* rows\.ignore=\[margin\]"):
        require_alike("pairs", rows)
    require_alike("pairs", rows[:1])
    require_alike("pairs", rows[1:])


def test_files_have_settings_of_their_own(tmp_path: Path) -> None:
    write_rows(tmp_path / "alpaca.jsonl", [{"instruction": "i", "output": "o"}])
    write_rows(tmp_path / "asked.jsonl", [{"question": "q", "answer": "a", "id": 1}])
    alpaca = {"path": str(tmp_path / "alpaca.jsonl"), "convert": "alpaca"}
    renamed = {"path": str(tmp_path / "asked.jsonl"), "rename": {"question": "prompt", "answer": "completion"}}
    config = RowsConfig.model_validate({"chat": [alpaca, renamed], "ignore": ["id"]})
    names: dict[str, set[str]] = {"ignore": set(), "rename": set()}
    kept, _ = read_own("chat", config, ENCODER, lambda encoded: None, names, Silent())
    assert [row.columns["completion"] for row in kept] == ["o", "a"] and [row.file for row in kept] == [0, 1]
    assert names == {
        "ignore": {"instruction", "output", "question", "answer", "id"},
        "rename": {"instruction", "output"},
    }


PROMPTS = st.lists(st.tuples(st.sampled_from("abcdefghij"), st.sampled_from("uvwxyz")), unique=True, min_size=2)


@given(pairs=PROMPTS, fraction=st.sampled_from([0.05, 0.3, 0.9]), seed=st.integers(0, 5))
def test_rows_of_a_prompt_are_on_one_side_and_no_side_is_empty(
    pairs: list[tuple[str, str]], fraction: float, seed: int
) -> None:
    rows = own([{"prompt": prompt, "completion": answer} for prompt, answer in pairs])
    sides = split(rows, fraction, seed)
    assert sorted(row.line for side in sides.values() for row in side) == list(range(1, len(rows) + 1))
    assert sides["train"] and sides["heldout"]
    found = [{row.columns["prompt"] for row in side} for side in sides.values()]
    assert len({prompt for prompt, _ in pairs}) == 1 or not found[0] & found[1]


def test_a_prompt_that_many_rows_have_does_not_empty_the_training_side() -> None:
    rows = own([{"prompt": "same", "completion": str(n)} for n in range(50)] + [{"prompt": "other", "completion": "a"}])
    for seed in range(20):
        sides = split(rows, 0.5, seed)
        assert [row.columns["prompt"] for row in sides["heldout"]] == ["other"] and len(sides["train"]) == 50


def test_a_prompt_is_the_same_however_it_is_written() -> None:
    forms = [
        {"prompt": "What  is it?", "completion": "a"},
        {"prompt": [{"role": "user", "content": "what is it?"}], "chosen": "a", "rejected": "b"},
        {"messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "c"}]},
    ]
    assert len({asked(form) for form in forms}) == 1
    assert asked({"text": "a"}) != asked({"text": "b"})
    assert asked({"prompt": "", "completion": "a"}) != asked({"prompt": "", "completion": "b"})


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    weights=st.lists(st.integers(1, 5), min_size=4, max_size=4),
)
def test_an_epoch_has_each_file_in_its_share_and_every_row(sizes: list[int], weights: list[int]) -> None:
    files = [number for number, size in enumerate(sizes) for _ in range(size)]
    own_weights = [float(weight) for weight in weights[: len(sizes)]]
    epoch = epoch_of(files, own_weights, "chat")
    assert set(epoch) == set(range(len(files)))
    counts, times = Counter(files[at] for at in epoch), Counter(epoch)
    scale = max(size / weight for size, weight in zip(sizes, own_weights, strict=True))
    assert all(abs(counts[number] - scale * weight) <= 0.5 for number, weight in enumerate(own_weights))
    for number in counts:  # the rows of a file differ by one repetition at most
        of_file = [times[at] for at, file in enumerate(files) if file == number]
        assert max(of_file) - min(of_file) <= 1
    assert epoch_of(files, (), "chat") == list(range(len(files)))


def test_shares_that_repeat_rows_without_end_are_refused() -> None:
    with pytest.raises(RowError, match=r"rows\.chat: with these weights an epoch has 2,002,000 rows of 1,001"):
        epoch_of([0] * 1000 + [1], [1.0, 2001.0], "chat")
    with pytest.raises(RowError, match="no row of file 2 is left"):
        epoch_of([0, 0], [1.0, 1.0], "chat")


def test_rows_are_known_by_the_users_lines(tmp_path: Path) -> None:
    path = tmp_path / "chat-train.jsonl"
    write_origins(path, [(-1, 1), (0, 7), (1, 3)])
    stats = {"own": {"chat": {"files": ["a.jsonl", "b.json"], "weights": []}}}
    origins = read_origins(path, stats, "chat")
    assert [origins.name(line) for line in (1, 2, 3)] == [f"{path}:1", "a.jsonl:7", "b.json:3"]
    assert origins.file_of("b.json:3") == 1 and isinstance(origins, Origins)
    assert str(tmp_path) not in path.with_suffix(".origins.json").read_text() and json.dumps(stats)


@pytest.mark.parametrize(
    ("given_files", "problem"),
    [
        ({"chat": [{"path": "a", "weight": 1}, "b"]}, "b has no weight, and others do"),
        ({"chat": {"a": 2}, "docstrings": True}, "rows made from docstrings have none"),
        ({"chat": {"a": 0}}, "greater than 0"),
        ({"chat": {"a": "x"}}, "valid number"),
        ({"chat": ["a"], "convert": "vicuna"}, "'alpaca' or 'sharegpt'"),
    ],
)
def test_settings_of_files_that_cannot_be(given_files: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        RowsConfig.model_validate(given_files)


def test_files_are_a_path_paths_or_weights() -> None:
    forms = ("a.jsonl", ["a.jsonl"], {"path": "a.jsonl"}, {"a.jsonl": 3, "b": 0.5})
    one, several, section, weighted = (RowsConfig.model_validate({"chat": files}).chat for files in forms)
    assert one == several == section and [(file.path, file.weight) for file in weighted] == [("a.jsonl", 3), ("b", 0.5)]
