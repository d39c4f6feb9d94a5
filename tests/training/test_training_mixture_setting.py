"""Mixtures given by hand, by sizes, at a temperature and in files: shares by their formula, and what cannot be."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.core.config import ConfigError, validate
from lifecycle.training.config import PERIOD
from lifecycle.training.likelihood import NextTokenConfig
from lifecycle.training.mixture import rows_per_period
from lifecycle.training.mixture_setting import mixed_shares, named_in, parts_of, repeated, source_weights

TOKENS = {"large": 900_000, "middle": 90_000, "small": 10_000}
SIZES: dict[str, Any] = {"steps": 1, "seq_len": 16, "global_batch_size": 1, "optimizer": {"name": "adamw"}}


def read(mixture: object) -> dict[str, float] | str:
    return validate(NextTokenConfig, SIZES | {"mixture": mixture}).mixture


def test_size_gives_each_source_the_share_of_its_tokens() -> None:
    rows = source_weights("size", TOKENS)
    assert sum(rows.values()) == PERIOD
    assert {name: share / PERIOD for name, share in rows.items()} == pytest.approx(
        {"large": 0.9, "middle": 0.09, "small": 0.01}, abs=1 / PERIOD
    )
    assert source_weights({"temperature": 1}, TOKENS) == rows


def test_a_temperature_is_the_root_of_the_tokens() -> None:
    """Multilingual BERT's exponent of 0.5: square roots of 900,000, 90,000 and 10,000."""
    rows = source_weights({"temperature": 2}, TOKENS)
    roots = {"large": 948.683298, "middle": 300.0, "small": 100.0}
    expected = {name: root / 1348.683298 for name, root in roots.items()}
    assert {name: count / PERIOD for name, count in rows.items()} == pytest.approx(expected, abs=1 / PERIOD)


counts = st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(1, 10**14), min_size=1, max_size=8)


@given(counts, st.floats(1, 1e6), st.floats(1, 1e6))
def test_a_higher_temperature_never_lowers_the_smallest_source(tokens: dict[str, int], one: float, two: float) -> None:
    low, high = sorted((one, two))
    cold, hot = (source_weights({"temperature": t}, tokens) for t in (low, high))
    smallest = min(tokens, key=lambda name: (tokens[name], name))
    assert hot[smallest] >= cold[smallest] - 1  # a row by rounding
    for rows in (cold, hot):
        assert sum(rows.values()) == PERIOD and min(rows.values()) >= 1
        assert rows_per_period(rows) == rows, "whole rows stay as they are"
    even = source_weights({"temperature": 1e9}, tokens)
    assert max(even.values()) - min(even.values()) <= 1


def test_a_tiny_source_has_a_row_all_the_same() -> None:
    rows = source_weights("size", {"a": 10**12, "b": 3, "c": 1})
    assert rows == {"a": PERIOD - 2, "b": 1, "c": 1}
    with pytest.raises(ConfigError, match=r"1,025 sources, and a mixture has 1024 at most"):
        source_weights("size", {f"s{n}": 1 for n in range(PERIOD + 1)})


def test_weights_by_hand_stay_as_they_are_and_a_corpus_stands_for_its_sources() -> None:
    tokens = {"web/new": 300, "web/old": 100, "code/own": 50}
    assert source_weights({}, tokens) == {}
    assert source_weights({"web/new": 0.3, "code/own": 2}, tokens) == {"web/new": 0.3, "code/own": 2}
    assert source_weights({"web": 1, "code": 1}, tokens) == {"code/own": 512, "web/new": 384, "web/old": 128}
    with pytest.raises(ConfigError, match="'web/old' has a weight of its own and one as a part of another name"):
        source_weights({"web": 1, "web/old": 1}, tokens)
    with pytest.raises(ConfigError, match="no text of 'cod/own'; did you mean 'code/own'"):
        source_weights({"cod/own": 1, "web": 1}, tokens)


def test_a_name_stands_for_a_source_s_topics_and_a_topic_for_its_parts() -> None:
    parts = [
        "web/crawl/topic-01",
        "web/crawl/topic-10",
        "web/news/topic-01",
        "web/news/none",
        "code/own/topic-01",
        "books",
    ]
    assert parts_of("topic-01", parts) == ["web/crawl/topic-01", "web/news/topic-01", "code/own/topic-01"]
    assert parts_of("web/topic-01", parts) == ["web/crawl/topic-01", "web/news/topic-01"]
    assert parts_of("web/crawl", parts) == ["web/crawl/topic-01", "web/crawl/topic-10"]
    assert parts_of("web/crawl/topic-10", parts) == ["web/crawl/topic-10"] and parts_of("none", parts) == [
        "web/news/none"
    ]
    assert parts_of("topic-1", parts) == parts_of("crawl/topic-10", parts) == [] and parts_of("books", parts) == [
        "books"
    ]
    tokens = dict(zip(parts, (30, 10, 10, 5, 20, 9), strict=True))
    rows = source_weights({"topic-01": 3, "books": 1}, tokens)
    assert rows == {"books": 256, "code/own/topic-01": 256, "web/crawl/topic-01": 384, "web/news/topic-01": 128}


def test_epochs_follow_from_shares_and_many_are_said_aloud() -> None:
    shares = mixed_shares({"large": 1, "small": 1}, TOKENS, 900_000)
    assert shares == {
        "large": {"tokens": 900_000, "share": 0.5, "epochs": 0.5},
        "small": {"tokens": 10_000, "share": 0.5, "epochs": 45.0},
    }
    assert repeated(shares) == "epochs of sources: small 45.0; beyond about 4 repeated text adds little"
    assert repeated(mixed_shares({"large": 1}, TOKENS, 3_600_000)) is None


def test_a_file_is_its_content(tmp_path: Path) -> None:
    path = tmp_path / "learnt.yaml"
    path.write_text("# found by hand\nweb: 3\ncode: 1.5\n")
    assert read(str(path)) == {"web": 3.0, "code": 1.5} == read({"web": 3, "code": 1.5})
    assert named_in(read(str(path))) == ("web", "code")
    assert read("size") == "size" and named_in("size") == () == named_in({"temperature": 2.0})
    path.write_text("- web\n")
    with pytest.raises(ConfigError, match="mixture: Input should be a valid dictionary"):
        read(str(path))


@pytest.mark.parametrize(
    ("mixture", "says"),
    [
        ("sizes", r"mixture: expected size, \{temperature: 2\}, \{SOURCE: WEIGHT\}, or a \.yaml file"),
        ("nowhere/weights.yaml", r"nowhere/weights\.yaml: cannot be read as weights of sources: .*No such file"),
        ({"temperature": 0.5}, r"temperature=0\.5: it is 1 \(the sources' own shares\) or higher"),
        ({"a": 0}, r"mixture\.a: Input should be greater than 0"),
        ({"a": float("inf")}, r"mixture\.a: Input should be a finite number"),
    ],
)
def test_a_mixture_that_means_nothing_is_refused(mixture: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read(mixture)
