"""Cutting of what repeats, beside brute force over words: lines, paragraphs, runs of words; code stays whole."""

import random
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from document_tables import numbered, raw, stored
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_limits import LIMITS, grouped_plainly, plain_limits

from lifecycle.core.config import validate
from lifecycle.core.progress import Silent
from lifecycle.data.config import DedupConfig
from lifecycle.data.reading.raw import raw_batch
from lifecycle.data.selecting.cuts import NO_SPANS, CutStretch
from lifecycle.data.selecting.cutting import cut_repeats
from lifecycle.data.selecting.document_text import DocumentText
from lifecycle.data.selecting.repeated_substrings import runs_of
from lifecycle.data.selecting.repeats import PART_BITS
from lifecycle.data.tagging.engine import Engine, Native
from lifecycle.data.tagging.workers import call_alone

type Removed = dict[int, str]

ALONE = Native(1)


@pytest.fixture(scope="module", autouse=True)
def _without_daft() -> Iterator[None]:
    """Daft is tested below: each start of its process takes seconds."""
    with grouped_plainly():
        yield


class Backwards(Native):
    """An engine that ends with what comes first."""

    def results[T, R](
        self, function: Callable[[T], R], work: Sequence[T], attempts: int, apart: bool = False
    ) -> Iterator[tuple[int, R]]:
        del attempts, apart
        return ((at, function(work[at])) for at in reversed(range(len(work))))


def cut(
    texts: Sequence[str], *, among: Sequence[int] | None = None, formats: Sequence[str] = (),
    engine: Engine = ALONE, **config: float,
) -> tuple[list[str], Removed]:  # fmt: skip
    """What is left of each text, and the details of removals."""
    kinds = [*formats, *["text"] * (len(texts) - len(formats))]
    documents = [raw(text, format=kind) for text, kind in zip(texts, kinds, strict=True)]
    chosen = np.isin(np.arange(len(texts)), range(len(texts)) if among is None else among)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tagged = stored(numbered(pa.Table.from_batches([raw_batch(documents)])), folder / "tagged")
        stretches = [CutStretch.of(stretch) for stretch in tagged]
        found, removed = cut_repeats(stretches, chosen, validate(DedupConfig, config), engine, folder, Silent())
        left = [text for stretch in found for text in stretch.read(["text"])["text"].to_pylist()]
    return left, dict(zip(removed["ordinal"].to_pylist(), removed["detail"].to_pylist(), strict=True))


OWN = [f"Document {name} says something of its own here.\n" for name in ("a", "b", "c", "d")]
MENU = "Home | About us | Contact the team\n"


def test_a_line_stays_in_so_many_documents() -> None:
    texts = [MENU + own for own in OWN]
    assert cut(texts, lines=2) == ([*texts[:2], *OWN[2:]], {})
    assert cut(texts, lines=4) == (texts, {})
    assert cut(texts, lines=2, among=[0, 2, 3]) == ([*texts[:3], OWN[3]], {})  # those not chosen count for nothing


def test_lines_are_the_same_by_their_words() -> None:
    texts = [MENU + OWN[0], "HOME, about us; contact: the team!\n" + OWN[1], "Home About us Contact a team\n" + OWN[2]]
    assert cut(texts, lines=1)[0] == [texts[0], OWN[1], texts[2]]


def test_short_lines_and_repetition_in_one_document_stay() -> None:
    texts = ["Read more\n" + own + MENU * 2 for own in OWN[:2]]
    assert cut(texts, lines=1)[0] == [texts[0], "Read more\n" + OWN[1]]


def test_paragraphs_go_whole() -> None:
    notice = "All rights are reserved.\nCopying needs a permission.\n"
    texts = [f"{own}\n{notice}\n{own}" for own in OWN[:2]] + [f"{OWN[2]}\n{notice}And one more line.\n"]
    left, removed = cut(texts, paragraphs=1)
    assert left == [texts[0], f"{OWN[1]}\n{OWN[1]}", texts[2]] and not removed


