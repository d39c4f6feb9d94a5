"""Rows from docstrings: true to the source, fair between answers, and never the same on both sides of the split."""

import ast
import json
import statistics
import sysconfig
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.data.docstrings import DocstringError, derange, make_docstring_rows
from lifecycle.data.functions import Function, described_functions, first_sentence, module_name, stems

SOURCE = '''
"""A module."""

def join_paths(first, *others, separator="/", **options):
    """Join paths with a separator.

    More about it.
    """

class Reader(object):
    """Reads records
    from a file:"""

    def __init__(self, file, size=3):
        """Not taken: a special name."""

    def read_record(self, number, /):
        """Return the record of a number. Raises if there is none."""

    @staticmethod
    def open_reader(path: str) -> "Reader":
        """Open a reader on a path."""

    def __len__(self):
        """How many records the reader has."""

async def wait_all(tasks):
    """Wait for all tasks.  They finish in any order."""

def obscure(x):
    """Does something else entirely with strings."""

def call(a):
    """call(a) -> what calling a gives back."""

def twin_paths(first):
    """Join paths with a separator."""
'''


def functions_of(source: str, path: str = "pkg/paths.py") -> tuple[dict[str, str], Counter[str]]:
    reasons: Counter[str] = Counter()
    return {f.signature: f.description for f in described_functions([(path, source)], reasons)}, reasons


def test_functions_have_their_signature_and_first_sentence() -> None:
    found, reasons = functions_of(SOURCE)
    twins = {key: found.pop(key) for key in list(found) if "_paths" in key}
    assert found == {
        "pkg.paths.Reader(file, size)": "Reads records from a file.",
        "pkg.paths.Reader.read_record(number)": "Return the record of a number.",
        "pkg.paths.Reader.open_reader(path)": "Open a reader on a path.",
        "pkg.paths.wait_all(tasks)": "Wait for all tasks.",
    }
    assert len(twins) == 1  # of two functions with one description one stays
    assert set(twins) < {"pkg.paths.join_paths(first, *others, separator, **options)", "pkg.paths.twin_paths(first)"}
    assert reasons == {
        "docstrings": 10,
        "special name": 2,
        "no word shared with the signature": 1,
        "docstring begins with a call": 1,
        "same name or description as another": 1,
    }


