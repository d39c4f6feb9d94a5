"""The measures of prose in plain Python, for comparison with the compiled ones; slow, and each by its definition."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from lifecycle.data.measures.character_classes import SOLID, TERMINAL, character_classes

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))


def prose_scores(text: str, short_line: int) -> dict[str, float]:
    text = text.strip("\n")
    rows = text.split("\n")
    lines = [row for row in rows if row.strip()]
    repeated = _repeated(lines)
    paragraphs = ["\n".join(part) for has_words, part in groupby(rows, lambda row: bool(row.strip())) if has_words]
    scores: dict[str, float] = {
        "bullet_lines": _share(sum(line.lstrip()[0] in "•-" for line in lines), len(rows)),
        "ellipsis_lines": _share(sum(line.rstrip().endswith(("...", "…")) for line in lines), len(rows)),
        "duplicate_lines": _share(len(repeated), len(lines)),
        "duplicate_line_chars": _share(_chars(repeated), len(text)),
        "duplicate_paragraphs": _share(len(_repeated(paragraphs)), len(paragraphs)),
        "duplicate_paragraph_chars": _share(_chars(_repeated(paragraphs)), len(text)),
        "punctuated_lines": _share(sum(_is(TERMINAL, line.rstrip()[-1]) for line in lines), len(lines)),
        "short_lines": _share(sum(len(line) <= short_line for line in lines), len(lines)),
        "duplicate_chars": _share(_chars(repeated), len(text.replace("\n", ""))),
        "curly_brackets": text.count("{"),
        "lorem_ipsum": text.lower().count("lorem ipsum"),
    }
    return scores | _word_scores(text, lines)


def _word_scores(text: str, lines: Sequence[str]) -> dict[str, float]:
    tokens = text.split()
    words = [token for token in tokens if _has_solid(token)]
    scores: dict[str, float] = {
        "word_count": len(words),
        "mean_word_length": _share(_chars(words), len(words)),
        "hashes_per_word": _share(text.count("#"), len(tokens)),
        "ellipses_per_word": _share(text.count("...") + text.count("…"), len(tokens)),
        "alphabetic_words": _share(sum(any(map(str.isalpha, token)) for token in tokens), len(tokens)),
        "stop_word_count": len({_bare(word).lower() for word in words} & STOP_WORDS),
        "sentence_count": sum(map(_num_sentences, lines)),
        "line_breaks_per_word": _share(text.count("\n"), len(tokens)),
    }
    for n in (2, 3, 4):
        scores[f"top_{n}gram_chars"] = _share(_top_chars(tokens, n), len(text))
    for n in range(5, 11):
        scores[f"duplicate_{n}gram_chars"] = _share(_repeated_chars(tokens, n), len(text))
    return scores


def _num_sentences(line: str) -> int:
    """One, and one more for each word behind a word that ends with the mark of an end."""
    num, is_over = 1, False
    for word in line.split():
        num += is_over and _has_solid(word)
        is_over &= not _has_solid(word)
        is_over |= any(_is(TERMINAL, mark) for mark in word[len(word.rstrip(_marks(word))) :])
    return num


def _top_chars(words: Sequence[str], n: int) -> int:
    counts = Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))
    (gram, count), *_ = counts.most_common(1) or [((), 0)]  # of several the first
    return count * len(" ".join(gram)) if count > 1 else 0


def _repeated_chars(words: Sequence[str], n: int) -> int:
    seen: set[tuple[str, ...]] = set()
    chars = at = 0
    while at + n <= len(words):
        gram = tuple(words[at : at + n])
        if gram in seen:
            chars += len("".join(gram))
            at += n
        else:
            seen.add(gram)
            at += 1
    return chars


def _repeated(parts: Sequence[str]) -> list[str]:
    return [part for at, part in enumerate(parts) if part in parts[:at]]


def _bare(word: str) -> str:
    return word.strip(_marks(word))


def _marks(word: str) -> str:
    return "".join(character for character in word if not _is(SOLID, character))


def _has_solid(word: str) -> bool:
    return any(_is(SOLID, character) for character in word)


def _is(bit: int, character: str) -> bool:
    return bool(character_classes()[ord(character)] & bit)


def _chars(parts: Sequence[str]) -> int:
    return sum(map(len, parts))


def _share(part: float, total: float) -> float:
    return part / total if total else 0.0


def has_word(text: str, word: str) -> bool:
    """Whether a text has a word in any case, with marks around it or without."""
    return any(folded(_bare(own)) == folded(word) for own in text.split() if _has_solid(own))


def folded(word: str) -> str:
    """The word without cases; a character that is several then stays."""
    both = ((character, character.casefold()) for character in word)
    return "".join(character if len(other) > 1 else other for character, other in both)