def test_code_is_never_cut() -> None:
    code = "import numpy as np\nvalues = np.arange(10)\n"
    texts = [code, code, *(f"{own}\n```python\n{code}\n{MENU}```\n\n    indented = line of code\n" for own in OWN[:2])]
    assert cut(texts, formats=["code", "code"], lines=1, substrings=10) == (texts, {})
    assert cut(texts, formats=["code", "code"], paragraphs=1) == (texts, {})


def test_what_belongs_to_the_lines_below_it_stays() -> None:
    texts = [f".. code-block:: python three\n{own}Traceback (most recent call last):\n{own}" for own in OWN[:2]]
    assert cut(texts, lines=1)[0] == texts
    comments = [f".. SPDX-License-Identifier: GPL-2.0\n{own}" for own in OWN[:2]]
    assert cut(comments, lines=1)[0] == [comments[0], OWN[1]]


KINDS = ["", "text", "    code", "```", "~~~", "```py", "\tcode", ".. x:: y", ".. x: y", "  ", " ``"]


@given(st.lists(st.sampled_from(KINDS)))
def test_lines_of_code_are_those_of_markdown(drawn: list[str]) -> None:
    lines = DocumentText(0, np.frombuffer("\n".join(drawn).encode(), np.uint8), NO_SPANS).lines
    fence, expected = "", list[int]()
    for line in drawn:
        mark = line[:3] if line[:3] in ("```", "~~~") else ""
        if mark and fence in ("", mark):
            fence = "" if fence else mark
            expected.append(2)
        else:
            is_code = fence or line[:1] == "\t" or line.startswith(("    ", ".. x::"))
            expected.append(2 if is_code else int(bool(line.strip())))
    assert lines.kinds.tolist() == expected[: len(lines.kinds)]
    assert len(expected) - len(lines.kinds) == int(bool(drawn) and not drawn[-1])  # behind the last newline is no line


def test_a_document_that_is_mostly_repeated_is_removed_with_its_reason() -> None:
    texts = [MENU * 3 + OWN[0], MENU * 3 + "Own words.\n", MENU]
    left, removed = cut(texts, lines=1)
    assert left[0] == texts[0]
    assert removed == {
        1: "91% of the text stands in documents before it (passages: 3): more than dedup.max_cut=0.8",
        2: "100% of the text stands in documents before it (passages: 1): nothing would stay",
    }
    assert set(cut(texts, lines=1, max_cut=1)[1]) == {2}  # nothing is left of it


def test_steps_see_what_those_before_have_left() -> None:
    chance = random.Random(0)
    passage = " ".join(f"w{chance.randrange(1000)}" for _ in range(12))
    texts = [
        f"{MENU}Alpha {passage} beta.\n",
        f"{MENU}Gamma {passage} delta.\n",
        f"Epsilon {passage[:20]}\n{MENU}{passage[20:]} zeta.\n",
    ]
    left, _ = cut(texts, lines=1, substrings=12)
    # across a line that has been cut nothing is a passage
    assert left == [texts[0], "Gamma\n\ndelta.\n", texts[2].replace(MENU, "")]


WORD = re.compile(r"\w+")


def brute_force(texts: Sequence[str], n: int) -> list[list[str]]:
    """The words of each text that stay: all but those in a run of `n` that stands before, without overlap."""
    firsts: dict[tuple[str, ...], tuple[int, int]] = {}
    left = []
    for number, text in enumerate(texts):
        words = WORD.findall(text)
        stays = [True] * len(words)
        for at in range(len(words) - n + 1):
            run = tuple(words[at : at + n])
            first = firsts.setdefault(run, (number, at))
            if first[0] < number or at - first[1] >= n:
                stays[at : at + n] = [False] * n
        left.append([word for word, own in zip(words, stays, strict=True) if own])
    return left


def composed(seed: int, num_texts: int) -> list[str]:
    """Texts of words of a small vocabulary and of passages that several have, some within themselves."""
    chance = random.Random(seed)
    passages = [[f"p{chance.randrange(9)}" for _ in range(chance.randint(5, 40))] for _ in range(3)]
    texts = []
    for _ in range(num_texts):
        words: list[str] = []
        for _ in range(chance.randint(0, 5)):
            passage = chance.choice(passages)
            low = chance.randrange(len(passage))
            words += [f"o{chance.randrange(400)}" for _ in range(chance.randint(0, 15))]
            words += passage[low : low + chance.randint(1, 40)] * chance.choice((1, 1, 1, 3))
        texts.append(" ".join(words) + "\n")
    return texts


