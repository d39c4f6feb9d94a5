"""Settings of the document pipeline: where text comes from, how it is measured, and what is removed.

Two artifacts are made from them. Tagging reads the sources and writes a column for every measurement; the documents are
selected by these columns. A threshold is part of the second artifact's key only, so changing it reads no source again.
The thresholds of published rules are in `quality_config.py`, in families with their sources.
"""

import re
from functools import lru_cache
from hashlib import blake2b, file_digest
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    SecretBytes,
    field_validator,
    model_validator,
)

from lifecycle.core.config import Section
from lifecycle.core.fetched import checked_place
from lifecycle.core.store import path_or_url
from lifecycle.core.web_address import shown
from lifecycle.data.measures.quality_config import Language, LinesConfig, QualityConfig

Format = Literal["text", "markdown", "rst", "html", "latex", "man", "mail", "code", "python_dict"]
PiiKind = Literal["email", "phone", "ip", "iban", "card", "national_id", "secret"]
LEAST_KEY_BYTES = 32
MOST = 1_000_000_000  # of what is counted: Arrow's arrays of texts end at 2 GB
UNKNOWN = "unknown"  # a licence

# Folders with generated files, third-party packages or a tool's own state, and what `datasets` notes of its files.
DEFAULT_EXCLUDE = (
    "**/__pycache__", "**/site-packages", "**/dist-packages", "**/node_modules", "**/.*", "**/dataset_info.json",
    "**/dataset_infos.json", "**/dataset_dict.json", "**/state.json",
)  # fmt: skip


class SourceConfig(Section):
    """A folder or a file to read; of duplicates that `dedup.prefer` does not tell apart, earlier sources' stay.

    Rows are those of JSONL, JSON, CSV and Parquet. Where a row has an address, a time or a licence of its own, these
    are its document's; its other columns become metadata.
    """

    name: str = Field(min_length=1)
    # Relative to the working folder, or an address such as s3://BUCKET/FOLDER, on the web of one file; `${stdlib}` is
    # the running Python's standard library folder.
    path: Annotated[str, AfterValidator(checked_place), PlainSerializer(shown, when_used="json")]
    include: tuple[str, ...] = ("**/*",)  # globs below `path`
    exclude: tuple[str, ...] = DEFAULT_EXCLUDE  # one that matches a folder excludes all below it; in archives too
    format: Format | None = None  # None: by file name and content, in a row: text
    html: Literal["own", "trafilatura"] = "own"  # which reader makes text of web pages; the second is an extra
    license: str = UNKNOWN  # of documents that say nothing else; an SPDX identifier, if there is one
    text_column: str = "text"
    url_column: str = "url"
    license_column: str = "license"
    time_columns: tuple[str, ...] = ("date", "timestamp", "time", "created", "created_at", "published")  # the first

    @field_validator("html")
    @classmethod
    def _reader_is_installed(cls, reader: str) -> str:
        if reader == "trafilatura" and find_spec(reader) is None:
            raise ValueError("trafilatura is an extra: install it with `uv sync --extra trafilatura`")
        return reader


class LanguageConfig(Section):
    """Which natural languages are kept; source code is tagged but never removed by language."""

    keep: tuple[Language, ...] = ()  # ISO 639 codes as fastText's lid.176 prints them; empty keeps all
    # Below this a document's language is undetermined. It decides which quality measures apply, so tagging needs it.
    min_score: float = Field(default=0.4, ge=0, le=1)
    # And so it is if a smaller share of its letters is in that language's script. In 4,103 manuals in 30 languages
    # right answers have 0.04 or more (Korean with many English names), wrong ones 0 to 0.03.
    min_script_share: float = Field(default=0.03, ge=0, le=1)
    scores: dict[Language, Annotated[float, Field(ge=0, le=1)]] = Field(
        default={}
    )  # what a document in these languages needs to stay, such as {en: 0.65}


def _read_key(value: Any) -> Any:
    """The content of the file that a setting names."""
    if not isinstance(value, str):
        return value
    try:
        key = Path(value).expanduser().read_bytes().strip()
    except OSError as error:
        raise ValueError(f"{value}: {error.strerror}; make a key with: openssl rand -hex 32 > {value}") from None
    if len(key) < LEAST_KEY_BYTES:
        raise ValueError(f"{value}: a key of {len(key)} bytes can be guessed; make one with: openssl rand -hex 32")
    return key


def _fingerprint(key: SecretBytes | None) -> str | None:
    """What tells keys apart and does not give them away."""
    return None if key is None else blake2b(key.get_secret_value(), digest_size=8, person=b"fingerprint").hexdigest()


class PiiConfig(Section):
    """Personal data: all kinds are looked for and counted, and masked unless they are in `keep`."""

    keep: tuple[PiiKind, ...] = ()  # left in the text
    max_count: dict[PiiKind, Annotated[int, Field(ge=0)]] = Field(
        default={}
    )  # documents with more of a kind are removed: 0 is none at all
    # A file with a secret of 32 bytes or more, kept apart from the data. With it, `pii_spans` has a hash of each value,
    # so that its owner finds a person's data again; without, none: phone numbers are few enough to try them all.
    hash_key: Annotated[
        SecretBytes | None, BeforeValidator(_read_key), PlainSerializer(_fingerprint, when_used="json")
    ] = None


