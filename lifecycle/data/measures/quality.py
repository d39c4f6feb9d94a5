"""Quality: measures of prose and of source code, and rules that remove documents by published thresholds.

Where a rule is from is said at its settings (`quality_config.py`), how its column is counted in `prose_measures.py` and
`code_measures.py`. Prose rules do not fit code, nor code rules prose: the document's format decides which measures it
has, and those that it has not are null and fail no rule. The stop words are English, so that rule applies to English
prose only; words cannot be counted in scripts that do not put blanks between them, so for languages with those only the
rules of lines and paragraphs apply.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lifecycle.data.config import DataConfig
from lifecycle.data.measures import code_measures, prose_measures
from lifecycle.data.measures.quality_config import (
    BigCodeConfig,
    C4Config,
    FineWebConfig,
    GopherConfig,
    QualityConfig,
    RepetitionConfig,
    StarCoderConfig,
)
from lifecycle.data.measures.steps import DocumentStep, Limit

WITHOUT_BLANKS = frozenset(("zh", "ja", "th", "lo", "km", "my", "bo", "wuu", "yue"))
_COUNTS = (*prose_measures.COUNTS, *code_measures.COUNTS)


@dataclass(frozen=True)
class MeasureQuality:
    """The measures of `code_measures` for source code and of `prose_measures` for everything else, those of words only
    if the script separates them; the others are null. A line of prose is short with up to `short_line` characters."""

    short_line: int
    columns: ClassVar[pa.Schema] = pa.schema([
        (name, pa.int64() if name in _COUNTS else pa.float64())
        for name in (*prose_measures.OF_WORDS, *prose_measures.OF_LINES, *code_measures.COLUMNS)
    ])  # fmt: skip

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The quality measures of a batch."""
        languages = batch["language"].to_pylist()
        is_code = _as_numpy(pc.call_function("equal", [batch["format"], "code"]))
        has_words = ~is_code & np.array([language not in WITHOUT_BLANKS for language in languages], bool)
        prose = prose_measures.prose_measures(batch["text"], ~is_code, self.short_line)
        code = code_measures.code_measures(batch["text"], languages, is_code)
        columns: dict[str, pa.Array] = {}
        for name, kind in zip(self.columns.names, self.columns.types, strict=True):
            if name in code:
                columns[name] = pa.array(code[name], mask=np.isnan(code[name])).cast(kind)
            else:
                present = has_words if name in prose_measures.OF_WORDS else ~is_code
                columns[name] = pa.array(prose[name], kind, mask=~present)
        return pa.record_batch(columns, schema=self.columns)


def quality_step(config: DataConfig) -> DocumentStep:
    """The step `quality`."""
    measure, rules = MeasureQuality(config.quality.short_line), tuple(quality_rules(config.quality))
    return DocumentStep(
        "quality", measure, rules, settings="data.quality.gopher.min_words or other limits in data.quality"
    )


def quality_rules(config: QualityConfig) -> Iterator[Limit]:
    """The rules of all families that are on, in order: the first rule that a document fails is its reason."""
    yield from gopher_rules(config.gopher) if config.gopher else ()
    yield from repetition_rules(config.repetition) if config.repetition else ()
    yield from c4_rules(config.c4) if config.c4 else ()
    yield from fineweb_rules(config.fineweb) if config.fineweb else ()
    yield from starcoder_rules(config.starcoder) if config.starcoder else ()
    yield from bigcode_rules(config.bigcode) if config.bigcode else ()


