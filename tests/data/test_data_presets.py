"""The presets for kinds of text are settings of the document pipeline, and a run file can name them."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from document_tables import judged, raw

from lifecycle.cli.arguments import read_config
from lifecycle.core.config import ConfigError
from lifecycle.data.measures.clean_lines import lines_step

CONFIGS = Path(__file__).parents[2] / "configs"
RUN = CONFIGS / "data" / "debian_docs.yaml"
ELSEWHERE = """
name: own
model: smollm2_135m
data: {preset: web, sources: [{name: own, path: own}]}
tokenizer: {kind: bytes}
train: {base: {objective: next_token, steps: 1, seq_len: 8, global_batch_size: 1}}
"""
READ = """
from pathlib import Path
from lifecycle.cli.arguments import read_config
from lifecycle.core.config import OWN_PRESETS
print(OWN_PRESETS, read_config(Path("run.yaml"), ()).model.num_layers)
"""
PRESETS = sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml") if path != RUN)


def test_there_is_one_for_each_kind() -> None:
    assert PRESETS == ["books", "code", "docs", "mail", "web"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_run_can_name_it(name: str) -> None:
    data = read_config(RUN, (f"data.docs.preset={name}",)).corpora["docs"]
    assert len(data.sources) == 10
    assert (data.quality.bigcode is not None) == (name == "code")
    assert (data.quality.fineweb is not None) == (name == "web")
    changed = read_config(RUN, (f"data.docs.preset={name}", "data.docs.heldout_fraction=0.2")).corpora["docs"]
    assert changed.quality == data.quality and changed.heldout_fraction == 0.2


def test_a_run_elsewhere_can_name_it_and_have_its_own(tmp_path: Path) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(ELSEWHERE)
    read = read_config(run, ())
    assert read.model.vocab_size == 49_152 and read.corpora[""].quality.fineweb is not None
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "web.yaml").write_text("heldout_fraction: 0.25\n")
    own = read_config(run, ()).corpora[""]
    assert own.heldout_fraction == 0.25 and own.quality.fineweb is None


def test_pages_lose_the_lines_that_c4_removes_but_for_punctuation() -> None:
    data = read_config(RUN, ("data.docs.preset=web",)).corpora["docs"]
    assert data.quality.c4 is not None and data.quality.c4.min_sentences == 5
    first, *others = "The harbour lies to the north\n", "Share this\n", "Please enable JavaScript here\n"
    row, _ = judged(lines_step(data), raw("".join([first, *others, first])), language="en")
    assert row["text"] == first * 2


def test_a_preset_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="no preset 'wbe' in data/"):
        read_config(RUN, ("data.docs.preset=wbe",))


@pytest.mark.slow
def test_a_wheel_brings_the_presets(tmp_path: Path) -> None:
    built, installed = tmp_path / "built", tmp_path / "installed"
    subprocess.run(["uv", "build", "--quiet", "--wheel", "--out-dir", str(built)], cwd=CONFIGS.parent, check=True)
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(installed)
    presets = {path.relative_to(CONFIGS.parent) for path in CONFIGS.rglob("*.yaml")}
    assert presets and all((installed / "lifecycle" / path).is_file() for path in presets)
    (tmp_path / "run.yaml").write_text(ELSEWHERE)
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", READ]
    read = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert read.split() == [str(installed / "lifecycle" / "configs"), "30"]
