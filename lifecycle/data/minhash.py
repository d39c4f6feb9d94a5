"""Duplicates by Daft: exact groups and MinHash candidate pairs. The same code runs on Ray.

The only file that imports Daft, itself imported only in a separate process: in a process that also has JAX, the
interpreter has crashed at exit (3 of 100 runs).
MinHash (Broder 1997) with banding (Leskovec et al., Mining of Massive Datasets, section 3.4): two documents are a
candidate pair if their signatures agree in at least one band. The signature depends on the words alone, so the pairs do
not depend on how Daft partitions or orders the rows.
"""

import os
from pathlib import Path

# Daft reads these when it is imported: no telemetry, and no output on the terminal, which shows the stage's progress.
os.environ.update(dict.fromkeys(("DAFT_ANALYTICS_ENABLED", "DAFT_PROGRESS_BAR", "DAFT_SHOW_QUERY_ID"), "0"))

import daft
from daft import col, lit
from daft import functions as F

from lifecycle.data.similarity import NUM_HASHES, SHINGLE_WORDS, bands_for

BUCKET_HEADS = 16  # a bucket of n documents gives at most 16 n pairs, and all of its pairs if n <= 17


def read_texts(path: Path) -> daft.DataFrame:
    """The rows (`ordinal`, `text`) of a Parquet file or a folder of them."""
    return daft.read_parquet(str(path))


def without(documents: daft.DataFrame, ordinals: list[int]) -> daft.DataFrame:
    """The documents except those with these ordinals."""
    return documents.where(~col("ordinal").is_in(ordinals)) if ordinals else documents


def exact_groups(documents: daft.DataFrame) -> list[tuple[int, int]]:
    """Sorted (ordinal, first ordinal with the same `text`) of every document that is not the first."""
    keyed = documents.with_column("content", col("text"))
    firsts = keyed.groupby("content").agg(col("ordinal").min().alias("first"))
    copies = keyed.select("ordinal", "content").join(firsts, on="content").where(col("ordinal") != col("first"))
    columns = copies.select("ordinal", "first").to_pydict()
    return sorted(zip(columns["ordinal"], columns["first"], strict=True))


def candidate_pairs(documents: daft.DataFrame, jaccard: float) -> list[tuple[int, int]]:
    """Sorted pairs of ordinals, the lower first, whose word shingles may have at least this Jaccard similarity."""
    bands, rows = bands_for(jaccard)
    words = F.strip(F.regexp_replace(F.lower(col("text")), r"\W+", " "))
    signature = F.minhash(words, num_hashes=NUM_HASHES, ngram_size=SHINGLE_WORDS, hash_function="xxhash3_64")
    # Keys are seeded by the number of the band, so equal rows in different bands do not collide.
    keys = [F.hash(F.slice(col("signature"), at * rows, (at + 1) * rows), seed=at) for at in range(bands)]
    buckets = (
        documents.select("ordinal", signature.alias("signature"))
        .select("ordinal", F.to_list(*keys).alias("key"))
        .explode("key")
        .groupby("key")
        .agg(col("ordinal").list_agg().alias("members"), col("ordinal").count().alias("size"))
        .where(col("size") > lit(1))
        .select("members")
    )
    pairs: set[tuple[int, int]] = set()
    for row in buckets.iter_rows():
        members = sorted(row["members"])
        pairs |= {(low, high) for at, low in enumerate(members[:BUCKET_HEADS]) for high in members[at + 1 :]}
    return sorted(pairs)


def texts_of(documents: daft.DataFrame, ordinals: list[int]) -> dict[int, str]:
    """The texts of some documents, by ordinal."""
    if not ordinals:
        return {}
    columns = documents.where(col("ordinal").is_in(ordinals)).select("ordinal", "text").to_pydict()
    return dict(zip(columns["ordinal"], columns["text"], strict=True))
