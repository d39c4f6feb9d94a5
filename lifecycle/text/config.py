"""The settings of rows: files by kind, and how their columns are read. `docs/rows.md` has examples."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from lifecycle.core.config import Section
from lifecycle.core.fetched import Place
from lifecycle.text.row_columns import KINDS, Columns

DOCSTRING_KINDS = ("chat", "pairs")  # of rows that can be made from docstrings
LARGEST_SIZE = 1 << 28
GYM_INSTRUCTION = "Give your answer inside <answer> and </answer>, and nothing else there."

type Convert = Literal["alpaca", "sharegpt"]


class RowsFile(Section):
    """A file of the user's own rows, and how its columns are read where that differs from the other files'."""

    path: Place
    weight: float | None = Field(default=None, gt=0)  # of its rows' share of an epoch; given for all files, or for none
    ignore: tuple[str, ...] | None = None  # None: as `rows` says, here and below
    rename: dict[str, str] | None = None
    convert: Convert | None = None


def _files(given: Any) -> Any:
    """One file, a list of files, or their weights by path, as a list of sections."""
    if isinstance(given, Mapping) and "path" in given:
        return [given]
    if isinstance(given, Mapping):
        return [{"path": path, "weight": weight} for path, weight in given.items()]
    files = [given] if isinstance(given, str | Path) else given
    if not isinstance(files, list | tuple):
        return files
    return [{"path": file} if isinstance(file, str | Path) else file for file in files]


# In YAML a path, a section, a list of these, or a mapping from path to weight.
RowsFiles = Annotated[
    tuple[RowsFile, ...],
    BeforeValidator(
        _files, json_schema_input_type=str | RowsFile | list[str | RowsFile] | dict[str, Annotated[float, Field(gt=0)]]
    ),
]


class GymTask(Section):
    """Prompts made by a task of `reasoning-gym` (an extra): its name there (`leg_counting`), its own settings, and how
    many rows of either side. Seeds of training begin at `seed`, those held out far from them."""

    task: str
    settings: Annotated[
        dict[str, JsonValue], Field(default_factory=dict, description="of the task, as reasoning-gym names them")
    ]
    size: Annotated[int, Field(ge=1, le=LARGEST_SIZE)] = 1000
    held_out: Annotated[int, Field(ge=1, le=LARGEST_SIZE, description="rows with seeds of their own")] = 100
    seed: Annotated[
        int, Field(ge=0, lt=LARGEST_SIZE, description="rows of another seed differ, if it is size or more away")
    ] = 0
    system: Annotated[str | None, Field(description="the system message; none: there is none")] = GYM_INSTRUCTION


class RowsConfig(Section):
    """Rows for training after pre-training: the user's own JSONL, JSON or Parquet files, docstrings of the documents,
    tasks of reasoning-gym, or several of these. Which columns each kind has: `text/row_columns.py`."""

    docstrings: bool = False  # rows about the functions of the documents' Python source
    reasoning_gym: tuple[GymTask, ...] = ()  # tasks that make prompts; sizes are shares of an epoch
    # Paths, or addresses: s3://, gs://, https://.
    chat: RowsFiles = ()
    pairs: RowsFiles = ()
    labelled: RowsFiles = ()
    steps: RowsFiles = ()
    prompts: RowsFiles = ()
    taught: RowsFiles = ()
    # Columns that the files have and no stage needs, and columns with other names: {THEIRS: OURS}. Any other column
    # that is not read is an error.
    ignore: tuple[str, ...] = ()
    rename: dict[str, str] = Field(default_factory=dict)
    convert: Convert | None = None  # the layout that the files have instead of TRL's columns
    # Whether the names of special tokens in rows of text (`<|im_start|>`) are these tokens, or as plain as all else.
    special_tokens: bool = False
    heldout_fraction: float = Field(default=0.05, gt=0, lt=1)  # of the user's own rows, by the hash of their prompts
    # The largest share of rows that may be dropped, of a kind and by a stage. Published sets have some per cent of
    # doubled and overlong rows; where more than a tenth cannot be learned from, a setting or the file is wrong.
    max_dropped: float = Field(default=0.1, ge=0, le=1)

    def of(self, kind: str) -> tuple[RowsFile, ...]:
        """The files of a kind of rows."""
        return getattr(self, kind)

    def maker(self, kind: str) -> str:
        """The setting that makes rows of a kind without a file; empty if none is set."""
        if self.docstrings and kind in DOCSTRING_KINDS:
            return "docstrings"
        return "reasoning_gym" if self.reasoning_gym and kind == "prompts" else ""

    def columns(self, kind: str, file: RowsFile) -> Columns:
        """How a file's columns are read."""
        ignore = self.ignore if file.ignore is None else file.ignore
        rename = self.rename if file.rename is None else file.rename
        return Columns(kind, ignore, rename, file.convert or self.convert)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for kind in KINDS:
            files = self.of(kind)
            for columns in (self.columns(kind, file) for file in files):
                if both := sorted({*columns.ignore} & columns.rename.keys()):
                    raise ValueError(f"{kind}: {', '.join(both)} is both in ignore and in rename; leave it out of one")
            weighted = [file for file in files if file.weight is not None]
            if weighted and len(weighted) < len(files):
                lacking = next(file for file in files if file.weight is None)
                raise ValueError(f"{kind}: {lacking.path} has no weight, and others do; give one to all or to none")
            if weighted and (maker := self.maker(kind)):
                raise ValueError(
                    f"{kind}: weights are shares of an epoch, and rows made from {maker} have none; leave them out, or "
                    f"remove rows.{maker}"
                )
        return self
