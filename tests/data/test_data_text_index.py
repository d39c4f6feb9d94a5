"""The text index: what it says of a text is what a search through all words of all documents says, and no more."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selected_folders import document, write_folder

from lifecycle.core.artifact import Artifact, Draft, require_intact
from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Silent
from lifecycle.data.inspecting import text_index, text_lookup
from lifecycle.data.inspecting.text_index import PASSAGE, made_index, read_blocks
from lifecycle.data.inspecting.text_lookup import Found, TextIndex

SENTENCE = "The harbour lies to the north of the old town and was built in three stages"
type Spans = set[tuple[int, int]]


class Notes(Silent):
    """Progress that remembers its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def documents(root: Path, *rows: dict, version: int = 0) -> Artifact:
    """An artifact of stage `documents` with these rows."""
    draft = Draft(root, "documents", {"version": version}, {})
    write_folder(draft.path, rows)
    return draft.commit({})


def kept(root: Path, *texts: str) -> Artifact:
    return documents(root, *(document(text, path=f"{number}.txt") for number, text in enumerate(texts)))


def index_of(made: Artifact) -> TextIndex:
    return TextIndex(made_index(made, Silent()))


def find(made: Artifact, text: str) -> Found:
    return index_of(made).find(text, 1000, 1000)


def maximal(spans: Spans) -> Spans:
    return {one for one in spans if not any(o != one and o[0] <= one[0] and o[1] >= one[1] for o in spans)}


def common_spans(text: list[str], other: list[str]) -> Spans:
    """The longest spans of a text that the other has, from each word: every pair of places is compared."""
    spans = set()
    for begin in range(len(text)):
        most = 0
        for place in range(len(other)):
            num = 0
            while begin + num < len(text) and place + num < len(other) and text[begin + num] == other[place + num]:
                num += 1
            most = max(most, num)
        if most >= PASSAGE:
            spans.add((begin, begin + most))
    return maximal(spans)


def contains(words: list[str], passage: list[str]) -> bool:
    return any(words[at : at + len(passage)] == passage for at in range(len(words) - len(passage) + 1))


slices = st.lists(st.tuples(st.integers(0, 50), st.integers(8, 30)), min_size=1, max_size=3)


