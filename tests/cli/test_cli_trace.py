"""`lifecycle trace --text`: from a passage of a text to the documents that have it, and to what was made with them."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App

from lifecycle.cli import trace_text
from lifecycle.cli.trace import trace
from lifecycle.core.artifact import Draft
from lifecycle.core.config import ConfigError, load_config
from lifecycle.core.progress import Silent
from lifecycle.ops.registry import Registry
from lifecycle.stages.chain import bring_up_to_date, finished_stage
from lifecycle.stages.config import RunConfig

DEBUG = Path(__file__).parents[2] / "configs" / "debug.yaml"
NASTY_NAME = "a\x1b[2J\u202eb<b>"
SENTENCE = "The harbour lies to the north of the old town and was built in three stages, of which this was number"
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of a run whose documents are selected, and of which a model was made."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in NUMBERS:
        own = " ".join(f"and that of town {number}x{place}" for place in range(20))
        (folder / f"{NASTY_NAME if number == 'two' else number}.txt").write_text(f"{SENTENCE} {number} {own}.\n")
    words = [f"data.sources=[{{name: own, path: {folder}, license: CC0-1.0}}]", f"root={folder.parent / 'runs'}"]
    words += ["data.quality.repetition=null", "data.heldout_fraction=0.2", "data.dedup.jaccard=0.99"]
    with pytest.raises(ConfigError, match="stage documents is not finished"):
        trace(DEBUG, *words, text=SENTENCE)
    config = load_config(RunConfig, DEBUG, words)
    documents = bring_up_to_date(config, ("documents",), Silent())["documents"]
    draft = Draft(config.folder, "pretrain", {}, {"documents": documents})
    (draft.open() / "weights").write_text("w")
    Registry(config.registry_path).register(draft.commit({}).path, "dense")
    return words


def asked(run: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    trace(DEBUG, *run, text=text, as_json=True)
    return json.loads(capsys.readouterr().out)


def test_a_passage_leads_to_its_document_with_licence_and_scores(
    run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    answer = asked(run, "it said: THAT of town\nthree x0? and that of town threex1 and that of town threex2", capsys)
    (passage,) = answer["passages"]
    assert passage["text"] == "and that of town threex1 and that of town threex2" and passage["words"] == 10
    (document,) = passage["documents"]
    assert (document["source"], document["path"], document["license"]) == ("own", "three.txt", "CC0-1.0")
    assert document["split"] in ("kept", "heldout") and len(document["id"]) == 32
    assert document["scores"]["word_count"] > 100 and document["passage"] == passage["text"]
    assert document["before"].endswith("threex0 ") and document["after"].startswith(" and that of town threex3")
    made, version = answer["stages"], answer["versions"]
    assert [name.partition("-")[0] for name in made] == ["pretrain"] and len(version) == 1


def test_what_many_documents_have_names_some_of_them(run: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    answer = asked(run, SENTENCE, capsys)
    (passage,) = answer["passages"]
    assert passage["documents_at_most"] == len(NUMBERS) and len(passage["documents"]) == trace_text.MOST_DOCUMENTS
    assert answer["words"] == answer["words_in_passages"] == 21 and answer["is_whole"]


def test_a_stage_or_version_leads_to_the_documents_behind_it(
    run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(RunConfig, DEBUG, run)
    (version,) = asked(run, SENTENCE, capsys)["versions"]
    folder = finished_stage(config, "documents").path.name
    for name in ("documents", folder, version[:12]):
        trace(DEBUG, name, *run, text=SENTENCE, as_json=True)
        assert json.loads(capsys.readouterr().out)["documents"] == folder
    tagging = finished_stage(config, "tagging").path.name
    with pytest.raises(ConfigError, match="made of no documents"):
        trace(DEBUG, tagging, *run, text=SENTENCE)


def test_people_see_lines_and_no_commands_to_the_terminal(run: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    trace(DEBUG, *run, text=f"{SENTENCE} two and that of")
    shown = capsys.readouterr().out
    assert "25 of 25 words are in passages of 8 or more" in shown and "25 words, in 1 document: The harbour" in shown
    assert r"own:a\x1b[2J\u202eb<b>.txt  CC0-1.0" in shown and "word_count 12" in shown
    assert "registered versions: " in shown and not {*"\x1b\u202e"} & {*shown}


def test_a_text_is_read_from_standard_input(
    run: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("nothing that anybody has ever written down in this way"))
    app = App()
    app.default(trace)
    app([str(DEBUG), *run, "--text", "-"], result_action="return_value")
    assert "no passage of 8 words or more is in documents-" in capsys.readouterr().out
    app([str(DEBUG), *run, "--text", f"- {SENTENCE}\n- x"], result_action="return_value")
    assert "21 words, in 11 documents or fewer: The harbour" in capsys.readouterr().out


def test_what_cannot_be_asked_is_refused(run: list[str]) -> None:
    with pytest.raises(ConfigError, match="the text has 0 words"):
        trace(DEBUG, *run, text="…")
    with pytest.raises(ConfigError, match="give one of them"):
        trace(DEBUG, *run, text=SENTENCE, document="one.txt")
