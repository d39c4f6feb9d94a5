"""Decontamination: planted rows are found, shared boilerplate is not, and broken evaluation rows are errors."""

import json
import random
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from document_tables import Verdict, stored, table_of, verdicts

from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Silent
from lifecycle.data.config import DecontaminationConfig
from lifecycle.data.selecting.contaminated_passages import cut_contaminated
from lifecycle.data.selecting.cuts import CutStretch
from lifecycle.data.selecting.decontaminate import decontaminate
from lifecycle.data.selecting.eval_items import TestItem, eval_items
from lifecycle.data.selecting.overlap_index import OverlapIndex
from lifecycle.data.tagging.engine import Native


def prose(seed: int, count: int) -> str:
    return " ".join(random.Random(seed).choices([f"w{n}" for n in range(5000)], k=count))


def item(text: str) -> TestItem:
    return TestItem("held:x", "heldout_overlap", text)


CONFIG = DecontaminationConfig()


def removals(texts: list[str], items: list[TestItem], folder: Path | None = None) -> tuple[pa.Table, int]:
    """What is removed, and the number of items that are too short. `folder`: where the hits are written."""
    with tempfile.TemporaryDirectory() as name:
        out = folder or Path(name)
        stretches = stored(table_of(texts, "train"), out)
        chosen = np.ones(len(texts), bool)
        removed, index = decontaminate(stretches, chosen, items, CONFIG, Native(1), out, Silent())
        return removed, int(index.too_short.sum())


def judged(texts: list[str], items: list[TestItem]) -> list[Verdict]:
    return verdicts(table_of(texts, "train"), removals(texts, items)[0])


def test_a_planted_row_is_found_and_named(tmp_path: Path) -> None:
    question, answer = prose(1, 40), prose(2, 10)
    rows = [
        {"prompt": prose(3, 30), "answer": "yes"},
        {"messages": [{"role": "user", "content": question}], "answer": answer},
    ]
    path = tmp_path / "eval.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [
        prose(4, 500),
        f"{prose(5, 300)}\n{question.upper()}!\n{prose(6, 300)}",
        f"{prose(7, 50)}, {answer}",
    ]
    clean, dirty, by_answer = judged(texts, eval_items([path]))
    assert removals(texts, eval_items([path]))[1] == 2  # too short: "yes" and "user"
    assert clean.step is None
    assert (dirty.step, dirty.reason) == ("decontamination", "eval_overlap")
    assert "eval.jsonl:2" in (dirty.detail or "")
    assert by_answer.reason == "eval_overlap"


def test_a_row_is_found_whatever_became_of_its_punctuation() -> None:
    question = "Anna's 4-year-old re-used 1,250.50 marks' worth of half-full jars: she didn't pay twice-taxed goods."
    row = TestItem("eval.jsonl:1", "eval_overlap", question)
    texts = [
        "".join(letter for letter in question if letter.isalnum() or letter == " "),
        question.replace("'", "\u2019").replace("-", "\u2010"),
        "".join(letter if letter.isalnum() else " " for letter in question),
    ]
    assert [
        verdict.reason for verdict in judged([f"{prose(1, 99)} {text} {prose(2, 99)}" for text in texts], [row])
    ] == ["eval_overlap"] * 3
    short = TestItem("eval.jsonl:2", "eval_overlap", "It's re-used by 4-year-olds")
    assert removals(["nothing of that"], [row, short])[1] == 0  # eight words as it is; joined it is too short
    assert [verdict.step for verdict in judged([texts[0]], [item(question)])] == [None]  # of held-out texts as they are


