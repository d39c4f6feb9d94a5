"""Lineage: the whole chain, and what it says of a chain with holes."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from lifecycle.core.artifact import Artifact, ArtifactError, Draft, content_hash
from lifecycle.ops.lineage import problems, render, source_files, trace_artifact, trace_version
from lifecycle.ops.registry import Registry

FILTERS = {"min_words": 50, "pii": {"mask": True, "kinds": ["email", "ip"]}}


@pytest.fixture
def data(tmp_path: Path) -> Artifact:
    draft = Draft(tmp_path / "run", "data", {"filters": FILTERS, "sources": {"stdlib": "abc123"}}, {})
    folder = draft.open()
    for name, paths in {"kept-0": ["os.py", "os.py", "ast.py"], "removed-0": ["empty.py"]}.items():
        pq.write_table(pa.table({"source": ["stdlib"] * len(paths), "path": paths}), folder / f"{name}.parquet")
    return draft.commit({"documents": 4})


@pytest.fixture
def chain(data: Artifact, make_artifact: Any) -> dict[str, Artifact]:
    tokenizer = make_artifact("tokenizer", {"t": "t"}, inputs={"data": data})
    pretrain = make_artifact("pretrain", {"w": "w"}, {"steps": 10}, {"data": data, "tokenizer": tokenizer})
    export = make_artifact("export", {"b": "b"}, {"x": 1}, {"pretrain": pretrain, "tokenizer": tokenizer})
    return {"data": data, "tokenizer": tokenizer, "pretrain": pretrain, "export": export}


def drawn(node: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(render(node))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_whole_chain_as_data(chain: dict[str, Artifact]) -> None:
    tree = json.loads(json.dumps(trace_artifact(chain["export"].path)))
    pretrain = tree["inputs"]["pretrain"]
    data = pretrain["inputs"]["data"]
    assert [node["stage"] for node in (tree, pretrain, data)] == ["export", "pretrain", "data"]
    assert data["content_hash"] == chain["data"].content_hash
    assert data["key"] == chain["data"].manifest.key
    assert data["config"]["filters"] == FILTERS
    assert data["cpu_s"] >= 0
    assert data["source_files"]["stdlib"]["paths"] == ["ast.py", "empty.py", "os.py"]
    assert pretrain["inputs"]["tokenizer"]["state"] == "present"
    assert tree["inputs"]["tokenizer"] == {
        "stage": "tokenizer", "path": str(chain["tokenizer"].path), "content_hash": chain["tokenizer"].content_hash,
        "state": "shown above", "problem": "", "inputs": {},
    }  # fmt: skip


def test_the_drawing_goes_down_to_filters_and_files(chain: dict[str, Artifact]) -> None:
    text = drawn(trace_artifact(chain["export"].path))
    for stage, artifact in chain.items():
        assert f"{stage} {artifact.content_hash[:12]}" in text
    assert "filters.min_words = 50" in text
    assert "filters.pii.kinds = ['email', 'ip']" in text
    assert "source stdlib: 3 files" in text
    assert "ast.py, empty.py, os.py" in text


def test_the_drawing_says_where_the_users_files_were_read(chain: dict[str, Artifact]) -> None:
    node = trace_artifact(next(iter(chain.values())).path)
    node["stats"]["read_from"] = ["rows/own.jsonl", "s3://bucket/own.jsonl"]
    assert "read from rows/own.jsonl" in drawn(node) and "read from s3://bucket/own.jsonl" in drawn(node)


def test_the_drawing_says_what_a_run_that_goes_on_has_changed(chain: dict[str, Artifact]) -> None:
    node = trace_artifact(next(iter(chain.values())).path)
    node["stats"]["goes_on"] = {
        "stage": "first",
        "step": 60,
        "settings": {"seq_len": [4096, 8192], "mixture": [{}, {"a": 1}]},
    }
    assert 'after step 60 of first: seq_len 4096 -> 8192, mixture {} -> {"a": 1}' in drawn(node)


def test_the_drawing_says_what_was_done_about_faulty_steps(chain: dict[str, Artifact]) -> None:
    node = trace_artifact(next(iter(chain.values())).path)
    skipped = {"step": 6, "fault": "loss nan, grad_norm 1: not finite", "action": "skipped"}
    back = {"step": 9, "from_step": 12, "fault": "loss 9, grad_norm 1: a spike", "action": "went back"}
    node["stats"]["faults"] = [skipped, back | {"passed_over": [8, 11]}, *[skipped] * 6]
    text = drawn(node)
    assert "step 6: loss nan, grad_norm 1: not finite; skipped" in text and "and 3 more faulty steps" in text
    assert "step 12: loss 9, grad_norm 1: a spike; went back, passing over batches 8 to 11" in text


def test_from_an_alias(chain: dict[str, Artifact], make_result: Any, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry.sqlite")
    registry.register(chain["export"].path, "chat", [make_result("which", [1.0, 0.0, 1.0])])
    registry.move("production", chain["export"].content_hash, who="ada", why="release [1]")
    tree = trace_version(registry, "production")
    json.dumps(tree)
    assert tree["version"] == chain["export"].content_hash
    assert tree["evaluations"]["which"]["n"] == 3
    assert tree["chain"]["inputs"]["pretrain"]["inputs"]["data"]["config"]["filters"] == FILTERS
    text = drawn(tree)
    assert f"production is version {tree['version']}, a chat model" in text
    assert "by ada: release [1]" in text
    assert "which: exact 0.6667 [" in text
    assert drawn(trace_version(registry, tree["version"][:6])).count("filters.min_words") == 1


def test_a_missing_input_is_shown_with_its_hash(chain: dict[str, Artifact]) -> None:
    shutil.rmtree(chain["data"].path)
    tree = trace_artifact(chain["export"].path)
    data = tree["inputs"]["pretrain"]["inputs"]["data"]
    assert (data["state"], data["content_hash"]) == ("missing", chain["data"].content_hash)
    text = drawn(tree)
    assert f"data {chain['data'].content_hash[:12]} (missing)" in text
    assert f"{chain['data'].path.name} is gone" in text
    assert "pretrain" in text


def test_a_damaged_input_is_shown(chain: dict[str, Artifact]) -> None:
    (chain["tokenizer"].path / "t").write_text("longer")
    tokenizer = trace_artifact(chain["export"].path)["inputs"]["tokenizer"]
    assert tokenizer["state"] == "damaged"
    assert "6 bytes, the manifest says 1" in tokenizer["problem"]
    (chain["pretrain"].path / "manifest.json").write_text("{}")
    assert trace_artifact(chain["export"].path)["inputs"]["pretrain"]["state"] == "damaged"


def test_verifying_reads_every_file_of_the_chain(chain: dict[str, Artifact]) -> None:
    tree = trace_artifact(chain["export"].path, verify=True)
    assert not list(problems(tree)) and drawn(tree).count("verified") == 4
    flip(chain["data"].path / "kept-0.parquet")
    assert not list(problems(trace_artifact(chain["export"].path)))  # at equal length, unread
    tree = trace_artifact(chain["export"].path, verify=True)
    (problem, *others) = problems(tree)
    assert "kept-0.parquet changed after it was finished" in problem and set(others) <= {problem}
    assert tree["inputs"]["pretrain"]["state"] == "verified"
    assert tree["inputs"]["pretrain"]["inputs"]["data"]["state"] == "damaged"


def flip(path: Path) -> None:
    """Changes one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_an_input_made_again_with_other_content_is_shown(chain: dict[str, Artifact]) -> None:
    old = chain["pretrain"]
    shutil.rmtree(old.path)
    inputs = {"data": chain["data"], "tokenizer": chain["tokenizer"]}
    draft = Draft(old.path.parent, "pretrain", old.manifest.config, inputs)
    (draft.open() / "w").write_text("W")
    new = draft.commit({})
    assert new.path == old.path
    result = trace_artifact(chain["export"].path)["inputs"]["pretrain"]
    assert (result["state"], result["content_hash"]) == ("changed", old.content_hash)
    assert new.content_hash in result["problem"]


