"""Two selections compared: what entered, left and moved, as plain Python finds it, with copies of a document too."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selected_folders import document, write_folder

from lifecycle.core.progress import Silent
from lifecycle.data.inspecting import comparison
from lifecycle.data.inspecting.comparison import Amount, Comparison, Fate, compare

FATES = {"kept": Fate("kept"), "held": Fate("heldout")} | {
    reason: Fate("removed", "quality", reason) for reason in ("short", "rare")
}
SHORT = FATES["short"]

# for each text, the fates of its copies on a side
sides = st.dictionaries(st.sampled_from("abcdefgh"), st.lists(st.sampled_from(sorted(FATES)), max_size=3))


def rows(side: dict[str, list[str]]) -> list[dict[str, Any]]:
    made = []
    for text, fates in side.items():
        for fate in fates:
            reasons = [("quality", fate, f"is {fate}")] if FATES[fate].split == "removed" else []
            made.append(
                document(text * 3, *reasons, split="heldout" if fate == "held" else "kept", source=text.upper())
            )
    return made


def plainly(a: dict[str, list[str]], b: dict[str, list[str]]) -> Counter[tuple[str, str, str]]:
    """How many of each text went from which fate to which; the best fates of its copies are compared, then the next."""
    moves: Counter[tuple[str, str, str]] = Counter()
    for text in {*a, *b}:
        fates = [sorted(side.get(text, []), key=[*FATES].index) for side in (a, b)]
        most = max(map(len, fates))
        befores, afters = ([*side, *["absent"] * (most - len(side))] for side in fates)
        moves.update(zip([text] * most, befores, afters, strict=True))
    return moves


def compared(folder: Path, a: list[dict[str, Any]], b: list[dict[str, Any]], num_samples: int = 2) -> Comparison:
    return compare(write_folder(folder / "a", a), write_folder(folder / "b", b), num_samples, Silent())


@settings(max_examples=60)
@given(sides, sides)
def test_every_document_of_both_sides_is_in_one_move(
    tmp_path_factory: pytest.TempPathFactory, a: dict[str, list[str]], b: dict[str, list[str]]
) -> None:
    found = compared(tmp_path_factory.mktemp("sides"), rows(a), rows(b))
    known = {fate: name for name, fate in FATES.items()} | {Fate(): "absent"}
    moves = Counter({
        (moved.source.lower(), known[moved.before], known[moved.after]): amount.documents
        for moved, amount in found.amounts.items()
    })  # fmt: skip
    # two reasons are as bad: which of them is compared with which is the code's own choice
    assert moves.total() == plainly(a, b).total()
    for at, side in ((1, a), (2, b)):
        counts = Counter({(text, fate): n for text in side for fate, n in Counter(side[text]).items()})
        assert counts == Counter((move[0], move[at]) for move in moves.elements() if move[at] != "absent")
    if not any({"short", "rare"} <= {*a.get(text, ()), *b.get(text, ())} for text in {*a, *b}):
        assert moves == plainly(a, b)
    assert sum(amount.bytes for amount in found.amounts.values()) == 3 * moves.total()


def test_the_same_selection_has_no_move(tmp_path: Path) -> None:
    side = {"a": ["kept", "short", "short"], "b": ["rare"], "c": ["held"]}
    found = compared(tmp_path, rows(side), rows(side)[::-1])
    assert not found.samples and found.total(lambda moved: moved.has_changed) == Amount()
    assert found.total(lambda moved: True) == Amount(5, 15)


def test_what_entered_and_left_are_told_by_source_with_samples(tmp_path: Path) -> None:
    a = {text: ["short"] for text in "abcde"} | {"f": ["kept"], "g": ["kept"], "h": ["kept"]}
    b = {text: ["kept"] for text in "abcde"} | {"f": ["held"], "g": ["rare"]}
    found = compared(tmp_path, rows(a), rows(b))
    assert found.total(lambda moved: moved.has_entered) == Amount(5, 15)
    assert found.by(lambda moved: moved.source if moved.has_left else None) == dict.fromkeys("FGH", Amount(1, 3))
    moves = found.by(lambda moved: moved.move)
    assert next(iter(moves)) == (SHORT, FATES["kept"]) and moves[FATES["kept"], Fate()] == Amount(1, 3)
    entered, removed = found.samples[SHORT, FATES["kept"]], found.samples[FATES["kept"], FATES["rare"]]
    assert len(entered) == 2 and {sample.detail for sample in entered} == {"is short"}
    assert [(sample.name, sample.text, sample.detail) for sample in removed] == [("G:ggg.txt", "ggg", "is rare")]
    assert [sample.text for sample in found.samples[FATES["kept"], Fate()]] == ["hhh"]


def test_the_number_of_files_and_of_pending_records_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = {text: ["short", "kept"] for text in "abcdefgh"}
    b = {text: ["kept"] for text in "defghijk"}
    whole = compared(tmp_path / "whole", rows(a), rows(b))
    monkeypatch.setattr(comparison, "IN_FILE", 1)
    monkeypatch.setattr(comparison, "BUFFERED", 3)
    assert compared(tmp_path / "parts", rows(a), rows(b)) == whole


def test_only_the_largest_moves_have_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "SAMPLED_MOVES", 1)
    found = compared(tmp_path, rows({"a": ["kept"], "b": ["kept"], "c": ["rare"]}), rows({"c": ["kept"]}))
    assert [*found.samples] == [(FATES["kept"], Fate())]


def cuts(text: str, *spans: tuple[str, int, int]) -> list[dict[str, Any]] | None:
    return [{"step": step, "begin": b, "end": e, "text": text[b:e]} for step, b, e in spans] or None


spans = st.lists(
    st.tuples(st.integers(0, 12), st.integers(1, 6)).map(lambda s: (s[0], min(s[0] + s[1], 12))), max_size=4
)


@settings(max_examples=60)
@given(st.lists(st.tuples(spans, spans), min_size=1, max_size=6))
def test_documents_that_are_cut_differently(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[list[tuple[int, int]], list[tuple[int, int]]]]
) -> None:
    sides: list[list[dict[str, Any]]] = [[], []]
    texts = [f"text {number} of it" for number in range(len(pairs))]
    for text, pair in zip(texts, pairs, strict=True):
        for rows, own in zip(sides, pair, strict=True):
            own = [(begin, end) for begin, end in sorted(own) if begin < end]
            rows.append(document(text, cuts=cuts(text, *(("lines", *span) for span in own)), text_bytes=len(own)))
    found = compared(tmp_path_factory.mktemp("sides"), *sides, num_samples=len(pairs))

    def characters(passages: Any) -> set[int]:
        return {at for passage in passages or () for at in range(passage["begin"], passage["end"])}

    gone = {a["id"]: [characters(side["cuts"]) for side in (a, b)] for a, b in zip(*sides, strict=True)}
    differ = {name for name, (a, b) in gone.items() if a != b}
    amounts = [Amount(len(differ), sum(row["text_bytes"] for row in side if row["id"] in differ)) for side in sides]
    assert found.recut == ({"s": tuple(amounts)} if differ else {})
    assert {sample.id for sample in found.recut_samples} == differ
    for sample in found.recut_samples:
        a, b = gone[sample.id]
        text = texts[int(sample.name.split()[1])]
        for passages, expected in ((sample.only_a, a - b), (sample.only_b, b - a)):
            assert characters(passage._asdict() for passage in passages) == expected
            assert all(text[passage.begin : passage.end] == passage.text for passage in passages)


def test_what_moved_or_is_cut_the_same_by_other_steps_is_not_cut_differently(tmp_path: Path) -> None:
    text = "one two three"
    a = [
        document(text, cuts=cuts(text, ("lines", 0, 3), ("substrings", 3, 7))),
        document("moved", cuts=cuts("moved", ("l", 0, 1))),
    ]
    b = [document(text, cuts=cuts(text, ("decontamination", 0, 7))), document("moved", split="heldout")]
    found = compared(tmp_path, a, b)
    assert not found.recut and not found.recut_samples
    assert found.total(lambda moved: moved.has_changed) == Amount(1, 5)
