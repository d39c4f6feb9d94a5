"""A debug model, and rows of each kind for it: documents in memory, pairs, answers, steps, completions."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from lifecycle.model.config import ModelConfig
from lifecycle.text.row_encoder import EncodedRow
from lifecycle.training.document_rows import DocumentRows
from lifecycle.training.group_rows import Group, GroupRows
from lifecycle.training.mixture import Mixture
from lifecycle.training.objectives.policy import OLD, SAMPLER
from lifecycle.training.objectives.policy import REFERENCE as REFERENCE_TOKENS
from lifecycle.training.packing import ExampleRows, Row
from lifecycle.training.reference import OF_OTHERS, REFERENCE, ReferenceRows
from lifecycle.training.step_rows import StepRows

MODEL = ModelConfig(
    vocab_size=96, d_model=32, d_ff=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, max_seq_len=64,
    family="qwen3", qk_norm="head", compute_dtype="float32",
)  # fmt: skip
SEQ_LEN = 32
TEACHER = MODEL.model_copy(update={"d_model": 48, "num_heads": 6, "tie_embeddings": True})


class Documents:
    """Token documents in memory; the next token is mostly the last one plus three, so there is something to learn."""

    def __init__(self, num: int, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.lengths = draw.integers(5, 60, num)
        self.index = {"seed": seed}
        self._tokens = [self._document(draw, int(length)) for length in self.lengths]

    def _document(self, draw: np.random.Generator, length: int) -> np.ndarray:
        steps = np.where(draw.random(length) < 0.8, 3, draw.integers(0, MODEL.vocab_size, length))
        return (np.cumsum(steps) % MODEL.vocab_size).astype(np.int32)

    def __getitem__(self, document: int) -> np.ndarray:
        return self._tokens[document]

    def name(self, document: int) -> str:
        """Its number."""
        return str(document)


class Part:
    """The documents of one source of a corpus."""

    def __init__(self, corpus: Documents, numbers: np.ndarray) -> None:
        self._corpus, self.numbers = corpus, numbers
        self.lengths = corpus.lengths[numbers]
        self.index = {**corpus.index, "numbers": numbers.tolist()}

    def __getitem__(self, document: int) -> np.ndarray:
        return self._corpus[int(self.numbers[document])]

    def name(self, document: int) -> str:
        """Its number in the corpus."""
        return self._corpus.name(int(self.numbers[document]))


class Sources(Documents):
    """Documents of three sources, which come in turns."""

    sources = ("a", "b", "c")

    def of_source(self, name: str) -> Part:
        """The documents of one source."""
        return Part(self, np.arange(self.sources.index(name), len(self.lengths), len(self.sources)))


@dataclass(frozen=True)
class Example:
    """One encoded row: ids, and which of them are targets."""

    ids: list[int]
    loss_mask: list[bool]


def example(draw: np.random.Generator, prompt: list[int], answer_len: int) -> Example:
    """The prompt, then a random answer, which alone has loss."""
    answer = draw.integers(0, MODEL.vocab_size, answer_len).tolist()
    return Example(prompt + answer, [False] * len(prompt) + [True] * answer_len)


@cache
def document_rows(seed: int = 0) -> DocumentRows:
    """Rows of 60 random documents, packed."""
    return DocumentRows(Documents(60, seed), SEQ_LEN, seed)


@cache
def pair_rows(seed: int = 0) -> ReferenceRows:
    """Preference pairs of unequal lengths, up to a few in a row, with made-up reference log-probabilities."""
    draw = np.random.default_rng(seed)
    pairs = []
    for _ in range(60):
        prompt = draw.integers(0, MODEL.vocab_size, int(draw.integers(1, 5))).tolist()
        pairs.append(Group([example(draw, prompt, int(draw.integers(1, 8))) for _ in range(2)]))
    rows = GroupRows(pairs, SEQ_LEN, seed)
    return ReferenceRows(rows, {REFERENCE: -20 * draw.random((rows.num_groups, 2), np.float32)})


@cache
def labelled_rows(seed: int = 0) -> ReferenceRows:
    """Answers that are good or bad, each with one that belongs to another prompt, and made-up references."""
    draw = np.random.default_rng(seed)
    prompts = [draw.integers(0, MODEL.vocab_size, int(draw.integers(1, 5))).tolist() for _ in range(60)]
    sizes = draw.integers(1, 8, 60).tolist()
    groups = [
        Group([example(draw, prompt, size)], {"label": [float(draw.random() < 0.6)]}, [example(draw, prompt, other)])
        for prompt, size, other in zip(prompts, sizes, sizes[1:] + sizes[:1], strict=True)
    ]
    rows = GroupRows(groups, SEQ_LEN, seed)
    shape = (rows.num_groups, 1)
    return ReferenceRows(rows, {name: -20 * draw.random(shape, np.float32) for name in (REFERENCE, OF_OTHERS)})


@cache
def step_rows(seed: int = 0) -> StepRows:
    """Answers in steps of a few tokens, each right or wrong."""
    draw = np.random.default_rng(seed)
    answers = []
    for size in draw.integers(4, 20, 60).tolist():
        ends = [draw.random() < 0.3 for _ in range(size - 1)] + [True]
        labels = [float(is_end and draw.random() < 0.6) for is_end in ends]
        answers.append(EncodedRow(draw.integers(0, MODEL.vocab_size, size).tolist(), ends, labels))
    return StepRows(answers, SEQ_LEN, seed)


def mixed_rows(seq_len: int) -> Mixture:
    """Three sources in unequal shares, cut and packed; each has few rows, so that epochs roll over."""
    draw = np.random.default_rng(0)
    sources = {
        "cut": DocumentRows(Documents(9, 0), seq_len, 1),
        "other": DocumentRows(Documents(4, 1), seq_len, 2),
        "packed": ExampleRows([example(draw, [1, 2], 1 + i % 7) for i in range(11)], seq_len, 3),
    }
    return Mixture(sources, {"cut": 5, "other": 2, "packed": 1})


class OlderRows(ReferenceRows):
    """Answers with advantages, and made-up log-probabilities of an older policy."""

    def row(self, index: int) -> Row:
        """With `old_logprobs`, `reference_logprobs` and `sampler_logprobs`, `[T]`."""
        row = super().row(index)
        draw = np.random.default_rng(index)
        made_up = {name: -5 - draw.random(len(row["tokens"]), np.float32) for name in (OLD, REFERENCE_TOKENS, SAMPLER)}
        return row | made_up


@cache
def policy_rows(seed: int = 0) -> OlderRows:
    """Answers with made-up advantages."""
    draw = np.random.default_rng(seed)
    groups = [
        Group([example(draw, [1, 2, 3], int(size))], {"advantages": [float(draw.normal())]})
        for size in draw.integers(1, 8, 60)
    ]
    return OlderRows(GroupRows(groups, SEQ_LEN, seed), {})
