"""The whole chain by the command line: what it writes, what a second command runs, where a version came from."""

import json
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from command_line import Debug
from rich.console import Console

from lifecycle.cli.plan import show_plan
from lifecycle.core.config import load_config
from lifecycle.stages.config import RunConfig
from lifecycle.stages.graph import build_graph

AFTER_SFT = {
    "sft", "prefer", "evaluate-sft", "evaluate-prefer", "export", "register", "report",
}  # fmt: skip

pytestmark = pytest.mark.xdist_group("undisturbed")  # a run folder has one owner at a time


def made(run: Debug) -> dict[str, str]:
    """Folder name of each finished artifact -> when it was made."""
    return {name: artifact.manifest.created for name, artifact in run.artifacts().items()}


def cpu_seconds_of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def test_the_chain_makes_every_artifact_and_says_what_next(undisturbed: Debug) -> None:
    stages = {artifact.manifest.stage for artifact in undisturbed.artifacts().values()}
    assert stages == build_graph(load_config(RunConfig, undisturbed.config)).keys()
    assert not list(undisturbed.folder.glob("*.partial"))
    for name in ("model.safetensors", "config.json", "chat_template.jinja", "generation_config.json"):
        assert (undisturbed.artifact("export").path / name).stat().st_size > 0
    report = undisturbed.artifact("report").path
    assert "<html" in (report / "report.html").read_text() and "# " in (report / "report.md").read_text()
    output = (undisturbed.root / "output.txt").read_text()
    assert str(report / "report.html") in output
    assert output.count("\nQ  ") >= 3 and output.count("\nA  ") >= 3
    for verb in ("chat", "serve", "trace"):
        assert f"uv run lifecycle {verb} {undisturbed.config}" in output


def test_the_chain_learns(undisturbed: Debug) -> None:
    records = [json.loads(line) for line in (undisturbed.artifact("pretrain").path / "metrics.jsonl").open()]
    losses = [record["loss"] for record in records if "loss" in record]
    measured = [record["heldout_bits_per_byte"] for record in records if "heldout_bits_per_byte" in record]
    assert losses[-1] < 0.8 * losses[0]
    assert measured == sorted(measured, reverse=True) and len(measured) == 4


def test_a_second_run_runs_nothing(undisturbed: Debug) -> None:
    before, spent_s = made(undisturbed), cpu_seconds_of_children()
    undisturbed.succeed("run")
    assert made(undisturbed) == before
    first_s = sum(artifact.manifest.cpu_s for artifact in undisturbed.artifacts().values())
    assert cpu_seconds_of_children() - spent_s < first_s / 2  # 2 of 40 on an idle machine: imports and hashes


def test_what_computes_nothing_imports_no_jax(undisturbed: Debug) -> None:
    """A second run, and what the registry and the manifests answer; there is no version to roll back to. One process
    runs all of them, and tells after each."""
    verbs = {
        ("run",): 0, ("versions",): 0, ("trace",): 0, ("trace", "sft"): 0, ("data",): 0,
        ("promote", "production"): 0, ("rollback",): 1,
    }  # fmt: skip
    script = (
        "import json, sys; from lifecycle.cli.main import main\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    sys.argv, status = command, 0\n"
        "    try: main()\n"
        "    except SystemExit as end: status = end.code or 0\n"
        "    print('ended', status, 'jax' in sys.modules, flush=True)"
    )
    commands = json.dumps([undisturbed.command(*words) for words in verbs])
    ended = subprocess.run([sys.executable, "-c", script, commands], capture_output=True, text=True)
    told = [line for line in ended.stdout.splitlines() if line.startswith("ended ")]
    assert told == [f"ended {status} False" for status in verbs.values()], ended.stdout + ended.stderr


def test_logging_and_saving_more_often_runs_nothing(undisturbed: Debug) -> None:
    before = made(undisturbed)
    undisturbed.succeed(
        "run", "train.pretrain.log_every=1", "train.sft.checkpoint.every=100", "data.workers=2", "serve.port=1"
    )
    assert made(undisturbed) == before


def test_one_changed_sft_setting_makes_sft_and_what_depends_on_it_due(undisturbed: Debug) -> None:
    """Which `run` brings up to date: below, and with a threshold in the next test."""
    out = StringIO()
    show_plan(
        undisturbed.config,
        (*undisturbed.command("plan")[3:], "train.sft.replay_share=0.5"),
        Console(file=out, width=200),
    )
    due = {line.split()[0] for line in out.getvalue().splitlines() if "to run" in line}
    assert due == AFTER_SFT


@pytest.mark.long  # half a minute: the test before says which stages, and `stages/test_stages_chain.py` that they run
def test_one_changed_sft_setting_runs_sft_and_what_depends_on_it(undisturbed: Debug, tmp_path: Path) -> None:
    run = undisturbed.copy(tmp_path)
    before = made(run)
    run.succeed("run", "train.sft.replay_share=0.5")
    after = made(run)
    assert {name: after[name] for name in before} == before
    assert {run.artifacts()[name].manifest.stage for name in after.keys() - before.keys()} == AFTER_SFT