def test_a_bundle_that_is_gone_is_still_a_version(chain: dict[str, Artifact], tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry.sqlite")
    registry.register(chain["export"].path, "chat")
    shutil.rmtree(chain["export"].path)
    tree = trace_version(registry, chain["export"].content_hash)
    assert tree["chain"]["state"] == "missing"
    assert "(missing)" in drawn(tree)


def test_no_artifact_here(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no finished artifact"):
        trace_artifact(tmp_path)


def test_source_files_of_other_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "x.parquet")
    assert source_files(tmp_path) == {}


@pytest.mark.parametrize("has_manifest", [True, False])
def test_the_chain_goes_on_into_the_bundle_that_a_run_started_from(tmp_path: Path, has_manifest: bool) -> None:
    if has_manifest:
        draft = Draft(tmp_path / "elsewhere", "import", {"source": "published.gguf"}, {})
        draft.open().joinpath("config.json").write_text("{}")
        bundle = draft.commit({}).path
    else:
        bundle = tmp_path / "bundle"
        bundle.mkdir()
        (bundle / "config.json").write_text("{}")
    draft = Draft(tmp_path / "run", "chat", {}, {}, {"bundle": bundle})
    draft.open()
    tree = trace_artifact(draft.commit({}).path)
    node = tree["inputs"]["bundle"]
    assert (node["path"], node["content_hash"]) == (str(bundle), content_hash(bundle))
    assert node["state"] == ("present" if has_manifest else "no manifest")
    assert ("published.gguf" in drawn(tree)) == has_manifest and f"bundle {node['content_hash'][:12]}" in drawn(tree)
    shutil.rmtree(bundle)
    assert trace_artifact(Path(tree["path"]))["inputs"]["bundle"]["state"] == "missing"
