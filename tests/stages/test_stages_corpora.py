"""Runs of several named corpora: their stages, their settings, and that later stages read the documents of all."""

import json
from pathlib import Path
from typing import Any

import pytest
from trees import MODEL, SIZES, next_token, run_of

from lifecycle.cli.data import peek, report, why
from lifecycle.cli.documents import chosen_corpus
from lifecycle.core.artifact import Artifact
from lifecycle.core.config import ConfigError, load_config
from lifecycle.core.progress import Silent
from lifecycle.data.documents import Split, read_documents
from lifecycle.data.shards import TokenShards
from lifecycle.evals.rows import read_rows
from lifecycle.evals.tasks import TaskConfig
from lifecycle.stages.chain import bring_up_to_date
from lifecycle.stages.config import RunConfig
from lifecycle.stages.graph import build_graph
from lifecycle.stages.keys import documents as documents_key
from lifecycle.stages.names import by_corpus

TWO = {
    "web": {"sources": [{"name": "crawl", "path": "a"}, {"name": "news", "path": "b"}]},
    "code": {"sources": [{"name": "crawl", "path": "c"}], "heldout_fraction": 0.2},
}
TEXT = {"name": "text", "kind": "bits_per_byte", "rows": "@documents/heldout-*.parquet"}


def inputs_of(config: RunConfig) -> dict[str, tuple[str, ...]]:
    return {stage.name: stage.needs for stage in build_graph(config).values()}


def test_each_corpus_has_stages_of_its_own_and_later_ones_read_all() -> None:
    web = {"name": "web", "kind": "bits_per_byte", "rows": "@documents-web/heldout-*.parquet"}
    config = run_of({"base": next_token()}, data=TWO, evaluate={"tasks": [TEXT, web]})
    needs, both = inputs_of(config), ("documents-web", "documents-code")
    assert [*needs][:6] == ["tagging-web", "documents-web", "tagging-code", "documents-code", "tokenizer", "tokens"]
    assert needs["documents-web"] == ("tagging-web",)
    assert needs["documents-code"] == ("tagging-code", "documents-web"), "whose held-out text it must not have"
    assert needs["tokenizer"] == both and needs["tokens"] == (*both, "tokenizer")
    assert needs["baseline"] == (*both, "tokens", "base") and needs["evaluate-base"] == ("base", "tokenizer", *both)
    assert {"tagging-web", *both} <= {*needs["report"]}
    assert config.source_names == ("web/crawl", "web/news", "code/crawl")
    alone = run_of({"base": next_token()}, data=TWO["web"], evaluate={"tasks": [TEXT]})
    assert [*inputs_of(alone)][:4] == ["tagging", "documents", "tokenizer", "tokens"]
    assert documents_key(alone, "") == documents_key(config, "web"), "a name changes no key"
    of_web = run_of({"base": next_token()}, data=TWO, evaluate={"tasks": [web]})
    assert inputs_of(of_web)["evaluate-base"] == ("base", "tokenizer", "documents-web")


