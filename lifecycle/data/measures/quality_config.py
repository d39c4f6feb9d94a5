"""Settings of the rules over documents and lines: families of thresholds, with the published values.

A family is `null` where none of its rules is wanted and `{}` where all are, with the published values; a threshold that
is `null` asks nothing. Thresholds are named after what they count, as the columns are, with `min_` or `max_`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from lifecycle.core.config import Section, nearest, overlaid
from lifecycle.core.languages import WITHOUT_BLANKS

type Share = Annotated[float, Field(ge=0, le=1)] | None
type Amount = Annotated[float, Field(ge=0)] | None
type Count = Annotated[int, Field(ge=0)] | None


class GopherConfig(Section):
    """Quality of prose: Rae et al. 2021, arXiv:2112.11446, appendix A1.1."""

    min_words: Count = 50
    max_words: Count = 100_000
    min_mean_word_length: Amount = 3.0
    max_mean_word_length: Amount = 10.0
    max_hashes_per_word: Amount = 0.1
    max_ellipses_per_word: Amount = 0.1
    max_bullet_lines: Share = 0.9
    max_ellipsis_lines: Share = 0.3
    min_alphabetic_words: Share = 0.8
    min_stop_words: Count = 2  # of `quality.stop_words`; asked of prose in languages that have a list there

    @model_validator(mode="after")
    def _words_in_order(self) -> Self:
        if self.min_words is not None and self.max_words is not None and self.min_words > self.max_words:
            raise ValueError("min_words is above max_words: every prose document would fail; lower it")
        return self


class RepetitionConfig(Section):
    """Repetition in prose: Rae et al. 2021, table A1. Shares of lines, of paragraphs, and of a text's characters."""

    max_duplicate_lines: Share = 0.30
    max_duplicate_paragraphs: Share = 0.30
    max_duplicate_line_chars: Share = 0.20
    max_duplicate_paragraph_chars: Share = 0.20
    max_top_2gram_chars: Share = 0.20
    max_top_3gram_chars: Share = 0.18
    max_top_4gram_chars: Share = 0.16
    max_duplicate_5gram_chars: Share = 0.15
    max_duplicate_6gram_chars: Share = 0.14
    max_duplicate_7gram_chars: Share = 0.13
    max_duplicate_8gram_chars: Share = 0.12
    max_duplicate_9gram_chars: Share = 0.11
    max_duplicate_10gram_chars: Share = 0.10


class C4Config(Section):
    """Whole pages of prose: Raffel et al. 2020, arXiv:1910.10683, section 2.2."""

    min_sentences: Count = 3
    max_curly_brackets: Count = 0
    max_lorem_ipsum: Count = 0


class FineWebConfig(Section):
    """What FineWeb asks of prose beyond Gopher and C4: Penedo et al. 2024, arXiv:2406.17557, section 3.6."""

    min_punctuated_lines: Share = 0.12
    max_duplicate_chars: Share = 0.01
    max_short_lines: Share = 0.67
    max_line_breaks_per_word: Amount = 0.3


class StarCoderConfig(Section):
    """Source code: Li et al. 2023, arXiv:2305.06161, after Chen et al. 2021, arXiv:2107.03374.

    The lengths of lines are asked of programming languages only, not of markup (Lozhkov et al. 2024, as below).
    """

    max_line_length: Count = 1000
    max_mean_line_length: Amount = 100.0
    min_alphanumeric_share: Share = 0.25


class BigCodeConfig(Section):
    """More rules for source code: The Stack v2's basic filters, Lozhkov et al. 2024, arXiv:2402.19173, section 2.1;
    those of XML declarations, HTML and the size of data files are StarCoder's, section 3, and its program's."""

    max_lines: Count = 100_000
    max_markup_line_length: Count = 100_000
    min_alphabetic_share: Share = 0.25
    max_encoded_share: Share = 0.5  # of the characters: base64, hexadecimal and Unicode escapes
    max_encoded_length: Count = 1024
    max_generated_marks: Count = 0  # such as "auto-generated", in the first five lines
    max_xml_declarations: Count = 0
    min_visible_chars: Count = 100  # of HTML
    min_visible_share: Share = 0.2
    min_data_chars: Count = 50  # of JSON and YAML
    max_data_chars: Count = 5000
    max_data_lines: Count = 512


class ProseConfig(Section):
    """Which families of rules apply to prose, and their thresholds."""

    gopher: GopherConfig | None = GopherConfig()
    repetition: RepetitionConfig | None = RepetitionConfig()
    c4: C4Config | None = None
    fineweb: FineWebConfig | None = None


def _known_language(code: str) -> str:
    from lifecycle.data.measures.language_model import language_model  # 0.4 s: only if a setting names a language
    from lifecycle.data.measures.scripts import UNDETERMINED

    known = (*language_model()[0], UNDETERMINED)
    if code not in known:
        raise ValueError(f"{code!r} is no language that documents are found to be in{nearest(code, known)}")
    return code


