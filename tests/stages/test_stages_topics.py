"""Topics in a run: token shards name documents by them, mixtures draw by them, and no other stage knows."""

import json
from pathlib import Path
from typing import Any

import pytest
from trees import MODEL, next_token, run_of

from lifecycle.cli.data import data
from lifecycle.core.artifact import Artifact
from lifecycle.core.config import ConfigError, load_config
from lifecycle.core.progress import Silent
from lifecycle.data.documents import Split, read_documents
from lifecycle.data.shards import TokenShards
from lifecycle.data.topic_names import divided, topic_name
from lifecycle.report.blocks import Report
from lifecycle.report.data_section import tokenizer_section
from lifecycle.report.markdown import render_markdown
from lifecycle.stages.chain import bring_up_to_date
from lifecycle.stages.config import RunConfig
from lifecycle.stages.keys import tokens as tokens_key
from lifecycle.text.row_files import read_rows
from lifecycle.training.mixture_setting import source_weights
from lifecycle.training.token_rows import TokenRows

PLAIN = {"quality": {"gopher": None, "repetition": None, "c4": None, "fineweb": None}, "heldout_fraction": 0.25}
SPLITS: dict[str, Split] = {"train": "kept", "heldout": "heldout"}


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Sorted:
    """A run of two sources, and topics of its documents: letters 0, sums 1; the first two have none."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file, self.path = folder, folder / "topics.jsonl", folder / "run.yaml"
        for source in ("a", "b"):
            (folder / source).mkdir()
            for number in range(16):
                letters, sums = f"the word {source} {number} and others\n" * 6, f"{number} + 1 = {number + 1};\n" * 9
                (folder / source / f"{number:02d}.txt").write_text(source * 9 + (sums if number % 2 else letters))
        sources = [{"name": name, "path": str(folder / name)} for name in ("a", "b")]
        tree: dict[str, Any] = {"name": "run", "root": str(folder), "tokenizer": {"kind": "bytes"}, "model": MODEL}
        tree |= {"data": PLAIN | {"sources": sources}, "train": {"base": next_token(steps=2, global_batch_size=2)}}
        tree["train"]["base"]["seq_len"] = 32
        self.path.write_text(json.dumps(tree))
        self.before = self.make()
        kept = [*read_documents(self.before["documents"].path, "kept", ["id", "text"])]
        heldout = [*read_documents(self.before["documents"].path, "heldout", ["id", "text"])]
        self.topic_of = {row["id"]: int("+" in row["text"]) for row in [*kept[2:], *heldout]}
        self.without = [row["id"] for row in kept[:2]]
        self.write(self.topic_of)

    def write(self, topics: dict[str, Any]) -> None:
        self.file.write_text("".join(json.dumps({"id": name, "topic": topic}) + "\n" for name, topic in topics.items()))

    def config(self, *settings: str) -> RunConfig:
        return load_config(RunConfig, self.path, settings)

    def make(self, *settings: str, progress: Silent | None = None, stage: str = "tokens") -> dict[str, Artifact]:
        return bring_up_to_date(self.config(*settings), (stage,), progress or Silent())

    @property
    def by_topic(self) -> str:
        return f"data.topics={self.file}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Sorted:
    return Sorted(tmp_path_factory.mktemp("sorted"))


def test_token_shards_name_documents_by_source_and_topic(run: Sorted) -> None:
    notes = Notes()
    made = run.make(run.by_topic, progress=notes)
    for stage in ("tagging", "documents", "tokenizer"):
        assert made[stage].path == run.before[stage].path, "which know nothing of topics"
    assert made["tokens"].path != run.before["tokens"].path
    for split, prefix in SPLITS.items():
        shards, plain = (TokenShards(of["tokens"].path, split) for of in (made, run.before))
        rows = [*read_documents(made["documents"].path, prefix, ["id", "source"])]
        topics = [run.topic_of.get(row["id"]) for row in rows]
        names = {
            row["id"]: f"{row['source']}/{'none' if own is None else topic_name(own)}"
            for row, own in zip(rows, topics, strict=True)
        }
        numbers = {int(number): name for name, own in shards.domains().items() for number in own}
        assert {shards.name(number): numbers[number] for number in range(len(shards))} == names
        assert [shards[number].tolist() for number in range(len(rows))] == [plain[n].tolist() for n in range(len(rows))]
        assert sum(shards.source_tokens().values()) == plain.num_tokens
    assert made["tokens"].stats["topics"] == {"": {"with_topic": len(run.topic_of), "without": 2}}
    assert notes.notes == [f"2 documents have no topic in {run.file}, and are SOURCE/none in mixtures"]
    section = tokenizer_section({"kind": "bytes", "vocab_size": 264, "fingerprint": "f"}, made["tokens"].stats)
    page = render_markdown(Report("", "", (section,)))
    assert "documents without one: 2" in page and "a/topic-01" in page


def test_unset_topics_change_no_key_and_other_topics_that_of_tokens_alone(run: Sorted) -> None:
    assert tokens_key(run.config()) == {"count": None} and "topics" not in run.before["tokens"].stats
    one = tokens_key(run.config(run.by_topic))
    (run.folder / "other.jsonl").write_text(run.file.read_text() + "\n")
    assert tokens_key(run.config(f"data.topics={run.folder / 'other.jsonl'}")) != one
    (run.folder / "copy.jsonl").write_text(run.file.read_text())
    copied = run.config(f"data.topics={run.folder / 'copy.jsonl'}")
    assert tokens_key(copied) == one and "topics" not in {
        **copied.corpora[""].tagging(),
        **copied.corpora[""].selection(),
    }


@pytest.mark.parametrize(
    ("mixture", "share_of"),
    [
        ("size", None),
        ({"temperature": 4}, None),
        ({"a": 3, "b/topic-01": 1}, {"a": 0.75, "b/topic-01": 0.25}),
        ({"topic-00": 3, "topic-01": 1}, {("a/topic-00", "b/topic-00"): 0.75, ("a/topic-01", "b/topic-01"): 0.25}),
        ({"a/topic-00": 1, "a/topic-01": 1, "b": 2}, {"a/topic-00": 0.25, "a/topic-01": 0.25, "b": 0.5}),
    ],
)
def test_a_mixture_draws_by_topic(run: Sorted, mixture: Any, share_of: dict[Any, float] | None) -> None:
    config = run.config(run.by_topic, f"train.base.mixture={json.dumps(mixture)}")
    shards = TokenShards(run.make(run.by_topic)["tokens"].path)
    train: Any = config.train["base"]
    weights = source_weights(train.mixture, shards.source_tokens())
    rows = TokenRows(shards, 16, weights, seed=0)
    drawn = [rows.contents(number)["source"] for number in range(1024)]
    if share_of is None:
        assert {*drawn} == {*shards.sources} and len(shards.sources) >= 5
        return
    found = [sum(own.startswith(names) for own in drawn) / 1024 for names in share_of]
    assert found == pytest.approx([*share_of.values()], abs=0.01)
    assert sum(found) == 1.0


def test_names_that_are_no_topics_are_refused(run: Sorted) -> None:
    with pytest.raises(ConfigError, match=r"no source .a/topic-00. in data\.sources, or no data\.topics sorts it"):
        run.config('train.base.mixture={"a/topic-00": 1}')
    sorted_ones, none = (run.by_topic,), ()
    for words, names in ((sorted_ones, ("a/topik-01", "c/topic-01", "a/topic-1")), (none, ("topic-00", "a/topic-01"))):
        for name in names:
            with pytest.raises(ConfigError, match=f"no source '{name}'"):
                run.config(*words, f"train.base.mixture={json.dumps({name: 1})}")
    shards = TokenShards(run.make(run.by_topic)["tokens"].path)
    with pytest.raises(ConfigError, match="no text of 'a/topic-07'; did you mean 'a/topic-0"):
        source_weights({"a/topic-07": 1}, shards.source_tokens())
    assert divided("web/crawl/topic-100") == ("web/crawl", "topic-100") and divided("none") == ("", "none")
    assert divided("crawl") is None and divided("crawl/topic-100/x") is None
    data: dict[str, Any] = {"web": PLAIN | {"sources": [{"name": "crawl", "path": "x"}], "topics": str(run.file)}}
    data["code"] = PLAIN | {"sources": [{"name": "own", "path": "y"}]}
    mixed = {"web/crawl/topic-01": 2, "web/topic-02": 1, "topic-00": 1, "code": 1}
    assert run_of({"base": next_token(mixture=mixed)}, data=data).sorted_by_topic == ("web", "web/crawl")
    with pytest.raises(ConfigError, match="no source 'code/own/topic-00'"):
        run_of({"base": next_token(mixture={"code/own/topic-00": 1})}, data=data)


def test_a_file_of_other_documents_or_of_no_topics_is_refused(run: Sorted) -> None:
    other = run.folder / "wrong.jsonl"
    for topics, says in (
        ({"0" * 32: 1}, "no topic of a document in"),
        (run.topic_of | {"0" * 32: 1.5}, "topic 1.5 is no whole number"),
        (run.topic_of | {"0" * 32: -1}, "topic -1 is no whole number"),
    ):
        other.write_text("".join(json.dumps({"id": name, "topic": own}) + "\n" for name, own in topics.items()))
        with pytest.raises(ConfigError, match=says):
            run.make(f"data.topics={other}")
    with pytest.raises(ConfigError, match="no such file"):
        run.config("data.topics=nothing.parquet")


@pytest.mark.slow
def test_a_trained_stage_sorts_the_documents_of_the_next_run(run: Sorted, capsys: Any) -> None:
    out = run.folder / "own.parquet"
    run.make(stage="base")
    words = ["--model", "base", "--out", str(out), "--clusters", "2", "--most-bytes", "60"]
    data(["topics", str(run.path), *words], result_action="return_value")
    assert f"{len(run.topic_of) + len(run.without)} documents" in capsys.readouterr().out
    mixed = (f"data.topics={out}", 'train.base.mixture={"temperature": 2}')
    made = run.make(*mixed, stage="base")
    topics = {row["id"]: topic_name(row["topic"]) for _, row in read_rows(out)}
    kept = read_documents(made["documents"].path, "kept", ["id", "source"])
    assert {*made["base"].stats["mixture"]} == {f"{row['source']}/{topics[row['id']]}" for row in kept}
    assert run.make(*mixed, stage="base")["base"].path == made["base"].path