@pytest.mark.parametrize(
    ("stage", "sections", "says"),
    [
        ({"mixture": {"wev": 1}}, {}, r"train\.base\.mixture: no source 'wev' in data\.sources; did you mean 'web'"),
        ({"mixture": {"crawl": 1}}, {}, r"no source 'crawl'"),
        ({}, {"data": {"We b": TWO["web"]}}, r"data: 'We b' cannot name a corpus: use lower-case"),
        ({}, {"data": TWO | {"x": TWO["web"] | {"dedup": {"rows": 7}}}}, "differ between corpora.* x: bands=14"),
        ({}, {"data": {**TWO, "x": {"source": []}}}, r"data\.x\.source: no such setting; did you mean 'sources'"),
        ({}, {"evaluate": {"tasks": [TEXT | {"rows": "@documents-wed/x"}]}}, "@documents/FILE, @documents-web/FILE"),
    ],
)  # fmt: skip
def test_names_that_are_none_are_refused(stage: dict[str, Any], sections: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run_of({"base": next_token(**stage)}, **{"data": TWO, **sections})
    with pytest.raises(ConfigError, match="'documents-web' is a reserved name"):
        run_of({"documents-web": next_token()}, data=TWO)


def test_a_mixture_names_corpora_and_their_sources() -> None:
    for mixture in ({"web": 3, "code": 1}, {"web/news": 1, "code/crawl": 2}, "size", {"temperature": 3}):
        assert run_of({"base": next_token(mixture=mixture)}, data=TWO)


def test_presets_and_overrides_reach_into_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prose.yaml").write_text("{quality: {gopher: {min_words: 7}}, heldout_fraction: 0.3}")
    sources = [{"name": "own", "path": "."}]
    data = {"web": {"preset": "prose", "sources": sources}, "code": {"sources": sources}}
    tree = {"name": "run", "tokenizer": {"kind": "bytes"}, "data": data, "model": MODEL}
    tree |= {"train": {"base": SIZES | next_token()}}
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    words = ["data.web.heldout_fraction=0.4", "data.code.heldout_bytes=9"]
    corpora = load_config(RunConfig, tmp_path / "run.yaml", words).corpora
    assert corpora["web"].quality.gopher is not None and corpora["web"].quality.gopher.min_words == 7
    assert (corpora["web"].heldout_fraction, corpora["code"].heldout_bytes) == (0.4, 9)
    with pytest.raises(ConfigError, match="data has no 'cod'; did you mean 'code'"):
        load_config(RunConfig, tmp_path / "run.yaml", ["data.cod.heldout_bytes=9"])


def test_a_command_asks_which_corpus() -> None:
    two, one = (run_of({"base": next_token()}, data=data) for data in (TWO, TWO["web"]))
    assert chosen_corpus(two, "code") == "code" and chosen_corpus(one, None) == ""
    with pytest.raises(ConfigError, match="several corpora: add --corpus with one of web, code"):
        chosen_corpus(two, None)
    with pytest.raises(ConfigError, match="no corpus 'cod'; did you mean 'code'"):
        chosen_corpus(two, "cod")
    with pytest.raises(ConfigError, match="its only one has no name: leave out --corpus=web"):
        chosen_corpus(one, "web")


SPLITS: dict[str, Split] = {"train": "kept", "heldout": "heldout"}
WORDS = [f"{first}{last}" for first in ("har", "ti", "ra", "shi", "cle") for last in ("bour", "de", "il", "per")]


def sentence(number: int) -> str:
    """Twenty words, other ones for each number."""
    return " ".join(WORDS[(number * step + step * step) % len(WORDS)] + str(number) for step in range(1, 21))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Artifact]]:
    """A run file of two corpora, and its artifacts up to the tokens. All of the first corpus's text is in the second
    too, below a paragraph of its own, and once alone."""
    folder = tmp_path_factory.mktemp("corpora")
    for number in range(24):
        for corpus, own in (("web", 0), ("code", 1000)):
            (folder / corpus).mkdir(exist_ok=True)
            shared = " ".join(sentence(number + 100 * part) for part in range(1, 5))
            text = f"{shared}\n" if corpus == "web" else f"{sentence(own + number)}\n\n{shared}\n"
            (folder / corpus / f"{number:02d}.txt").write_text(text)
    (folder / "code" / "copy.txt").write_bytes((folder / "web" / "07.txt").read_bytes())
    plain = {"quality": {"gopher": None, "repetition": None, "c4": None, "fineweb": None}, "heldout_fraction": 0.25}
    data = {name: plain | {"sources": [{"name": "own", "path": str(folder / name)}]} for name in ("web", "code")}
    train = {"base": next_token(steps=3, seq_len=32, global_batch_size=2, mixture={"code": 3, "web": 1})}
    run = {"name": "run", "root": str(folder), "tokenizer": {"kind": "bytes"}, "data": data, "model": MODEL}
    path = folder / "run.yaml"
    path.write_text(json.dumps({**run, "train": train}))
    return path, bring_up_to_date(load_config(RunConfig, path), ("tokens",), Silent())