def gopher_rules(of: GopherConfig) -> Iterator[Limit]:
    """The rules of Gopher for prose."""
    yield from _limit("too_few_words", "word_count", low=of.min_words, detail="{value} words < {low}")
    yield from _limit("too_many_words", "word_count", high=of.max_words, detail="{value} words > {high}")
    low, high = of.min_mean_word_length, of.max_mean_word_length
    yield from _limit("mean_word_length", low=low, high=high)
    yield from _limit("hashes_per_word", high=of.max_hashes_per_word)
    yield from _limit("ellipses_per_word", high=of.max_ellipses_per_word)
    yield from _limit("alphabetic_words", low=of.min_alphabetic_words)
    detail = f"{{value}} of {len(prose_measures.STOP_WORDS)} stop words"
    yield from _limit("stop_words", "stop_word_count", low=of.min_stop_words, detail=detail, language="en")
    yield from _limit("bullet_lines", high=of.max_bullet_lines)
    yield from _limit("ellipsis_lines", high=of.max_ellipsis_lines)


def repetition_rules(of: RepetitionConfig) -> Iterator[Limit]:
    """Gopher's rules of repetition; they share one reason."""
    for name, limit in of:
        yield from _limit("repetition", name.removeprefix("max_"), high=limit)


def c4_rules(of: C4Config) -> Iterator[Limit]:
    """The rules of C4 for pages."""
    yield from _limit("too_few_sentences", "sentence_count", low=of.min_sentences, detail="{value} sentences < {low}")
    yield from _limit("curly_brackets", high=of.max_curly_brackets)
    yield from _limit("lorem_ipsum", high=of.max_lorem_ipsum)


def fineweb_rules(of: FineWebConfig) -> Iterator[Limit]:
    """The rules that FineWeb adds."""
    yield from _limit("punctuated_lines", low=of.min_punctuated_lines)
    yield from _limit("short_lines", high=of.max_short_lines)
    yield from _limit("duplicate_chars", high=of.max_duplicate_chars)
    yield from _limit("line_breaks_per_word", high=of.max_line_breaks_per_word)


def starcoder_rules(of: StarCoderConfig) -> Iterator[Limit]:
    """The rules of StarCoder for source code."""
    detail = "a line of {value} characters > {high}"
    yield from _limit("long_line", "max_line_length", high=of.max_line_length, detail=detail)
    yield from _limit("long_mean_line", "mean_line_length", high=of.max_mean_line_length)
    yield from _limit("alphanumeric_share", low=of.min_alphanumeric_share)


def bigcode_rules(of: BigCodeConfig) -> Iterator[Limit]:
    """More rules for source code, of StarCoder and The Stack v2."""
    yield from _limit("too_many_lines", "line_count", high=of.max_lines, detail="{value} lines > {high}")
    yield from _limit("long_markup_line", "markup_line_length", high=of.max_markup_line_length)
    yield from _limit("alphabetic_share", low=of.min_alphabetic_share)
    yield from _limit("encoded_data", "encoded_share", high=of.max_encoded_share)
    yield from _limit("encoded_data", "encoded_length", high=of.max_encoded_length)
    yield from _limit("generated", "generated_marks", high=of.max_generated_marks)
    yield from _limit("xml", "xml_declarations", high=of.max_xml_declarations)
    yield from _limit("little_visible_text", "visible_chars", low=of.min_visible_chars)
    yield from _limit("little_visible_text", "visible_share", low=of.min_visible_share)
    yield from _limit("data_size", "data_chars", low=of.min_data_chars, high=of.max_data_chars)
    yield from _limit("data_size", "data_lines", high=of.max_data_lines)


def _limit(
    reason: str, column: str = "", *, low: float | None = None, high: float | None = None, detail: str = "",
    language: str | None = None,
) -> Iterator[Limit]:  # fmt: skip
    """A rule over `column`, by default the one with the reason's name; none without a bound."""
    bounds: dict[str, Any] = {side: bound for side, bound in (("low", low), ("high", high)) if bound is not None}
    if bounds:
        outside = {"low": "< {low}", "high": "> {high}", "low high": "outside ({low}, {high})"}[" ".join(bounds)]
        detail = detail or f"{{column}} {{value:.6g}} {outside}"
        yield Limit(reason, column or reason, detail, **bounds, language=language)


def _as_numpy(flags: pa.Array) -> NDArray[np.bool_]:
    return flags.to_numpy(zero_copy_only=False).astype(bool)
