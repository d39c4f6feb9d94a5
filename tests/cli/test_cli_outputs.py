"""Places that verbs of `lifecycle data` write to: what cannot be written is told before the work, with its fix."""

from pathlib import Path

import pytest

from lifecycle.cli.main import app
from lifecycle.cli.outputs import takes_file, takes_folder

MODEL = ["--model", "http://127.0.0.1:1/v1#none"]
VERBS = {
    "report": (["run.yaml"], "--out"), "score": (["run.yaml", *MODEL], "--out"),
    "perplexity": (["run.yaml", "--model", "none"], "--out"), "topics": (["run.yaml", "--model", "none"], "--out"),
    "synthesise": (["run.yaml", "--kind", "rephrase", *MODEL], "--out"), "signatures": (["run.yaml"], ""),
    "fetch": (["list.txt", "--contact", "me@company.org"], "--into"), "train-classifier": ([], ""),
}  # fmt: skip
FOLDERS = ("synthesise", "signatures", "fetch")


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_begins_if_its_result_cannot_be_written(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").touch()
    (tmp_path / "folder").mkdir()
    words, option = VERBS[verb]
    places = [tmp_path / "taken" / "x", Path("/proc/nothing")]
    for place in places if verb in FOLDERS else [*places, tmp_path / "folder"]:
        with pytest.raises(SystemExit):
            app(["data", verb, *words, *([option] if option else []), str(place)])
        told = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert "Invalid value" in told and (option or "OUT") in told
        assert "remove it, or choose another" in told or "elsewhere" in told or "this is a folder; name a file" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "taken"]


def test_a_page_without_a_named_file_has_its_own(tmp_path: Path) -> None:
    _, bound, _ = app.parse_args(["data", "report", str(tmp_path / "run.yaml")], print_error=False, exit_on_error=False)
    assert "out" not in bound.arguments


def test_folders_on_the_way_need_not_be_there_and_nothing_is_left(tmp_path: Path) -> None:
    for place in (tmp_path / "new", tmp_path / "a" / "b" / "c"):
        takes_file(Path, place)
        takes_folder(Path, place)
    takes_folder(Path, tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="lost is no folder; remove it"):
        takes_folder(Path, tmp_path / "lost" / "below")


@pytest.mark.parametrize("verb", ["score", "synthesise", "train-classifier"])
@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_is_a_number_that_settings_may_have(
    verb: str, seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, option = VERBS[verb]
    with pytest.raises(SystemExit):
        app(["data", verb, *words, *([option] if option else []), str(tmp_path / "out"), f"--seed={seed}"])
    assert f'Invalid value "{seed}" for --seed' in capsys.readouterr().err
