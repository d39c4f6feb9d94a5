"""Made near-duplicates for tests, and what deduplication removes of them."""

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from document_tables import numbered, stored

from lifecycle.core.progress import Silent
from lifecycle.data.config import DedupConfig
from lifecycle.data.measures.identity import Identify
from lifecycle.data.measures.minhash import Sign
from lifecycle.data.measures.steps import run_steps
from lifecycle.data.selecting.candidate_pairs import waves_of
from lifecycle.data.selecting.daft_process import DaftProcess
from lifecycle.data.selecting.dedup import deduplicate
from lifecycle.data.selecting.earlier import EarlierCorpus, Pool
from lifecycle.data.selecting.similarity import Pair, SimilarGroups
from lifecycle.data.tagging.engine import Native

CONFIG = DedupConfig()
WORDS = [f"word{number}" for number in range(3000)]


def made_texts(groups: int, copies: int, seed: int = 0) -> list[str]:
    """`groups` random texts of 200 words, each with `copies` in which one to seven words are replaced."""
    chance = random.Random(seed)
    texts = []
    for _ in range(groups):
        base = chance.choices(WORDS, k=200)
        texts.append(" ".join(base))
        for _ in range(copies):
            changed = set(chance.sample(range(200), chance.randint(1, 7)))
            texts.append(" ".join(f"new{chance.random()}" if at in changed else w for at, w in enumerate(base)))
    return texts


def signed(documents: pa.Table, config: DedupConfig = CONFIG) -> pa.Table:
    """Numbered documents with the columns of signatures."""
    batch = documents.drop_columns("ordinal").combine_chunks().to_batches()[0]
    return numbered(pa.Table.from_batches([run_steps(batch, [Identify(), Sign(config.bands, config.rows)])]))


def removed_of(
    documents: pa.Table, folder: Path, config: DedupConfig = CONFIG, *,
    among: Sequence[int] | None = None, ranks: Sequence[int] | None = None, workers: int = 1,
    earlier: Sequence[EarlierCorpus] = (),
) -> pa.Table:  # fmt: skip
    """The removals among some of the documents; None: all. Without ranks the first of a group stays."""
    chosen = np.isin(np.arange(len(documents)), range(len(documents)) if among is None else among)
    order = np.array(range(len(documents)) if ranks is None else ranks)
    pool = Pool.of(stored(signed(documents, config), folder), order, earlier)
    with Native(workers) as engine, DaftProcess(engine.address) as daft:
        return deduplicate(pool, chosen, config, engine, daft, folder, Silent())


def joined(
    count: int, num_own: int, parts: Iterable[Sequence[int]], similarity: Callable[[Pair], float]
) -> SimilarGroups:
    """Groups by the pairs of these parts, at a Jaccard similarity of 0.8."""
    groups = SimilarGroups(count, num_own, 0.8)
    for pairs in waves_of(parts, num_own):
        apart = groups.apart(pairs)
        groups.join(apart, map(similarity, apart))
    return groups


def named_in(details: pa.ChunkedArray) -> list[int]:
    """The document of each group that stays, by its path."""
    return [int(detail.as_py().rpartition(":f")[2]) for detail in details]
