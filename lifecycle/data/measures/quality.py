"""Quality: measures of prose and of source code, and rules that remove documents by published thresholds.

Where a rule is from is said at its settings (`quality_config.py`), how its column is counted in `prose_measures.py` and
`code_measures.py`. Prose rules do not fit code, nor code rules prose: the document's format decides which measures it
has, and those that it has not are null and fail no rule. Stop words are of a language, so that rule applies to prose in
languages that have a list of them; words cannot be counted in scripts that do not put blanks between them, so for
languages with those only the rules of lines and paragraphs apply. A language with limits of its own has a rule of its
own where these differ, in the place of the rule for all others: the order of reasons is the same for all.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lifecycle.core.config import Section
from lifecycle.core.languages import WITHOUT_BLANKS
from lifecycle.data.config import DataConfig
from lifecycle.data.measures import code_measures, prose_measures
from lifecycle.data.measures.quality_config import (
    BigCodeConfig,
    C4Config,
    FineWebConfig,
    GopherConfig,
    ProseConfig,
    QualityConfig,
    RepetitionConfig,
    StarCoderConfig,
)
from lifecycle.data.measures.steps import DocumentStep, Limit
from lifecycle.data.measures.stop_words import Lists, stop_words

_COUNTS = (*prose_measures.COUNTS, *code_measures.COUNTS)


@dataclass(frozen=True)
class MeasureQuality:
    """The measures of `code_measures` for source code and of `prose_measures` for everything else, those of words only
    if the script separates them; the others are null. A line of prose is short with up to `short_line` characters, and
    stop words are those of its language in `stop_words`, null without."""

    short_line: int
    stop_words: Lists
    columns: ClassVar[pa.Schema] = pa.schema([
        (name, pa.int64() if name in _COUNTS else pa.float64())
        for name in (*prose_measures.OF_WORDS, *prose_measures.OF_LINES, *code_measures.COLUMNS)
    ])  # fmt: skip

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The quality measures of a batch."""
        languages = batch["language"].to_pylist()
        is_code = _as_numpy(pc.call_function("equal", [batch["format"], "code"]))
        has_words = ~is_code & np.array([language not in WITHOUT_BLANKS for language in languages], bool)
        numbers = {language: number for number, (language, _) in enumerate(self.stop_words)}
        lists = np.array([numbers.get(language, len(numbers)) for language in languages], np.int64)
        has_list = has_words & (lists < len(numbers))
        stops = stop_words(self.stop_words)
        prose = prose_measures.prose_measures(batch["text"], ~is_code, self.short_line, stops, lists)
        code = code_measures.code_measures(batch["text"], languages, is_code)
        columns: dict[str, pa.Array] = {}
        for name, kind in zip(self.columns.names, self.columns.types, strict=True):
            if name in code:
                columns[name] = pa.array(code[name], mask=np.isnan(code[name])).cast(kind)
            else:
                present = has_words if name in prose_measures.OF_WORDS else ~is_code
                present = has_list if name == "stop_word_count" else present
                columns[name] = pa.array(prose[name], kind, mask=~present)
        return pa.record_batch(columns, schema=self.columns)


def quality_measure(config: QualityConfig) -> MeasureQuality:
    """What tagging measures for the rules."""
    return MeasureQuality(config.short_line, tuple(config.stop_words.items()))


def quality_step(config: DataConfig) -> DocumentStep:
    """The step `quality`."""
    measure, rules = quality_measure(config.quality), tuple(quality_rules(config.quality))
    return DocumentStep(
        "quality", measure, rules, settings="data.quality.gopher.min_words or other limits in data.quality"
    )


def quality_rules(config: QualityConfig) -> Iterator[Limit]:
    """The rules of all families that are on, in order: the first rule that a document fails is its reason."""
    of_languages = (_prose_rules(own, config.stop_words) for own in config.languages.values())
    for rule, *others in zip(_prose_rules(config, config.stop_words), *of_languages, strict=True):
        own = dict(zip(config.languages, others, strict=True))
        yield from filter(_asks, _by_language(rule, own))
    yield from filter(_asks, starcoder_rules(_or_nothing(StarCoderConfig, config.starcoder)))
    yield from filter(_asks, bigcode_rules(_or_nothing(BigCodeConfig, config.bigcode)))


def _by_language(rule: Limit, others: Mapping[str, Limit]) -> Iterator[Limit]:
    """A rule, and those in its place for some languages, where they differ."""
    meant = others if rule.language is None else {rule.language: others.get(rule.language, rule)}
    own = {language: other for language, other in meant.items() if other != rule}
    if rule.language not in own:
        yield replace(rule, not_in=tuple(own))
    for language, other in own.items():
        yield replace(other, language=language, detail=f"{other.detail} (language {language})")