def _existing(path: str) -> str:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{path}: no such file")
    return str(file)


def _content_of(path: str) -> str:
    file = Path(path)
    return _hashed(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _hashed(file: Path, changed: int) -> str:
    del changed
    with file.open("rb") as content:
        return file_digest(content, "sha256").hexdigest()


# A file of the user's. Its content counts, not its place.
UserFile = Annotated[str, AfterValidator(_existing), PlainSerializer(_content_of, when_used="json")]
MeasureName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]


TAKEN = ("language", "link", "stop_word", "word")  # columns of other steps begin like this


class ListConfig(Section):
    """A list of what documents should not have: words and phrases, a line each, or hosts and addresses.

    Documents with more than `max` are removed: of their words this share, or this number of addresses.
    """

    name: MeasureName
    path: UserFile
    of: Literal["words", "addresses"] = "words"
    max: float = Field(ge=0)


class ClassifierConfig(Section):
    """A classifier by `lifecycle data train-classifier`; documents with a score outside `min` and `max` are removed."""

    name: MeasureName
    path: UserFile
    min: float = Field(default=0, ge=0, le=1)
    max: float = Field(default=1, ge=0, le=1)


class ScoresConfig(Section):
    """Scores that were made elsewhere, a file of rows with `id` and `column`; documents outside `min` and `max` are
    removed, those without a score pass.
    """

    name: MeasureName
    path: UserFile
    column: str = "score"
    min: float | None = None
    max: float | None = None


LEAST_RECALL, GOOD_RECALL = 0.5, 0.9  # of pairs just at the threshold: what is more alike is found more often


def recall(jaccard: float, bands: int, rows: int) -> float:
    """The probability that two documents of this similarity have a key in common."""
    return 1 - (1 - jaccard**rows) ** bands


PREFERENCES = ("source", "license", "longest", "shortest", "newest", "oldest")
AGAINST = "against_"  # how the inputs of the documents are named that are earlier ones
_BY_COLUMN = re.compile(r"(highest|lowest) [a-z][a-z0-9_]*")


def _criterion(name: str) -> str:
    if name not in PREFERENCES and not _BY_COLUMN.fullmatch(name):
        known = f"{', '.join(PREFERENCES)}, 'highest COLUMN' or 'lowest COLUMN'"
        raise ValueError(f"{name!r} says of no document that it is better; choose from {known}")
    return name


class DedupConfig(Section):
    """Near-duplicates: documents whose sets of word 5-grams have at least this Jaccard similarity.

    They are looked for by `bands` keys of `rows` hash functions each: more bands find more of them, more rows compare
    fewer pairs in vain. Tagging makes the keys. What else repeats is cut out of documents that stay (`cutting.py`).
    """

    addresses: bool = False  # of documents with the same address, too, only one stays
    # Which of a group of duplicates stays: the first of these that tells two apart decides, and in the end the order of
    # the sources and of the documents in them (`preference.py`).
    prefer: tuple[Annotated[str, AfterValidator(_criterion)], ...] = ("source",)
    # Documents of other runs, or their signatures, by folder or address of the artifact: what they have is removed.
    # Left out of keys, where the artifacts' contents are (`earlier.py`).
    against: tuple[Annotated[str, AfterValidator(path_or_url)], ...] = Field(default=(), exclude=True)
    jaccard: float = Field(default=0.8, ge=0.3, le=1)
    bands: int = Field(default=14, ge=1, le=128)
    rows: int = Field(default=8, ge=1, le=32)
    # A line, or a paragraph, that stands in more documents is cut from all but the first so many; None: from none.
    lines: int | None = Field(default=None, ge=1, le=MOST)
    paragraphs: int | None = Field(default=None, ge=1, le=MOST)
    # A passage of at least so many words that stands twice is cut where it stands again; None: none is. Lee et al. cut
    # from 50 tokens on (arXiv:2107.06499), which are some 40 words.
    substrings: int | None = Field(default=None, ge=10, le=MOST)
    max_cut: float = Field(default=0.8, gt=0, le=1)  # a document that would lose more of its text is removed whole

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
    """What becomes of training documents that share too much with held-out documents or evaluation rows.

    They are removed, or what they share is cut out of them as for GPT-3 (`contaminated_passages.py`).
    """

    action: Literal["drop", "cut"] = "drop"

    ngram: int = Field(default=13, ge=5, le=1000)  # words
    min_overlap: float = Field(default=0.5, gt=0, le=1)  # share of the n-grams of either side