def test_source_is_parsed_and_never_run(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    source = f"open({str(witness)!r}, 'w').close()\ndef close_file(file):\n    '''Close a file for good.'''\n"
    assert functions_of(source)[0] == {"pkg.paths.close_file(file)": "Close a file for good."}
    assert not witness.exists()


@pytest.mark.parametrize("source", ["print 'two'", "x = '\0'", "(" * 5000, "def f(:"])
def test_what_does_not_parse_is_counted(source: str) -> None:
    found, reasons = functions_of(source)
    assert found == {}
    assert reasons["documents that do not parse"] == 1


def test_module_names() -> None:
    assert module_name("json/decoder.py") == "json.decoder"
    assert module_name("json/__init__.py") == "json"
    assert module_name("site-packages/x.py") is None
    assert module_name("__init__.py") is None
    assert functions_of(SOURCE, "a-b/c.py")[1]["documents whose path names no module"] == 1
    assert functions_of(SOURCE, "paths.txt") == ({}, Counter({"docstrings": 0}))


def test_stems_are_of_words_that_say_something() -> None:
    assert stems("JSONDecoder.raw_decode(s, idx) returns the value") == {"json", "deco", "raw", "idx"}
    assert first_sentence("Use e.g. this. Then that.\n\nMore.") == "Use e.g. this."


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some modules of the standard library; every fourth is held out, one function is on both sides."""
    folder = tmp_path_factory.mktemp("documents")
    library = Path(sysconfig.get_path("stdlib"))
    names = [
        "argparse",
        "inspect",
        "textwrap",
        "shutil",
        "calendar",
        "tarfile",
        "zipfile/__init__",
        "mailbox",
        "statistics",
    ]
    rows = [(f"{name}.py", (library / f"{name}.py").read_text(encoding="utf-8")) for name in names]
    shared = "def copy_shared(shared):\n    '''Copy a shared thing to all sides.'''\n"
    rows[0] = (rows[0][0], rows[0][1] + shared)
    rows[1] = (rows[1][0], rows[1][1] + shared)
    for prefix, part in (("heldout", rows[::4]), ("kept", [row for i, row in enumerate(rows) if i % 4])):
        table = pa.table({"path": [path for path, _ in part], "text": [text for _, text in part]})
        pq.write_table(table, folder / f"{prefix}-00000.parquet")
    return folder


@pytest.fixture(scope="module")
def made(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("rows")
    return out, make_docstring_rows([documents], out, seed=1)


def rows_of(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def content(messages: list[dict]) -> str:
    assert len(messages) == 1
    return messages[0]["content"]


def test_the_same_documents_give_the_same_bytes(documents: Path, made: tuple[Path, dict], tmp_path: Path) -> None:
    out, stats = made
    assert make_docstring_rows([documents], tmp_path, seed=1) == stats
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
    assert make_docstring_rows([documents], tmp_path, seed=2) != stats
    assert stats["rows"] == {path.stem: len(rows_of(out, path.stem)) for path in out.iterdir()}
    json.dumps(stats)


def test_held_out_functions_are_not_trained_on(made: tuple[Path, dict]) -> None:
    out, stats = made
    trained = {row["messages"][1]["content"].lower() for row in rows_of(out, "chat-train")}
    trained |= {content(row[key]).lower() for row in rows_of(out, "pairs-train") for key in ("chosen", "rejected")}
    tested = {choice.lower() for row in rows_of(out, "eval-choice") for choice in row["choices"]}
    assert not trained & tested
    assert "copy a shared thing to all sides." in tested
    assert stats["left_out"]["train"]["same description as a held-out function"] >= 1
    heldout = ("`argparse.", "`calendar.", "`statistics.")
    for name in ("eval-choice", "eval-module", "eval-parameters"):
        assert all(any(h in row.get("query", row.get("prompt", "")) for h in heldout) for row in rows_of(out, name))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_an_answer_alone_tells_nothing_and_the_question_decides(made: tuple[Path, dict], split: str) -> None:
    rows = rows_of(made[0], f"pairs-{split}")
    chosen, rejected = [content(row["chosen"]) for row in rows], [content(row["rejected"]) for row in rows]
    assert sorted(chosen) == sorted(rejected)
    assert len(set(chosen)) == len(chosen)
    asked = [stems(content(row["prompt"]).split("`")[1]) for row in rows]
    assert all(question & stems(answer) for question, answer in zip(asked, chosen, strict=True))
    assert not any(question & stems(answer) for question, answer in zip(asked, rejected, strict=True))


def test_choices_are_balanced_and_of_like_length(made: tuple[Path, dict]) -> None:
    rows = rows_of(made[0], "eval-choice")
    places = Counter(row["gold"] for row in rows)
    assert set(places) == {0, 1, 2, 3}
    assert max(places.values()) - min(places.values()) <= 1
    lengths = [[len(choice) for choice in row["choices"]] for row in rows]
    spread = statistics.mean(max(row) - min(row) for row in lengths)
    assert spread < statistics.pstdev(row[0] for row in lengths)  # four at random: about twice as much
    assert all(len(set(row["choices"])) == 4 for row in rows)


def test_answers_are_true(documents: Path, made: tuple[Path, dict]) -> None:
    """Against the source itself: names, arguments and docstrings by `ast`, with another reading than the room's."""
    sources = {}
    for path in documents.glob("*.parquet"):
        table = pq.read_table(path)
        sources |= dict(zip(table["path"].to_pylist(), table["text"].to_pylist(), strict=True))
    nodes = [n for text in sources.values() for n in ast.walk(ast.parse(text))]
    defined = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    said = {" ".join((ast.get_docstring(node) or "").split()) for node in defined}
    for row in rows_of(made[0], "eval-choice"):
        assert any(docstring.startswith(row["choices"][row["gold"]].rstrip(".")) for docstring in said)
    for row in rows_of(made[0], "eval-module"):
        name, module = row["prompt"].split("`")[1], row["answer"].strip("`")
        assert name.startswith(f"{module}.")
        assert f"{module}.py" in sources
    for row in rows_of(made[0], "eval-parameters"):
        arguments = row["prompt"].split("(")[1].split(")")[0].split(", ")
        assert row["answer"] == " and ".join(", ".join(f"`{a}`" for a in arguments).rsplit(", ", 1))


def described(pairs: list[tuple[str, int]]) -> list[Function]:
    return [Function("m", f"{words.replace(' ', '_')}{n}", (), f"{words} {n}.") for words, n in pairs]


WORDS = st.sampled_from(["read file", "join path", "wait task", "copy tree"])
PAIRS = st.lists(st.tuples(WORDS, st.integers(0, 999)), min_size=2, max_size=20, unique_by=lambda pair: pair[1])


@settings(max_examples=100, deadline=None)
@given(functions=PAIRS.map(described), seed=st.integers(0, 100))
def test_an_arrangement_never_gives_a_function_its_own(functions: list[Function], seed: int) -> None:
    other = derange(functions, seed)
    assert sorted(other) == list(range(len(functions)))
    assert all(i != j for i, j in enumerate(other))


def test_too_few_functions_are_an_error_with_the_fix(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.py"], "text": [SOURCE]}), tmp_path / "heldout-00000.parquet")
    with pytest.raises(DocstringError, match="0 described functions in kept documents, 4 are the least; add Python"):
        make_docstring_rows([tmp_path], tmp_path / "out", seed=0)
