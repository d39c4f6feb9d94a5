"""Quality rules beside datatrove's own filters: speed, and each rule's verdict and value, on the same documents.

    uv run --with 'datatrove[processing]==0.10.1' --with spacy python benchmarks/data/rules.py PATH[:FORMAT] ...

Each path is a source of documents (`data.sources[].path`); texts that are hard on rules are added, one line of 10 MB
among them. Both sides judge a text as `normalise` leaves it, without blanks around it, as English prose. The peer's
filters run with the words between blanks, which our rules count, and with the peer's own, spaCy's. A verdict that
differs has a class, which is proven by changing that alone in the peer: then the verdicts must be the same. What no
class explains is `unexplained`.

Values are compared by the peer's own code as well: its filter must pass a document with our value as the threshold,
and must not with the next number on its other side.
"""

import argparse
import math
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import rules_peer as peer
from rules_peer import PeerRule

from lifecycle.data.config import DataConfig
from lifecycle.data.measures.clean_lines import LineCleaner
from lifecycle.data.measures.normalise import normalise
from lifecycle.data.measures.prose_measures import OF_LINES
from lifecycle.data.measures.quality import quality_measure, quality_rules
from lifecycle.data.measures.quality_config import C4Config, C4LinesConfig, FineWebConfig, QualityConfig
from lifecycle.data.measures.steps import DocumentStep, Limit
from lifecycle.data.reading.extract import extract_file
from lifecycle.data.reading.raw import RawDocument
from lifecycle.data.reading.sources import list_files
from lifecycle.data.selecting.selection import select

ROUNDS = 3
LONG, LONGEST_WORD = 10_000_000, 1_000_000  # characters of one line, and of a word that spaCy can cut
FINEWEB = QualityConfig(fineweb=FineWebConfig())
TINY = 1e-300  # a threshold of 0 turns a filter of the peer's off
BY_BLANKS = {"split_into_words": peer.by_blanks}
# As the peer has them: other numbers than C4's, and a single quotation mark ends a line.
PEER_C4, PEER_LINES = C4Config(min_sentences=5), C4LinesConfig(min_words=3, end_marks=(".", "?", "!", '"', "'"))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--most", type=int, default=8000, help="characters of documents whose verdicts are compared")
    arguments = parser.parse_args()
    real = documents(arguments.paths)
    print(f"{len(real):,} documents, {megabytes(real):.1f} MB")
    speed(real)
    cases = [normalise(text, "text")[0].strip() for text in edge_cases(real).values()]
    short = [text for text in real if len(text) <= arguments.most]
    print(f"verdicts on {len(short):,} of them, {megabytes(short):.1f} MB, and on {len(cases)} made ones", flush=True)
    texts = [*short, *cases]
    compare_rules(texts)
    compare_lines(texts)
    texts = list(filter(is_cut_by_peer, texts))
    compare_documents(texts)
    compare_pages(texts)


def documents(paths: Sequence[str]) -> list[str]:
    """The texts of prose in some sources, as `normalise` leaves them, each once."""
    sources = []
    for number, path in enumerate(paths):
        place, _, format = path.partition(":")
        sources.append({"name": f"s{number}", "path": place, "format": format or None, "exclude": ()})
    config = DataConfig.model_validate({"sources": sources})
    texts = [
        normalise(document.text, "text")[0].strip()
        for file in list_files(config)
        for document in extract_file(file, config.sources[file.source], LONG)
        if isinstance(document, RawDocument)
    ]
    return list(dict.fromkeys(filter(None, texts)))