@settings(max_examples=12)
@given(st.integers(0, 10**9), st.sampled_from([10, 11, 17]))
def test_substrings_agree_with_brute_force(seed: int, n: int) -> None:
    texts = composed(seed, 6)
    left, removed = cut(texts, substrings=n, max_cut=1)
    expected = brute_force(texts, n)
    assert [WORD.findall(text) for text in left] == expected
    assert set(removed) == {at for at, words in enumerate(expected) if not words and WORD.search(texts[at])}


def test_no_passage_is_left_twice() -> None:
    texts, n = composed(3, 40), 12
    seen: dict[tuple[str, ...], tuple[int, int]] = {}
    for number, text in enumerate(cut(texts, substrings=n, max_cut=1)[0]):
        for piece in text.split("\n\n"):
            words = WORD.findall(piece)
            for at in range(len(words) - n + 1):
                first = seen.setdefault(tuple(words[at : at + n]), (number, at))
                assert first[0] == number and at - first[1] < n


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(3, 12))
def test_every_run_has_a_mark_that_its_words_alone_decide(drawn: list[int], n: int) -> None:
    text = " ".join(f"w{number}" for number in drawn)
    runs = runs_of(DocumentText(0, np.frombuffer(text.encode(), np.uint8), NO_SPANS), n)
    assert runs.firsts.tolist() == list(range(max(0, len(drawn) - n + 1)))
    offsets = defaultdict(set)
    for first, mark in zip(runs.firsts.tolist(), runs.marks.tolist(), strict=True):
        assert first <= mark <= first + n - (n + 1) // 2
        offsets[tuple(drawn[first : first + n])].add(mark - first)
    assert all(len(own) == 1 for own in offsets.values())


def test_order_of_the_work_and_partitions_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = composed(5, 30)
    one = cut(texts, lines=2, paragraphs=3, substrings=10)
    assert one[0] != texts
    monkeypatch.setattr("lifecycle.data.document_writer.ROW_GROUP", 7)
    monkeypatch.setattr("lifecycle.data.documents.PIECE", 2)
    assert cut(texts, lines=2, paragraphs=3, substrings=10, engine=Backwards(1)) == one


def _limits_in_blocks(keys: Path, out: Path) -> None:
    from lifecycle.data.selecting import daft_adapter

    daft_adapter.use_engine(None)
    for most in (1, 3):
        daft_adapter.write_limits(keys, most, out / f"daft{most}", 1 << PART_BITS, 400)
    daft_adapter.write_limits(keys.with_name("none"), 1, out / "none", 1 << PART_BITS, 400)


def test_daft_groups_keys_in_blocks(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    halves = chance.integers(0, 1 << 64, (500, 2), np.uint64)[chance.integers(0, 500, 1500)]
    part = (halves[:, 0] >> np.uint64(64 - PART_BITS)).astype(np.int32)
    columns = (part, halves[:, 0], halves[:, 1], np.arange(1500)[::-1])
    rows = pa.table(dict(zip(("part", *LIMITS), columns, strict=True)))
    for name in ("keys", "none", "daft1", "daft3", "plain1", "plain3"):
        (tmp_path / name).mkdir()
    for number in range(3):
        pq.write_table(rows.slice(500 * number, 500), tmp_path / "keys" / f"{number}.parquet")
    pq.write_table(rows.slice(0, 0), tmp_path / "none" / "0.parquet")
    call_alone(_limits_in_blocks, tmp_path / "keys", tmp_path)
    for most in (1, 3):
        plain_limits(tmp_path / "keys", most, tmp_path / f"plain{most}")
        for name in LIMITS:
            found, expected = ((tmp_path / f"{side}{most}" / f"{name}.bin").read_bytes() for side in ("daft", "plain"))
            assert found == expected and len(found) > 8 * 50
    assert [(tmp_path / "none" / f"{name}.bin").stat().st_size for name in LIMITS] == [0, 0, 0]
