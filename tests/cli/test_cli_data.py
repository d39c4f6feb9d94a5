"""`lifecycle data why`: a document's way through the steps, by id, by path and by row."""

import json
from pathlib import Path
from typing import Any

import pytest

from lifecycle.cli.data import data, why
from lifecycle.core.config import ConfigError, load_config
from lifecycle.core.progress import Silent
from lifecycle.stages.chain import bring_up_to_date
from lifecycle.stages.config import RunConfig

DEBUG = Path(__file__).parents[2] / "configs" / "debug.yaml"
SENTENCES = (
    "The harbour lies to the north of the old town and was built in three stages",
    "Ships that have a draught of more than nine metres wait outside for the tide",
    "In winter ice may close this passage for weeks, so goods travel by rail with care",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of a run whose documents are selected."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(12):
        own = " ".join(f"and that of town{number}x{place}" for place in range(20))
        (folder / f"{number:02d}.txt").write_text(f"{SENTENCES[number % 3]}. Written to the clerk {number} {own}.\n")
    (folder / "copy.txt").write_text((folder / "03.txt").read_text())
    (folder / "short.txt").write_text("Too short # by far, for a.person@company.org.\n")
    (folder / "rows.jsonl").write_text(json.dumps({"text": "[red]Short[/] row"}) + "\n{broken\n")
    words = [f"data.sources=[{{name: own, path: {folder}, license: CC0-1.0}}]", f"root={folder.parent / 'runs'}"]
    words += ["data.quality.disable=[repetition]", "data.heldout_fraction=0.3", "data.max_skipped=0.5"]
    with pytest.raises(ConfigError, match="not finished"):
        why(DEBUG, "03.txt", *words)
    bring_up_to_date(load_config(RunConfig, DEBUG, words), ("documents",), Silent())
    return words


def asked(run: list[str], name: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    why(DEBUG, name, *run, as_json=True)
    return json.loads(capsys.readouterr().out)


def test_a_kept_document_has_passed_every_step(run: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fates = [fate for number in range(12) for fate in asked(run, f"own:{number:02d}.txt", capsys)]
    kept = next(fate for fate in fates if fate["result"] == "kept")
    steps = {passed["step"]: passed for passed in kept["steps"]}
    assert [*steps][-4:] == ["exact_duplicates", "near_duplicates", "heldout_split", "decontamination"]
    assert not any(passed["reasons"] for passed in kept["steps"]) and kept["license"] == "CC0-1.0"
    measured = steps["quality"]["measured"]
    assert "(at least 50)" in measured[0] and measured[1].endswith("(at most 100,000)")
    assert measured[0].startswith("word_count ") and measured[2].endswith("(at least 3 and at most 10)")
    assert asked(run, kept["id"][:8], capsys) == [kept]
    heldout = next(fate for fate in fates if fate["result"] == "heldout")
    assert heldout["steps"][-1] == {"step": "heldout_split", "measured": [], "reasons": ["held out to be measured on"]}


def test_a_removed_document_has_every_reason(run: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (short,) = asked(run, "short.txt", capsys)
    assert (short["result"], short["removed_by"]) == ("removed", "quality")
    steps = {passed["step"]: passed for passed in short["steps"]}
    assert steps["quality"]["reasons"][0] == "too_few_words: 7 words < 50" and len(steps["quality"]["reasons"]) > 1
    assert steps["pii"]["measured"] == ["pii_email 1"] and "a.person" not in short["text"]
    assert "exact_duplicates" not in steps
    (copy,) = asked(run, "copy.txt", capsys)
    assert copy["steps"][-1]["step"] == "exact_duplicates"
    assert copy["steps"][-1]["reasons"] == ["exact_duplicate: same text as own:03.txt"]


def test_what_was_not_read_says_why(run: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (broken,) = asked(run, "rows.jsonl:2", capsys)
    assert (broken["result"], broken["reason"]) == ("not read", "broken_row")
    why(DEBUG, "rows.jsonl:2", *run)
    assert "own:rows.jsonl:2: not read: broken_row: not JSON" in capsys.readouterr().out


def test_people_see_a_table_and_no_markup_of_the_data(run: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    why(DEBUG, "rows.jsonl:1", *run)
    shown = capsys.readouterr().out
    assert "removed by quality" in shown and "too_few_words: 2 words < 50" in shown
    with pytest.raises(ConfigError, match="no document is named 'nowhere'"):
        why(DEBUG, "nowhere", *run)


def test_the_verb_reads_a_config_or_a_command(run: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    data(["why", str(DEBUG), "short.txt", *run], result_action="return_value")
    assert "too_few_words" in capsys.readouterr().out
    data([str(DEBUG), *run, "--help"], result_action="return_value")
    assert "why" in capsys.readouterr().out