def edge_cases(real: Sequence[str]) -> dict[str, str]:
    """Texts that are hard on rules."""
    words = " ".join(real).split()
    long = " ".join(words * math.ceil(LONG / max(1, len(" ".join(words)))))[:LONG]
    return {
        "empty": "", "one word": "word", "no blanks": "word" * 2000, "symbols": "# … ... -- *** §§ ~~ {} () " * 40,
        "chinese": "港口位于老城以北分三个阶段建成。吃水超过九米的船只在外面等待涨潮。" * 3 + "引航员乘小船登船。",
        "japanese": "港は旧市街の北にあり、三段階で建設された。\n冬には氷が航路を閉ざすことがある。\n" * 3,
        "thai": "ท่าเรืออยู่ทางเหนือของเมืองเก่าและสร้างขึ้นในสามช่วง",
        "arabic": "يقع الميناء شمال المدينة القديمة وقد بني على ثلاث مراحل. هل تنتظر السفن المد؟ نعم، تنتظر. " * 4,
        "hindi": "बंदरगाह पुराने शहर के उत्तर में है। इसे तीन चरणों में बनाया गया था। " * 5,
        "capitals": "THE HARBOUR LIES TO THE NORTH OF THE TOWN. " + " ".join(f"SHIP{n} WAITS" for n in range(40)),
        "one letter": "a " * 300, "lines": "the same line again\n" * 200, "bullets": "- item of the list\n" * 99,
        "paragraphs": "to be or not to be\n\n" * 20, "letters in a row": "ab c a bc " * 50, "numbers": "1 22 333 " * 99,
        "line of 10 MB": long, "10 MB without blanks": "".join(words)[:LONG // 10] * 10, "emoji": "😀 🎉 👍🏽 " * 60,
    }  # fmt: skip


def megabytes(texts: Sequence[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def measured(texts: Sequence[str]) -> pa.Table:
    """Our columns of English prose."""
    batch = pa.record_batch({
        "text": pa.array(texts), "format": pa.array(["text"] * len(texts)), "language": pa.array(["en"] * len(texts)),
        "ordinal": pa.array(range(len(texts))),
    })  # fmt: skip
    found = quality_measure(FINEWEB)(batch)
    return pa.table([*batch.columns, *found.columns], [*batch.schema.names, *found.schema.names])


def removed(values: pa.Table, rules: Iterator[Limit] | Sequence[Limit]) -> set[int]:
    """The documents that fail one of the rules."""
    return {failure.ordinal for rule in rules for failure in rule(values)}


def speed(texts: Sequence[str]) -> None:
    """Gopher's, FineWeb's and the repetition rules, from a list of texts to verdicts."""
    size, filters = megabytes(texts), peer.pipeline()
    step = DocumentStep("quality", quality_measure(FINEWEB), tuple(quality_rules(FINEWEB)))
    measured(texts[:1])  # compiles
    peer.judged(filters[0], texts[0])  # loads spaCy
    ours, theirs = [], []
    for _ in range(ROUNDS):
        started = time.process_time()
        select(measured(texts), [step])
        ours.append(time.process_time() - started)
        started = time.process_time()
        for text in texts:
            all(peer.judged(filter, text)[0] for filter in filters)
        theirs.append(time.process_time() - started)
    rates = [size / statistics.median(seconds) for seconds in (ours, theirs)]
    print(
        f"MB per CPU-second: ours {rates[0]:.1f}, datatrove {rates[1]:.2f}, ratio {rates[0] / rates[1]:.0f}", flush=True
    )


def compare_rules(texts: Sequence[str]) -> None:
    """Each rule by itself: verdicts with both kinds of words, and values."""
    rules, values = peer.peer_rules(), measured(texts)
    counts = [(Counter[str](), Counter[str](), Counter[str]()) for _ in rules]
    columns = [values[rule.column].to_pylist() for rule in rules]
    for number, text in enumerate(texts):
        for rule, column, (removals, ours, theirs) in zip(rules, columns, counts, strict=True):
            value = column[number]
            is_kept = value >= rule.threshold if rule.side == "low" else value <= rule.threshold
            has_same = len(text) < LONG // 10 and is_exact(rule, text, value)
            own = "equal" if has_same and rule.change is None else difference(rule, text, is_kept)
            ours[own] += 1
            theirs[difference_of_words(rule, text, is_kept, own)] += 1
            removals["removed"] += not is_kept
            removals["same value"] += has_same
    short = sum(len(text) < LONG // 10 for text in texts)
    print(f"\nrule: removed by us; same value, of {short:,} | verdicts with our words: equal, different "
          "| with the peer's words")  # fmt: skip
    for rule, (removals, ours, theirs) in zip(rules, counts, strict=True):
        name = f"{rule.column} {'<' if rule.side == 'low' else '>'} {rule.threshold:g}"
        print(f"{name}: {removals['removed']}; {removals['same value']} | {shown(ours)} | {shown(theirs)}", flush=True)


def difference(rule: PeerRule, text: str, is_kept: bool) -> str:
    """The class of a verdict with our words; `equal` if it is the same."""
    with peer.replaced(BY_BLANKS):
        kept, reason = rule.keeps(text, rule.threshold)
    if kept == is_kept:
        return "equal"
    if reason in peer.WITHOUT_WORDS or not peer.has_words(text):
        return "text without words"
    with peer.replaced(BY_BLANKS, rule.change):
        is_explained = rule.change is not None and rule.keeps(text, rule.threshold)[0] == is_kept
    return rule.why if is_explained else "unexplained"


def difference_of_words(rule: PeerRule, text: str, is_kept: bool, of_ours: str) -> str:
    """The class of a verdict with the peer's words; `of_ours`: of that with our words."""
    if rule.column in OF_LINES:
        return of_ours
    if not is_cut_by_peer(text):
        return "not asked"
    if rule.keeps(text, rule.threshold)[0] == is_kept:
        return "equal"
    if of_ours != "equal":
        return of_ours
    with peer.replaced({"split_into_words": peer.own_words_without_marks}):
        return "marks are words" if rule.keeps(text, rule.threshold)[0] == is_kept else "words are cut otherwise"


def is_exact(rule: PeerRule, text: str, value: float) -> bool:
    """Whether the peer, counting as we do, has our value: it passes with it as the threshold, and not beyond. A
    threshold of 0 asks nothing."""
    with peer.replaced(BY_BLANKS, rule.change):
        passes, reason = rule.keeps(text, value or TINY)
        if value == 0:
            return reason in peer.WITHOUT_WORDS or passes == (rule.side == "high")
        beyond = math.nextafter(value, math.inf if rule.side == "low" else -math.inf)
        return passes and not rule.keeps(text, beyond)[0]


def is_cut_by_peer(text: str) -> bool:
    """Whether the peer can cut a text into words: spaCy's time grows with the square of a word's length."""
    return max(map(len, text.split()), default=0) <= LONGEST_WORD


def compare_documents(texts: Sequence[str]) -> None:
    """All rules of a filter together."""
    print("\nfilter: removed by us | with our words: by the peer, verdicts that differ | with the peer's words")
    of, values = FINEWEB, measured(texts)
    families = (
        ("repetition", QualityConfig(gopher=None, starcoder=None)), ("gopher", QualityConfig(repetition=None)),
        ("fineweb", QualityConfig(gopher=None, repetition=None, fineweb=of.fineweb)), ("all", of),
    )  # fmt: skip
    filters = peer.pipeline()
    results = {}
    for words, change in (("ours", BY_BLANKS), ("peer's", None)):
        with peer.replaced(change):
            results[words] = [[not peer.judged(one, text)[0] for one in filters] for text in texts]
    for at, (name, config) in enumerate(families):
        ours = removed(values, list(quality_rules(config)))
        cells = []
        for rows in results.values():
            theirs = {number for number, row in enumerate(rows) if (any(row) if name == "all" else row[at])}
            cells.append(f"{len(theirs)}, {len(ours ^ theirs)} ({len(ours - theirs)} by us only)")
        print(f"{name}: {len(ours)} | {' | '.join(cells)}")


def compare_lines(texts: Sequence[str]) -> None:
    """C4's rules for lines: which are left, and how."""
    cleaner = LineCleaner(PEER_LINES, None)
    filter = peer.c4(
        remove_citations=True, filter_no_terminal_punct=True, min_words_per_line=3, max_word_length=1000,
        filter_javascript=True, filter_policy=True,
    )  # fmt: skip
    same = lines = left = 0
    for text in texts:
        cleaned = cleaner.clean(text)
        ours = [line.strip() for line in cleaned.text.split("\n") if line.strip()] if cleaned.lines_left else []
        theirs = [line for line in peer.judged(filter, text)[2].split("\n") if line] if text else []
        same += ours == theirs
        lines, left = lines + sum(bool(line.strip()) for line in text.split("\n")), left + len(ours)
    print(f"\nlines by C4: {left:,} of {lines:,} are left; the same text as the peer's in {same} of {len(texts)}")


def compare_pages(texts: Sequence[str]) -> None:
    """C4's rules for pages, on texts whose lines have not been removed."""
    print("\nC4's rule: removed by us | with our sentences: equal, different | with the peer's sentences")
    values = measured(texts)
    ours = peer.sentence_counter(sentences)
    for column, name, value, high in (
        ("sentence_count", "min_num_sentences", PEER_C4.min_sentences, False),
        ("curly_brackets", "filter_curly_bracket", True, True), ("lorem_ipsum", "filter_lorem_ipsum", True, True),
    ):  # fmt: skip
        counts = values[column].to_numpy()
        gone = counts > 0 if high else counts < value
        cells = []
        for change in (ours, None):
            with peer.replaced(change):
                theirs = np.array([not peer.judged(peer.c4(**{name: value}), text)[0] for text in texts])
            cells.append(f"{(gone == theirs).sum()}, {(gone != theirs).sum()} ({(gone & ~theirs).sum()} by us only)")
        print(f"{column}: {gone.sum()} | {' | '.join(cells)}")


def sentences(line: str) -> int:
    """How many sentences we count in a line."""
    return int(measured([line])["sentence_count"][0].as_py())


def shown(counts: Counter[str]) -> str:
    others = [f"{count} {name}" for name, count in counts.most_common() if name != "equal"]
    return f"{counts['equal']}, {', '.join(others) or 0}"


if __name__ == "__main__":
    main()