def test_a_row_is_found_in_other_letters(tmp_path: Path) -> None:
    """As the characters of another alphabet's width, without accents, with marks of emphasis; in rows with damage."""
    question = "Le café où naïvement Zoë a mangé vingt crêpes était très loin de la gare"
    path = tmp_path / "eval.jsonl"
    damaged = unicodedata.normalize("NFD", question).replace("vingt", "vi\u00adngt")
    path.write_text(f'{json.dumps({"question": damaged})}\n{{"question": "{prose(31, 20)} \\ud800"}}\n')
    texts = [
        question,
        "".join(letter for letter in unicodedata.normalize("NFD", question) if not unicodedata.combining(letter)),
        "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in question),
        " ".join(f"_{word}_" for word in question.split()),
        prose(31, 20),
    ]
    texts = [f"{prose(1, 99)} {text} {prose(2, 99)}" for text in texts]
    assert [verdict.reason for verdict in judged(texts, eval_items([path]))] == ["eval_overlap"] * 5


def test_both_sides_are_looked_at() -> None:
    held = prose(8, 1000)
    excerpt, longer = judged([" ".join(held.split()[100:160]), f"{prose(9, 4000)} {held}"], [item(held)])
    assert excerpt.reason == longer.reason == "heldout_overlap"


def test_a_shared_licence_header_does_not_count() -> None:
    header = prose(10, 60)
    (verdict,) = judged([f"{header} {prose(11, 300)}"], [item(f"{header} {prose(12, 300)}")])
    assert verdict.step is None


@pytest.mark.parametrize(("shared", "removed"), [(61, False), (63, True)])
def test_border_of_the_overlap(shared: int, removed: bool) -> None:
    # 112 words have 100 13-grams; a run of s shared words has s - 12 of them: 49 or 51 of 100.
    held = prose(13, 112)
    (verdict,) = judged([" ".join(held.split()[:shared]) + " " + prose(14, 400)], [item(held)])
    assert (verdict.step is not None) == removed


def test_share_equals_a_plain_count() -> None:
    held, text = prose(15, 200), f"{prose(16, 20)} {' '.join(prose(15, 200).split()[30:120])}"
    grams = [{tuple(words[at : at + 13]) for at in range(len(words) - 12)} for words in (held.split(), text.split())]
    index = OverlapIndex([item(held)], 13)
    match = index.lookup.match(text)
    assert match is not None
    hit = index.worst(match)
    assert hit is not None
    common = len(grams[0] & grams[1])
    assert hit.share == pytest.approx(max(common / len(grams[0]), common / len(grams[1])))


def test_boilerplate_of_many_documents_counts_for_rows_but_not_for_heldout_documents() -> None:
    frame = prose(17, 300)
    training = [f"{frame} {prose(100 + number, 50)}" for number in range(11)]
    heldout = [item(f"{frame} {prose(18, 50)}")]
    assert all(verdict.reason == "heldout_overlap" for verdict in judged(training[:10], heldout))
    assert all(verdict.step is None for verdict in judged(training, heldout))
    row = TestItem("row:1", "eval_overlap", " ".join(frame.split()[:40]))
    assert all(verdict.reason == "eval_overlap" for verdict in judged(training, [row]))


def test_the_text_of_a_broken_row_stays_out_of_training_too(tmp_path: Path) -> None:
    path = tmp_path / "eval.jsonl"
    path.write_text('{"prompt": "a"}\n{broken\n')
    assert [(item.name, item.text) for item in eval_items([path])] == [
        ("eval.jsonl:1", "a"),
        ("eval.jsonl:2", "{broken"),
    ]
    with pytest.raises(ConfigError, match=r"none\.jsonl"):
        eval_items([tmp_path / "none.jsonl"])