# The settings that decide only which documents are removed, as pydantic's `include` and `exclude` take them. A setting
# that is not listed is part of tagging's key, so a forgotten entry costs time but never leaves stale columns.
_SELECTION: dict[str, Any] = {
    "language": {"keep", "scores"}, "lines": {"max_removed_words"},
    "quality": {"gopher", "repetition", "c4", "fineweb", "starcoder", "bigcode", "languages"},
    "pii": {"max_count"}, "lists": {"__all__": {"max"}},
    "classifiers": {"__all__": {"min", "max"}}, "scores": True,
    "dedup": {"jaccard", "addresses", "prefer", "lines", "paragraphs", "substrings", "max_cut"},
    "decontamination": True, "heldout_fraction": True, "heldout_bytes": True, "rights": True,
}  # fmt: skip
_SHARDS: dict[str, Any] = {"topics": True}  # that decide only how token shards name the documents


class ShardsConfig(Section):
    """The files of tokens that documents become, of all corpora, shuffled."""

    # Of training text. None: of 16 MB each, of very large corpora 16,384. For N hosts that each read a part of them, a
    # multiple of N: they differ in size as chance has it, one of n documents by some 1 / sqrt(n).
    count: int | None = Field(default=None, ge=1, le=65_536)


type Places = tuple[Annotated[str, AfterValidator(checked_place), PlainSerializer(shown, when_used="json")], ...]


class RightsConfig(Section):
    """Whose documents may be used. The lists are files of ids, hashes, addresses and hosts (`rights.py`)."""

    licenses: tuple[str, ...] = ()  # that are allowed, as the documents have them; empty allows all
    forget: Places = ()  # lists of documents that must not be used
    opt_outs: dict[str, Places] = Field(default={})  # the same, for the documents of one source


class DataConfig(Section):
    """The document pipeline; its presets, `configs/data/`, are rules for a kind of text."""

    preset_folder: ClassVar[str | None] = "data"
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    max_document_bytes: int = Field(default=5_000_000, ge=1, le=MOST)  # larger files and rows are skipped and listed
    # An error if a larger share of the files, or of the rows in them, cannot be used. Left out of keys: it decides
    # whether there is a result, not which.
    max_skipped: float = Field(default=0.05, ge=0, le=1, exclude=True)
    # Times that a partition, and then each of its files, is tried before it is given up as failed. Not in keys either.
    attempts: int = Field(default=3, ge=1, le=100, exclude=True)
    language: LanguageConfig = LanguageConfig()
    lines: LinesConfig = LinesConfig()
    quality: QualityConfig = QualityConfig()
    rights: RightsConfig = RightsConfig()
    lists: tuple[ListConfig, ...] = ()
    classifiers: tuple[ClassifierConfig, ...] = ()
    scores: tuple[ScoresConfig, ...] = ()
    # A file by `lifecycle data topics`: token shards, and so mixtures, then have a source's documents by topic.
    topics: UserFile | None = None
    pii: PiiConfig = PiiConfig()
    dedup: DedupConfig = DedupConfig()
    decontamination: DecontaminationConfig = DecontaminationConfig()
    heldout_fraction: float = Field(default=0.05, gt=0, lt=1)
    heldout_bytes: int = Field(default=20_000_000, ge=1)  # of text, at most: more measures no better
    # Left out of manifests and keys: the number of processes never changes the result. None: all cores.
    workers: int | None = Field(default=None, ge=1, exclude=True)
    # Of input, about: a second's work, small enough that two workers end at about the same time. On a cluster 100 MB
    # or more, since each is a file in the run's folder. It changes no document, but partitions are made again.
    partition_bytes: int = Field(default=500_000, ge=1000, exclude=True)
    engine: Literal["native", "ray"] = Field(default="native", exclude=True)
    ray_address: str = Field(default="auto", exclude=True)  # HOST:PORT; auto: of the cluster that this machine is in

    @field_validator("sources")
    @classmethod
    def _names_differ(cls, sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        names = [source.name for source in sources]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"two sources are named {doubled[0]!r}; give each a name of its own")
        return sources

    @model_validator(mode="after")
    def _opt_outs_have_a_source(self) -> Self:
        unknown = self.rights.opt_outs.keys() - {source.name for source in self.sources}
        if unknown:
            raise ValueError(f"rights.opt_outs: no source is named {min(unknown)!r}")
        return self

    @model_validator(mode="after")
    def _measures_differ(self) -> Self:
        names = [own.name for own in (*self.lists, *self.classifiers, *self.scores)]
        doubled = sorted({name for name in names if names.count(name) > 1 or name in TAKEN})
        if doubled:
            raise ValueError(
                f"lists, classifiers and scores: {doubled[0]!r} names something else already; take another name"
            )
        return self

    def tagging(self) -> dict[str, Any]:
        """JSON-ready settings that decide the columns that tagging writes."""
        return self.model_dump(mode="json", exclude=_SELECTION | _SHARDS)

    def selection(self) -> dict[str, Any]:
        """JSON-ready settings that decide which of the tagged documents are kept and held out."""
        return self.model_dump(mode="json", include=_SELECTION)

    def sharding(self) -> dict[str, Any]:
        """JSON-ready settings that decide how token shards name the documents."""
        return self.model_dump(mode="json", include=_SHARDS)