@given(seed=st.integers(0, 2**32), num_words=st.sampled_from([2, 40]), cuts=st.lists(slices, min_size=5, max_size=5))
@settings(max_examples=80, deadline=None)
def test_it_finds_every_passage_in_every_document_and_nothing_else(
    seed: int, num_words: int, cuts: list[list[tuple[int, int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of texts that are made of pieces of one, so that passages of several documents overlap."""
    whole = random.Random(seed).choices([f"w{number}" for number in range(num_words)], k=60)
    pieces = [[word for at, size in own for word in [*whole[at : at + size], f"x{n}"]] for n, own in enumerate(cuts)]
    asked, *texts = pieces
    made = kept(tmp_path_factory.mktemp("run"), *map(" ".join, texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_index, "BLOCK_ENTRIES", 20)
        patch.setattr(text_index, "FRAME_BYTES", 50)
        found = find(made, " ".join(asked))
    expected = maximal({span for text in texts for span in common_spans(asked, text)})
    assert found.num_passages == len(expected)
    assert found.num_covered == len({word for span in expected for word in range(*span)})
    by_text = {passage.text: passage for passage in found.passages}
    assert {*by_text} == {" ".join(asked[begin:end]) for begin, end in expected} and len(by_text) == len(found.passages)
    for text, passage in by_text.items():
        holders = {holder.number for holder in passage.holders}
        assert holders == {number for number, own in enumerate(texts) if contains(own, text.split())}
        assert passage.num_documents >= len(holders) == len(passage.holders)
        assert {holder.passage for holder in passage.holders} == {text}
    assert found.is_whole and not found.num_common
    lengths = [passage.num_words for passage in found.passages]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        (SENTENCE, SENTENCE.upper().replace(" ", "\n\t ") + "!"),
        ("«Der Kürbis», sagt er, wächst auf dem Beet am besten", "der Ku\u0308rbis sagt er wächst auf dem BEET am"),
        ("港は旧市街の北にあり三段階で建設された", "…旧市街の北にあり三段階…"),
        ("ท่าเรือตั้งอยู่ทางเหนือของเมืองเก่า", "ตั้งอยู่ทางเหนือของเมือง"),
        ("1 2 3_3 four 5 six seven eight\x00nine \U0001f600 ten", "eight nine ten 1 2 3_3 four 5 six seven eight"),
    ],
)  # fmt: skip
def test_case_white_space_and_punctuation_make_no_difference(tmp_path: Path, text: str, asked: str) -> None:
    found = find(kept(tmp_path, "Another text that has other words in it", text), asked)
    assert [[holder.number for holder in passage.holders] for passage in found.passages] == [[1]]
    assert all(holder.passage in text for passage in found.passages for holder in passage.holders)


def test_a_holder_shows_the_passage_as_it_is_there_and_what_is_around_it(tmp_path: Path) -> None:
    made = documents(
        tmp_path, document("Short"), document(f"{SENTENCE} too", ("s", "r", "d")), document(""),
        document(f"Before. {SENTENCE}, after 港", split="heldout"),
    )  # fmt: skip
    (passage,) = find(made, f"and {SENTENCE.lower()} and").passages
    (holder,) = passage.holders
    assert (holder.split, holder.number) == ("heldout", 0)  # a removed document is in no model
    assert (holder.before, holder.passage, holder.after) == ("Before. ", SENTENCE, ", after 港")
    assert passage.text == SENTENCE.lower() and passage.num_words == 16 and passage.num_documents == 1


def test_of_equally_long_passages_the_rarest_come_first(tmp_path: Path) -> None:
    often, once, long = (
        " ".join(f"{name}{number}" for number in range(size)) for name, size in (("o", 9), ("r", 9), ("l", 10))
    )
    found = index_of(kept(tmp_path, *[f"{often} and {number}" for number in range(5)], once, long)).find(
        f"{often} x {once} x {long} x {often}", 3, 2
    )
    assert [passage.text for passage in found.passages] == [long, once, often] and found.num_passages == 4
    assert [(passage.num_documents, len(passage.holders)) for passage in found.passages] == [(1, 1), (1, 1), (5, 2)]


def test_a_document_is_named_at_each_passage_that_it_has(tmp_path: Path) -> None:
    passages = [" ".join(f"{name}{number}" for number in range(10)) for name in "abcd"]
    texts = [" x ".join(passages), *passages, " y ".join(reversed(passages))]
    found = find(kept(tmp_path, *texts), " z ".join(passages))
    assert [sorted(holder.number for holder in passage.holders) for passage in found.passages] == [
        [0, 1, 5], [0, 2, 5], [0, 3, 5], [0, 4, 5],
    ]  # fmt: skip
    assert all(passage.num_documents == 3 for passage in found.passages)


@pytest.mark.parametrize("text", ["", " \n…!?", "one two three four five six seven"])
def test_a_text_of_too_few_words_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"the text has [07] words; give 8 or more"):
        find(kept(tmp_path, SENTENCE), text)


def test_without_documents_nothing_is_found(tmp_path: Path) -> None:
    found = find(documents(tmp_path), f"{SENTENCE} \ud800")
    assert (found.num_passages, found.num_covered, found.passages) == (0, 0, ())


def test_what_is_left_out_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = index_of(kept(tmp_path, *[f"{SENTENCE} {number}" for number in range(5)]))
    monkeypatch.setattr(text_lookup, "MOST_HITS", 4)
    assert index.find(SENTENCE, 5, 5).num_common == 9
    monkeypatch.setattr(text_lookup, "MOST_HITS", 100)
    monkeypatch.setattr(text_lookup, "MOST_READ", 10)
    assert not index.find(SENTENCE, 5, 5).is_whole


def test_a_common_word_run_does_not_shorten_a_passage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in too many documents to be looked up is still read in those that the rest leads to."""
    ending = " ".join(SENTENCE.split()[-8:])
    index = index_of(kept(tmp_path, SENTENCE, *[f"{number} {ending}" for number in range(5)]))
    monkeypatch.setattr(text_lookup, "MOST_HITS", 8)
    found = index.find(SENTENCE, 5, 5)
    assert found.num_common == 1 and [passage.text for passage in found.passages] == [SENTENCE]
    assert [holder.number for holder in found.passages[0].holders] == [0]


def test_texts_that_repeat_themselves_take_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = index_of(kept(tmp_path, "0 " * 3000))
    found = index.find("0 " * 3000, 5, 5)
    assert found.is_whole and found.passages[0].num_words == 3000
    monkeypatch.setattr(text_lookup, "MOST_STEPS", 100_000)
    assert not index.find("0 1 " * 10 + "0 " * 3000, 5, 5).is_whole


def test_a_long_text_of_many_documents_is_covered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = random.Random(0)
    texts = [" ".join(f"w{chosen.randrange(500)}" for _ in range(chosen.randrange(5, 200))) for _ in range(300)]
    monkeypatch.setattr(text_index, "BLOCK_TEXTS", 64)
    monkeypatch.setattr(text_lookup, "BLOCK_TEXTS", 64)
    made = kept(tmp_path, *texts)
    assert made_index(made, Silent()).stats["blocks"] == 5
    long = [text for text in texts if len(text.split()) >= PASSAGE]
    found = find(made, " x ".join(long))
    assert found.num_covered == found.num_words - len(long) + 1 and found.num_passages == len(long)


def test_equal_documents_give_an_equal_index(tmp_path: Path) -> None:
    one, other = (kept(tmp_path / name, SENTENCE, "another one", SENTENCE) for name in ("a", "b"))
    assert made_index(one, Silent()).content_hash == made_index(other, Silent()).content_hash


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "manifest"])
def test_a_damaged_index_is_made_again(tmp_path: Path, damage: str) -> None:
    made = kept(tmp_path, SENTENCE, "Another text that has other words in it")
    index, notes = made_index(made, Silent()), Notes()
    path = index.path / ("manifest.json" if damage == "manifest" else "00000.prints.npy")
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut": data[:-1], "flipped": data[:-1] + bytes([data[-1] ^ 1]), "manifest": b"{"}[damage])
    again = made_index(made, notes)
    require_intact(again)
    assert again.content_hash == index.content_hash and "damaged; it is made again" in notes.notes[0]
    assert made_index(made, notes).content_hash == index.content_hash and len(notes.notes) == 1


def test_a_killed_build_leaves_nothing_of_its_own(tmp_path: Path) -> None:
    made = kept(tmp_path, SENTENCE)
    index = made_index(made, Silent())
    draft = index.path.rename(index.path.with_name(f"{index.path.name}.partial"))
    (draft / "00007.prints.npy").write_bytes(b"of a killed run")
    assert made_index(made, Silent()).content_hash == index.content_hash


def test_documents_that_were_made_again_have_another_index(tmp_path: Path) -> None:
    old = kept(tmp_path, SENTENCE)
    before = made_index(old, Silent())
    new = documents(tmp_path, document("Only other words are in this document now"), version=1)
    assert made_index(new, Silent()).path != before.path
    assert find(old, SENTENCE).num_passages == 1 and find(new, SENTENCE).num_passages == 0


def test_blocks_give_back_each_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [SENTENCE, "", "港", "x" * 300, *map(str, range(20)), ""]
    monkeypatch.setattr(text_index, "FRAME_BYTES", 100)
    monkeypatch.setattr(text_index, "BLOCK_TEXTS", 8)
    blocks = list(read_blocks(made_index(kept(tmp_path, *texts), Silent())))
    read = [block.text(number).tobytes().decode() for block in blocks for number in range(block.num_texts)]
    assert (
        read == texts
        and [block.first for block in blocks] == np.cumsum([0, *(b.num_texts for b in blocks[:-1])]).tolist()
    )