def _in_words(code: str) -> str:
    if code in WITHOUT_BLANKS:
        raise ValueError(f"{code!r} has no blanks between words: none are counted there; leave it out")
    return code


def _stop_word(word: str) -> str:
    from lifecycle.data.measures.stop_words import is_found

    if not is_found(word):
        raise ValueError(f"{word!r} is in no text: a word is what blanks separate, without the marks around it")
    return word


def _distinct(words: tuple[str, ...]) -> tuple[str, ...]:
    from lifecycle.data.measures.stop_words import folded

    seen: set[tuple[int, ...]] = set()
    for word in words:
        if folded(word) in seen:
            raise ValueError(f"{word!r} is there twice, and counts once; leave one out")
        seen.add(folded(word))
    return words


type Language = Annotated[str, AfterValidator(_known_language)]
type LanguageInWords = Annotated[Language, AfterValidator(_in_words)]
type StopWord = Annotated[str, Field(min_length=1, max_length=50), AfterValidator(_stop_word)]
type StopWordList = Annotated[tuple[StopWord, ...], Field(min_length=1, max_length=64), AfterValidator(_distinct)]


class QualityConfig(ProseConfig):
    """Which families of rules apply to documents, and their thresholds."""

    starcoder: StarCoderConfig | None = StarCoderConfig()
    bigcode: BigCodeConfig | None = None
    # What holds instead for prose in some languages; what is not said there is as above.
    languages: dict[Language, ProseConfig] = Field(default={})
    # Tagging counts these two, for `fineweb` and `gopher`: the lines of so many characters at most, and the words of
    # the document's language that it has. The English ones are Gopher's.
    short_line: int = Field(default=30, ge=0, le=1_000_000_000)
    stop_words: dict[LanguageInWords, StopWordList] = Field(
        default={"en": ("the", "be", "to", "of", "and", "that", "have", "with")}
    )

    @field_validator("languages", mode="before")
    @classmethod
    def _over_all_languages(cls, languages: Any, info: ValidationInfo) -> Any:
        """Whole settings for each language, so that the same ones are the same key however they are written."""
        if not isinstance(languages, Mapping):
            return languages
        of_all = {name: info.data[name] for name in ProseConfig.model_fields if name in info.data}
        below = {name: None if family is None else family.plain() for name, family in of_all.items()}
        return {language: overlaid(ProseConfig, below, own) for language, own in languages.items()}

    @model_validator(mode="after")
    def _has_as_many_stop_words(self) -> Self:
        for language, words in self.stop_words.items():
            gopher = self.prose(language).gopher
            if gopher is not None and gopher.min_stop_words is not None and gopher.min_stop_words > len(words):
                raise ValueError(
                    f"stop_words has {len(words)} for {language!r} and gopher asks for {gopher.min_stop_words}: every "
                    f"document would fail; lower min_stop_words in languages.{language}.gopher, or add words"
                )
        return self

    def prose(self, language: str) -> ProseConfig:
        """The rules for prose in a language."""
        return self.languages.get(language, self)


class C4LinesConfig(Section):
    """Which lines C4 keeps: Raffel et al. 2020, section 2.2, and its program, tensorflow_datasets' `c4_utils.py`."""

    end_marks: tuple[str, ...] = (".", "?", "!", '"')  # a line ends with one of them; empty: asks nothing
    min_words: Count = 5
    max_word_length: Count = 1000
    without: tuple[str, ...] = (  # in any case; a line with one of them goes
        "javascript", "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies",
        "use cookies",
    )  # fmt: skip
    citations: bool = True  # Wikipedia's `[1]`, `[edit]` and `[citation needed]` are cut out


class RefinedWebLinesConfig(Section):
    """Which lines RefinedWeb keeps: Penedo et al. 2023, arXiv:2306.01116, appendix G.2. It gives examples, no numbers:
    these are those of DCLM's program, Li et al. 2024, arXiv:2406.11794, `refinedweb.yaml`."""

    max_uppercase: Share = 0.5  # of the characters
    max_digits: Share = 0.999999
    counted: tuple[str, ...] = (  # "3 likes" is no text
        "likes", "shares", "comments", "retweets", "reposts", "quotes", "bookmarks", "upvotes", "downvotes",
        "downloads", "views", "followers",
    )  # fmt: skip
    min_words: Count = 2
    # What is cut out of lines of at most so many words, in any case: anywhere, at their end, at their begin.
    max_pattern_words: int = Field(default=10, ge=0)
    anywhere: tuple[str, ...] = ("items in cart",)
    at_end: tuple[str, ...] = ("read more...",)
    at_begin: tuple[str, ...] = ("sign-in",)


class LinesConfig(Section):
    """Rules that remove lines of prose before it is measured, or cut something out of them; tagging applies them."""

    languages: tuple[str, ...] = ("en",)  # of the documents whose lines are looked at: the rules are for English
    c4: C4LinesConfig | None = None
    refinedweb: RefinedWebLinesConfig | None = None
    max_removed_words: Share = 0.05  # of a document, by RefinedWeb's rules: with more it goes as a whole