def test_a_corpus_has_no_duplicate_of_an_earlier_one(made: tuple[Path, dict[str, Artifact]]) -> None:
    removed = {row["path"]: row for row in read_documents(made[1]["documents-code"].path, "removed")}
    found = removed["copy.txt"]
    assert (found["reason"], found["detail"]) == ("earlier_exact_duplicate", "same text as own:07.txt of documents-web")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("quality.c4={min_sentences: 99}", "corpus web: no training document is left"),
        ("classifiers=[{name: own, path: FILE}]", "corpus web: .*no classifier"),
    ],
)
def test_a_mistake_says_in_which_corpus_it_is(
    made: tuple[Path, dict[str, Artifact]], tmp_path: Path, setting: str, says: str
) -> None:
    (tmp_path / "own.npz").write_text("nothing")
    changed = f"data.web.{setting.replace('FILE', str(tmp_path / 'own.npz'))}"
    config = load_config(RunConfig, made[0], [f"root={tmp_path}", changed])
    with pytest.raises(ConfigError, match=says):
        bring_up_to_date(config, ("documents-code",), Silent())


def test_tokens_have_the_sources_of_all_corpora(made: tuple[Path, dict[str, Artifact]]) -> None:
    shards = {split: TokenShards(made[1]["tokens"].path, split) for split in ("train", "heldout")}
    assert shards["train"].sources == ("code/own", "web/own") == shards["heldout"].sources
    for split, read in SPLITS.items():
        for corpus in ("code", "web"):
            rows = list(read_documents(made[1][f"documents-{corpus}"].path, read, ["id"]))
            own = shards[split].of_source(f"{corpus}/own")
            names = [own.name(n) for n in range(len(own.lengths))]
            assert sorted(names) == sorted(row["id"] for row in rows) and rows
    stages = {"documents-web": 1, "documents-code": 2, "documents": 3, "document-x": 4}
    assert [*by_corpus("documents", stages).items()] == [("", 3), ("code", 2), ("web", 1)], "in no file's order"


def test_no_training_text_is_held_out_of_an_earlier_corpus(made: tuple[Path, dict[str, Artifact]]) -> None:
    held = {row["path"] for row in read_documents(made[1]["documents-web"].path, "heldout", ["path"])}
    removed = {
        row["path"]: row["step"]
        for row in read_documents(made[1]["documents-code"].path, "removed", ["path", "step"])
        if row["path"] != "copy.txt"
    }
    kept = {row["path"] for row in read_documents(made[1]["documents-code"].path, "kept", ["path"])}
    assert len(held) >= 4 and not kept & held
    assert removed and {*removed} <= held and {*removed.values()} == {"decontamination"}


def test_tasks_read_the_held_out_documents_of_all_or_of_one(made: tuple[Path, dict[str, Artifact]]) -> None:
    folders = {name: artifact.path for name, artifact in made[1].items()}
    counts = {}
    for rows in ("documents", "documents-web", "documents-code"):
        task = TaskConfig.model_validate(TEXT | {"rows": f"@{rows}/heldout-*.parquet"})
        counts[rows] = read_rows(task, folders).num_read
    assert counts["documents"] == counts["documents-web"] + counts["documents-code"] > counts["documents-web"] > 0


def test_the_verbs_of_data_take_the_corpus_s_name(
    made: tuple[Path, dict[str, Artifact]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made[0]
    peek(str(path), split="kept", corpus="web", as_json=True)
    assert len(capsys.readouterr().out.splitlines()) == made[1]["documents-web"].stats["train"]["documents"]
    why(path, "03.txt", corpus="code", as_json=True)
    (fate,) = json.loads(capsys.readouterr().out)
    assert fate["text"].startswith(sentence(1003))
    report(path, corpus="code", out=tmp_path / "page.html")
    assert "run: code" in (tmp_path / "page.html").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="several corpora"):
        why(path, "03.txt")
    with pytest.raises(ConfigError, match="is a folder, so --corpus=web changes nothing"):
        peek(str(made[1]["documents-web"].path), corpus="web")