def test_a_changed_threshold_selects_again_from_the_same_tagging(undisturbed: Debug, tmp_path: Path) -> None:
    run = undisturbed.copy(tmp_path, "tagging", "documents", "tokenizer", "tokens", "rows")
    before = run.artifacts()
    run.succeed("data", "data.quality.gopher.min_words=300", "data.quality.repetition=null")
    made = [artifact for name, artifact in run.artifacts().items() if name not in before]
    (documents,) = (artifact for artifact in made if artifact.manifest.stage == "documents")
    assert {artifact.manifest.stage for artifact in made} == {"documents"}  # all of it is code: the same content
    assert documents.content_hash == undisturbed.artifact("documents").content_hash
    assert documents.manifest.inputs == {"tagging": undisturbed.artifact("tagging").path.name}


@pytest.mark.long  # `stages/test_stages_chain.py` has the artifact made again, `ops/test_ops_lineage.py` what is told
def test_a_flipped_bit_is_found_and_its_artifact_made_again(undisturbed: Debug, tmp_path: Path) -> None:
    run = undisturbed.copy(tmp_path, "tagging", "documents")
    documents = run.artifact("documents")
    kept = next(documents.path.glob("kept-*.parquet"))
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    assert f"{kept.name} changed after it was finished" in run.fail("trace", "documents", "--verify")
    assert f"{kept.name} changed after it was finished; making it again" in run.succeed("tokenizer")
    assert run.artifact("documents").content_hash == documents.content_hash
    assert "verified" in run.succeed("trace", "tokenizer", "--verify")


@pytest.mark.long
def test_a_deleted_registry_comes_back(undisturbed: Debug, tmp_path: Path) -> None:
    run = undisturbed.copy(tmp_path)
    before = run.artifact("export").content_hash
    for file in run.folder.glob("registry.db*"):
        file.unlink()
    run.succeed("run")
    assert json.loads(run.succeed("trace", "production", "--json"))["version"] == before
    assert made(run).keys() == made(undisturbed).keys()


@pytest.mark.slow
def test_verbs_act_on_any_training_stage(undisturbed: Debug, tmp_path: Path) -> None:
    run = undisturbed.copy(tmp_path)
    assert "evaluate-sft" in run.succeed("evaluate", "sft")
    assert made(run) == made(undisturbed)
    run.succeed("export", "sft")
    (bundle,) = (a for a in run.artifacts().values() if a.manifest.inputs.get("sft") and a.manifest.stage == "export")
    assert json.loads(run.succeed("trace", "candidate", "--json"))["version"] == bundle.content_hash
    tree = json.loads(run.succeed("trace", "sft", "--json"))
    assert tree["stage"] == "sft" and "pretrain" in tree["inputs"]
    for verb in ("evaluate", "export"):
        assert "no training stage 'sftt'; did you mean 'sft'?" in run.fail(verb, "sftt")
    assert "this run has no stage 'tokns'; did you mean 'tokens'?" in run.fail("run", "--until=tokns")
    assert "stage sft is not finished; run: lifecycle run CONFIG --until sft" in run.fail("trace", "sft", "seed=1")


def test_trace_leads_from_an_alias_to_the_filters_and_the_source_files(undisturbed: Debug) -> None:
    bundle = undisturbed.artifact("export").content_hash
    by_alias = json.loads(undisturbed.succeed("trace", "--json"))
    by_prefix = json.loads(undisturbed.succeed("trace", bundle[:10], "--json"))
    assert by_alias["version"] == by_prefix["version"] == bundle
    nodes = list(_nodes(by_alias["chain"]))
    assert {node["stage"] for node in nodes} >= {
        "export",
        "prefer",
        "sft",
        "pretrain",
        "tokens",
        "tokenizer",
        "documents",
        "tagging",
    }
    text = json.dumps([node for node in nodes if node["stage"] in ("tagging", "documents")])
    for wanted in ("min_words", "jaccard", "min_overlap", "asyncio/events.py", "sha256"):
        assert wanted in text
    shown = undisturbed.succeed("trace", "production")
    for wanted in ("documents", "min_words", "asyncio", bundle[:8]):
        assert wanted in shown


@pytest.mark.long
def test_a_worse_model_becomes_candidate_and_not_production(undisturbed: Debug, tmp_path: Path) -> None:
    run = undisturbed.copy(tmp_path)
    old = json.loads(run.succeed("trace", "production", "--json"))["version"]
    run.succeed("export", "pretrain", "train.pretrain.steps=1", "train.pretrain.optimizer.schedule.warmup_steps=0")
    assert json.loads(run.succeed("trace", "production", "--json"))["version"] == old
    candidate = json.loads(run.succeed("trace", "candidate", "--json"))["version"]
    assert candidate != old
    (refused,) = (a.stats for a in run.artifacts().values() if a.stats.get("promoted") is False)
    assert refused["version"] == candidate and "REFUSE text" in refused["gate"]


def _nodes(node: dict[str, Any]):
    yield node
    for child in node.get("inputs", {}).values():
        yield from _nodes(child)