def _prose_rules(of: ProseConfig, stop_words: Mapping[str, Sequence[str]]) -> Iterator[Limit]:
    """The same rules in the same order for any settings; those of a threshold that is null ask nothing."""
    yield from gopher_rules(_or_nothing(GopherConfig, of.gopher), stop_words)
    yield from repetition_rules(_or_nothing(RepetitionConfig, of.repetition))
    yield from c4_rules(_or_nothing(C4Config, of.c4))
    yield from fineweb_rules(_or_nothing(FineWebConfig, of.fineweb))


def _or_nothing[S: Section](kind: type[S], family: S | None) -> S:
    """A family that is off is one whose thresholds are all null."""
    return kind.model_validate(dict.fromkeys(kind.model_fields)) if family is None else family


def _asks(rule: Limit) -> bool:
    return math.isfinite(rule.low) or math.isfinite(rule.high)


def gopher_rules(of: GopherConfig, stop_words: Mapping[str, Sequence[str]]) -> Iterator[Limit]:
    """The rules of Gopher for prose."""
    yield _limit("too_few_words", "word_count", low=of.min_words, detail="{value} words < {low}")
    yield _limit("too_many_words", "word_count", high=of.max_words, detail="{value} words > {high}")
    yield _limit("mean_word_length", low=of.min_mean_word_length, high=of.max_mean_word_length)
    yield _limit("hashes_per_word", high=of.max_hashes_per_word)
    yield _limit("ellipses_per_word", high=of.max_ellipses_per_word)
    yield _limit("alphabetic_words", low=of.min_alphabetic_words)
    for language, words in stop_words.items():
        detail = f"{{value}} of {len(words)} stop words"
        yield _limit("stop_words", "stop_word_count", low=of.min_stop_words, detail=detail, language=language)
    yield _limit("bullet_lines", high=of.max_bullet_lines)
    yield _limit("ellipsis_lines", high=of.max_ellipsis_lines)


def repetition_rules(of: RepetitionConfig) -> Iterator[Limit]:
    """Gopher's rules of repetition; they share one reason."""
    for name, limit in of:
        yield _limit("repetition", name.removeprefix("max_"), high=limit)


def c4_rules(of: C4Config) -> Iterator[Limit]:
    """The rules of C4 for pages."""
    yield _limit("too_few_sentences", "sentence_count", low=of.min_sentences, detail="{value} sentences < {low}")
    yield _limit("curly_brackets", high=of.max_curly_brackets)
    yield _limit("lorem_ipsum", high=of.max_lorem_ipsum)


def fineweb_rules(of: FineWebConfig) -> Iterator[Limit]:
    """The rules that FineWeb adds."""
    yield _limit("punctuated_lines", low=of.min_punctuated_lines)
    yield _limit("short_lines", high=of.max_short_lines)
    yield _limit("duplicate_chars", high=of.max_duplicate_chars)
    yield _limit("line_breaks_per_word", high=of.max_line_breaks_per_word)


def starcoder_rules(of: StarCoderConfig) -> Iterator[Limit]:
    """The rules of StarCoder for source code."""
    detail = "a line of {value} characters > {high}"
    yield _limit("long_line", "max_line_length", high=of.max_line_length, detail=detail)
    yield _limit("long_mean_line", "mean_line_length", high=of.max_mean_line_length)
    yield _limit("alphanumeric_share", low=of.min_alphanumeric_share)


def bigcode_rules(of: BigCodeConfig) -> Iterator[Limit]:
    """More rules for source code, of StarCoder and The Stack v2."""
    yield _limit("too_many_lines", "line_count", high=of.max_lines, detail="{value} lines > {high}")
    yield _limit("long_markup_line", "markup_line_length", high=of.max_markup_line_length)
    yield _limit("alphabetic_share", low=of.min_alphabetic_share)
    yield _limit("encoded_data", "encoded_share", high=of.max_encoded_share)
    yield _limit("encoded_data", "encoded_length", high=of.max_encoded_length)
    yield _limit("generated", "generated_marks", high=of.max_generated_marks)
    yield _limit("xml", "xml_declarations", high=of.max_xml_declarations)
    yield _limit("little_visible_text", "visible_chars", low=of.min_visible_chars)
    yield _limit("little_visible_text", "visible_share", low=of.min_visible_share)
    yield _limit("data_size", "data_chars", low=of.min_data_chars, high=of.max_data_chars)
    yield _limit("data_size", "data_lines", high=of.max_data_lines)


def _limit(
    reason: str, column: str = "", *, low: float | None = None, high: float | None = None, detail: str = "",
    language: str | None = None,
) -> Limit:  # fmt: skip
    """A rule over `column`, by default the one with the reason's name; without a bound it asks nothing."""
    bounds: dict[str, Any] = {side: bound for side, bound in (("low", low), ("high", high)) if bound is not None}
    outside = {"low": "< {low}", "high": "> {high}"}.get(" ".join(bounds), "outside ({low}, {high})")
    detail = detail or f"{{column}} {{value:.6g}} {outside}"
    return Limit(reason, column or reason, detail, **bounds, language=language)


def _as_numpy(flags: pa.Array) -> NDArray[np.bool_]:
    return flags.to_numpy(zero_copy_only=False).astype(bool)