def test_rows_in_parquet_and_line_separators_within_a_row(tmp_path: Path) -> None:
    text = prose(40, 40)
    pq.write_table(pa.table({"text": [prose(41, 40), text, None]}), tmp_path / "eval.parquet")
    (dirty,) = judged([f"{prose(42, 100)} {text}"], eval_items([tmp_path / "eval.parquet"]))
    assert "eval.parquet:2" in (dirty.detail or "")
    pq.write_table(pa.table({"choices": [["a", text]]}), tmp_path / "other.parquet")
    assert [item.text for item in eval_items([tmp_path / "other.parquet"])] == ["a", text]
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"broken\.parquet: .*copy the file again"):
        eval_items([tmp_path / "broken.parquet"])
    path = tmp_path / "eval.jsonl"
    path.write_text(json.dumps({"prompt": "one\u2028two\x85three"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [found.text for found in eval_items([path])] == ["one\ntwo…three"]  # as documents are normalised


def cut(texts: list[str], items: list[TestItem], format: str = "text") -> tuple[list[str], list[list[str]]]:
    """What is left of each text if what it shares is cut, and all reasons why it is removed all the same."""
    documents = table_of(texts, "train")
    at = documents.schema.get_field_index("format")
    documents = documents.set_column(at, "format", pa.array([format] * len(texts)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stretches = [CutStretch.of(stretch) for stretch in stored(documents, folder)]
        chosen = np.ones(len(texts), bool)
        found, index = decontaminate(stretches, chosen, items, CONFIG, Native(1), folder, Silent())
        after, left = cut_contaminated(stretches, found, index.live_lookup(), Native(1), folder, Silent())
        return [text for own in after for text in own.read(["text"])["text"].to_pylist()], [
            [entry["detail"] if entry["reason"] == "in_pieces" else entry["reason"] for entry in verdict.reasons or ()]
            for verdict in verdicts(documents, left)
        ]


def test_what_is_shared_is_cut_with_a_margin() -> None:
    question, before, after = prose(1, 40), prose(5, 300), prose(6, 300)
    clean = prose(4, 100)
    left, reasons = cut([f"{before} {question.upper()}! {after}\n", clean], [item(question)])
    assert reasons == [[], []] and left[1] == clean
    first, second = left[0].rstrip("\n").split("\n\n")
    assert before.startswith(first) and after.endswith(second)
    for piece, whole in ((first, before), (second, after)):
        assert 190 <= len(whole) - len(piece) <= 200  # whole words of 200 characters, with a blank


def test_short_pieces_go_and_what_nothing_is_left_of_is_removed() -> None:
    question = prose(1, 40)
    near_begin = f"{prose(2, 60)} {question} {prose(3, 300)}"  # 60 words less 200 characters: a short piece
    left, reasons = cut([near_begin, f"{prose(7, 50)} {question} {prose(8, 50)}", question], [item(question)])
    nothing = ["heldout_overlap", "not cut: nothing of 200 characters and more would stay"]
    assert reasons == [[], nothing, nothing]
    assert prose(3, 300).endswith(left[0])


@pytest.mark.parametrize(
    ("times", "reasons"), [(9, []), (10, ["heldout_overlap", "not cut: 11 pieces would stay, more than 10"])]
)
def test_a_document_in_many_pieces_is_removed(times: int, reasons: list[str]) -> None:
    question = prose(1, 40)
    text = " ".join(f"{prose(10 + number, 150)} {question}" for number in range(times)) + f" {prose(9, 150)}"
    assert cut([text], [item(question)])[1] == [reasons]


def test_source_code_is_removed_whole() -> None:
    question = prose(1, 40)
    text = f"{prose(5, 300)} {question} {prose(6, 300)}"
    assert cut([text], [item(question)], "code") == ([text], [["heldout_overlap"]])


@pytest.mark.parametrize("language", ["w", "\u00e9", "\u4e2d"])
def test_nothing_of_the_items_is_left(language: str) -> None:
    chance = random.Random(0)
    items = [TestItem("e:1", "eval_overlap", prose(seed, 30).replace("w", language)) for seed in range(6)]
    texts = []
    for number in range(20):
        parts = [prose(100 + 7 * number + part, chance.randint(5, 200)) for part in range(4)]
        places = (chance.choice(items).text.split()[chance.randint(0, 10) :] for _ in range(3))
        texts.append(" ".join(f"{part} {' '.join(place)}" for part, place in zip(parts, places, strict=False)))
    left, reasons = cut(texts, items)
    lookup = OverlapIndex(items, CONFIG.ngram).lookup
    changed = [after for before, after in zip(texts, left, strict=True) if after != before]
    assert len(changed) > 10 and reasons.count([]) > 10
    kept = zip(texts, left, reasons, strict=True)
    assert all(lookup.match(after) is None for before, after, own in kept if not own and after != before)
