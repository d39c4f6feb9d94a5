"""Settings of the document pipeline: where text comes from, how it is measured, and what is removed.

Two artifacts are made from them. Tagging reads the sources and writes a column for every measurement; the documents are
selected by these columns. A threshold is part of the second artifact's key only, so changing it reads no source again.
Thresholds of published rules (Gopher, StarCoder) are constants in `quality.py`, with their source; a run can disable
rules (`quality.disable`) but not change these constants.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PlainSerializer, field_validator, model_validator

from lifecycle.core.config import Section
from lifecycle.core.fetched import checked_place
from lifecycle.core.web_address import shown

Format = Literal["text", "markdown", "rst", "html", "code", "python_dict"]
PiiKind = Literal["email", "ip", "phone", "card"]
ProseRule = Literal[
    "too_few_words", "too_many_words", "mean_word_length", "symbol_to_word_ratio", "bullet_lines", "ellipsis_lines",
    "alphabetic_words", "stop_words", "repetition",
]  # fmt: skip
CodeRule = Literal["long_line", "long_mean_line", "alphanumeric_share"]

# Folders with generated files, third-party packages or a tool's own state.
DEFAULT_EXCLUDE = ("**/__pycache__", "**/site-packages", "**/dist-packages", "**/node_modules", "**/.*")


class SourceConfig(Section):
    """A folder or a file to read; earlier sources win when documents of two sources are duplicates."""

    name: str = Field(min_length=1)
    # Relative to the working folder, or an address such as s3://BUCKET/FOLDER, on the web of one file; `${stdlib}` is
    # the running Python's standard library folder.
    path: Annotated[str, AfterValidator(checked_place), PlainSerializer(shown, when_used="json")]
    include: tuple[str, ...] = ("**/*",)  # globs below `path`
    exclude: tuple[str, ...] = DEFAULT_EXCLUDE  # a glob that matches a folder excludes everything below it
    format: Format | None = None  # None: by file name; for JSONL and Parquet: the format of the text in their rows
    license: str = "unknown"
    text_column: str = "text"  # of JSONL and Parquet rows


class LanguageConfig(Section):
    """Which natural languages are kept; source code is tagged but never removed by language."""

    keep: tuple[str, ...] = ()  # ISO 639 codes as fastText's lid.176 prints them; empty keeps all
    # Below this a document's language is undetermined. It decides which quality measures apply, so tagging needs it.
    min_score: float = Field(default=0.4, ge=0, le=1)


class QualityConfig(Section):
    """Gopher's rules for prose, StarCoder's for code."""

    min_words: int = Field(default=50, ge=0)
    max_words: int = Field(default=100_000, ge=1)
    disable: tuple[ProseRule | CodeRule, ...] = ()


LEAST_RECALL, GOOD_RECALL = 0.5, 0.9  # of pairs just at the threshold: what is more alike is found more often


def recall(jaccard: float, bands: int, rows: int) -> float:
    """The probability that two documents of this similarity have a key in common."""
    return 1 - (1 - jaccard**rows) ** bands


class DedupConfig(Section):
    """Near-duplicates: documents whose sets of word 5-grams have at least this Jaccard similarity.

    They are looked for by `bands` keys of `rows` hash functions each: more bands find more of them, more rows compare
    fewer pairs in vain. Tagging makes the keys.
    """

    jaccard: float = Field(default=0.8, ge=0.3, le=1)
    bands: int = Field(default=14, ge=1, le=128)
    rows: int = Field(default=8, ge=1, le=32)

    @model_validator(mode="after")
    def _finds_most(self) -> Self:
        found = recall(self.jaccard, self.bands, self.rows)
        if found < LEAST_RECALL:
            rows = max(rows for rows in range(1, 9) if recall(self.jaccard, 112 // rows, rows) >= GOOD_RECALL)
            raise ValueError(
                f"dedup.bands={self.bands} and dedup.rows={self.rows} find {found:.0%} of the documents that are just "
                f"as alike as dedup.jaccard={self.jaccard:g} asks; choose bands={112 // rows}, rows={rows}"
            )
        return self


class DecontaminationConfig(Section):
    """Removes training documents that share too much with held-out documents or evaluation rows."""

    ngram: int = Field(default=13, ge=5)  # words
    min_overlap: float = Field(default=0.5, gt=0, le=1)  # share of the n-grams of either side


# The settings that decide only which documents are removed, as pydantic's `include` and `exclude` take them. A setting
# that is not listed is part of tagging's key, so a forgotten entry costs time but never leaves stale columns.
_SELECTION: dict[str, Any] = {
    "language": {"keep"}, "quality": True, "dedup": {"jaccard"}, "decontamination": True, "heldout_fraction": True,
    "heldout_bytes": True,
}  # fmt: skip


class DataConfig(Section):
    """The document pipeline."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    max_document_bytes: int = Field(default=5_000_000, ge=1)  # larger files and rows are skipped and listed
    # An error if a larger share of the files, or of the rows in them, cannot be used. Left out of keys: it decides
    # whether there is a result, not which.
    max_skipped: float = Field(default=0.05, ge=0, le=1, exclude=True)
    language: LanguageConfig = LanguageConfig()
    quality: QualityConfig = QualityConfig()
    pii: tuple[PiiKind, ...] = ("email", "ip", "phone", "card")  # kinds that are masked
    dedup: DedupConfig = DedupConfig()
    decontamination: DecontaminationConfig = DecontaminationConfig()
    heldout_fraction: float = Field(default=0.05, gt=0, lt=1)
    heldout_bytes: int = Field(default=20_000_000, ge=1)  # of text, at most: more measures no better
    # Left out of manifests and keys: the number of processes never changes the result. None: all cores.
    workers: int | None = Field(default=None, ge=1, exclude=True)
    engine: Literal["native", "ray"] = Field(default="native", exclude=True)
    ray_address: str = Field(default="auto", exclude=True)  # as `ray.init` takes it: HOST:PORT, or the cluster that is here

    @field_validator("sources")
    @classmethod
    def _names_differ(cls, sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        names = [source.name for source in sources]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"two sources are named {doubled[0]!r}; give each a name of its own")
        return sources

    @model_validator(mode="after")
    def _words_in_order(self) -> Self:
        if self.quality.min_words > self.quality.max_words:
            raise ValueError("quality.min_words is above quality.max_words: every prose document would fail; lower it")
        return self

    def tagging(self) -> dict[str, Any]:
        """JSON-ready settings that decide the columns that tagging writes."""
        return self.model_dump(mode="json", exclude=_SELECTION)

    def selection(self) -> dict[str, Any]:
        """JSON-ready settings that decide which of the tagged documents are kept and held out."""
        return self.model_dump(mode="json", include=_SELECTION)
