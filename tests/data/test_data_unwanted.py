"""Lists of words and addresses: what counts, what does not, and what the settings decide."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from document_tables import Verdict, data_config, judged, raw

from lifecycle.core.config import ConfigError
from lifecycle.data.measures.unwanted import unwanted_step
from lifecycle.data.reading.raw import raw_batch


@pytest.fixture
def words(tmp_path: Path) -> str:
    (tmp_path / "words.txt").write_text("# of nobody's\nbloody\nPiece of Junk\nÄrsch\n", encoding="utf-8")
    return str(tmp_path / "words.txt")


@pytest.fixture
def hosts(tmp_path: Path) -> str:
    (tmp_path / "hosts.txt").write_text("bad.org\nhttps://good.org/bad page\nhttp://fine.org/ads\n".replace(" ", "_"))
    return str(tmp_path / "hosts.txt")


def measured(text: str, url: str | None = None, **settings: Any) -> tuple[dict[str, Any], Verdict]:
    meta = settings.pop("meta", {})
    document = raw(text, **meta)
    step = unwanted_step(data_config(**settings))
    return judged(step, document if url is None else replace(document, url=url))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("It is a bloody PIECE\nof junk.", 2), ("bloodyminded pieces of junk; piece, of the junk", 0), ("", 0),
        ("BLOODY, bloody: (bloody)!", 3), ("der ärsch", 1), ("a piece of", 0),
    ],
)  # fmt: skip
def test_whole_words_and_phrases_count_in_any_case(words: str, text: str, count: int) -> None:
    lists = [{"name": "rude", "path": words, "max": 0.0}]
    row, verdict = measured(text, lists=lists)
    assert row["rude_count"] == count
    assert (verdict.reason == "rude") == (count > 0)
    assert row["rude_share"] == pytest.approx(count / max(len(text.split()), 1), abs=1e-6)


def test_files_may_lie_in_the_home_folder(words: str, hosts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path(words).parent))
    lists: list[dict[str, Any]] = [
        {"name": "rude", "path": "~/words.txt", "max": 0},
        {"name": "hosts", "path": "~/hosts.txt", "max": 0, "of": "addresses"},
    ]  # fmt: skip
    row, _ = measured("bloody http://bad.org/x", lists=lists)
    assert (row["rude_count"], row["hosts_count"]) == (1, 1)


def test_a_phrase_is_in_one_document(words: str) -> None:
    step = unwanted_step(data_config(lists=[{"name": "rude", "path": words, "max": 1}])).measure
    columns = step(raw_batch([raw("a piece of"), raw("junk, bloody"), raw(""), raw("piece of junk")]))
    assert columns["rude_count"].to_pylist() == [0, 1, 0, 1]
    assert step(raw_batch([])).num_rows == 0


@pytest.mark.parametrize(
    ("text", "url", "meta", "count"),
    [
        ("see http://bad.org/x and https://www.sub.bad.org", None, {}, 2),
        ("see http://notbad.org, bad.org", None, {}, 0),
        ("x", "https://BAD.org:443/", {}, 1),
        ("x", "http://good.org/bad_page/#top", {}, 1),
        ("x", "http://good.org/other", {"link": "at http://fine.org/ads", "n": 1}, 1),
    ],
)
def test_addresses_of_a_document(hosts: str, text: str, url: str | None, meta: dict[str, Any], count: int) -> None:
    row, verdict = measured(text, url, meta=meta, lists=[{"name": "ads", "path": hosts, "of": "addresses", "max": 0}])
    assert row["ads_count"] == count and row["link_count"] == text.count("://")
    assert verdict.reason == ("ads" if count else None)


def test_limits_select_and_the_content_of_a_list_tags(words: str) -> None:
    def config(limit: float) -> Any:
        return data_config(lists=[{"name": "rude", "path": words, "max": limit}])

    one, other = config(0.1), config(0.2)
    assert one.tagging() == other.tagging() and one.selection() != other.selection()
    tagging, measure = one.tagging(), unwanted_step(one).measure
    assert measure == unwanted_step(other).measure
    Path(words).write_text("other")
    changed = config(0.1)
    assert changed.tagging() != tagging and unwanted_step(changed).measure != measure
    assert judged(unwanted_step(changed), raw("bloody other"))[0]["rude_count"] == 1


def test_names_and_files_are_checked(words: str, tmp_path: Path) -> None:
    for lists in (
        [{"name": "word", "path": words, "max": 0}],
        [{"name": "a", "path": words, "max": 0}, {"name": "a", "path": words, "max": 0}],
        [{"name": "A b", "path": words, "max": 0}],
        [{"name": "a", "path": str(tmp_path / "none"), "max": 0}],
    ):
        with pytest.raises(ConfigError):
            data_config(lists=lists)
    Path(words).write_text("fine\n!!!\nsh!+\n\u0917\u093e\u0928 it's half-wit\n" + "f*ck\n" * 20)
    with pytest.raises(
        ConfigError, match=r"words.txt: .*: 2 '!!!', 3 'sh!\+', 5 'f\*ck', .* and 2 more; write them in"
    ):
        measured("x", lists=[{"name": "a", "path": words, "max": 0}])
