"""Sources: globs, formats, errors that name the setting, and a fingerprint that sees every change and nothing else."""

import os
import sysconfig
import time
from pathlib import Path
from typing import Any

import pytest

from lifecycle.core.config import ConfigError, validate
from lifecycle.data.config import DEFAULT_EXCLUDE, DataConfig
from lifecycle.data.sources import list_files, source_fingerprint


def config(*sources: dict[str, Any]) -> DataConfig:
    return validate(DataConfig, {"sources": [{"name": f"s{n}", **source} for n, source in enumerate(sources)]})


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.py", "a.md", "sub/c.txt", "sub/deep/d.html", "sub/__pycache__/x.py", ".git/y.py", "test/e.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def test_files_are_sorted_and_typed(tree: Path) -> None:
    found = list_files(config({"path": str(tree)}))
    assert [(f.path, f.format) for f in found] == [
        ("a.md", "markdown"),
        ("b.py", "code"),
        ("sub/c.txt", "text"),
        ("sub/deep/d.html", "html"),
        ("test/e.py", "code"),
    ]


def test_include_and_exclude(tree: Path) -> None:
    chosen = config(
        {"path": str(tree), "include": ["**/*.py", "sub/**/*"], "exclude": [*DEFAULT_EXCLUDE, "test", "sub/deep"]}
    )
    assert [f.path for f in list_files(chosen)] == ["b.py", "sub/c.txt"]


def test_single_file_and_forced_format(tree: Path) -> None:
    found = list_files(config({"path": str(tree / "b.py"), "format": "text"}, {"path": str(tree / "sub")}))
    assert [(f.source, f.path, f.format) for f in found] == [
        (0, "b.py", "text"), (1, "c.txt", "text"), (1, "deep/d.html", "html"),
    ]  # fmt: skip


def test_links_to_folders_are_not_followed(tree: Path) -> None:
    (tree / "sub" / "loop").symlink_to(tree)
    (tree / "link.txt").symlink_to(tree / "sub" / "c.txt")
    assert [f.path for f in list_files(config({"path": str(tree), "include": ["**/*.txt"]}))] == [
        "link.txt",
        "sub/c.txt",
    ]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "/nowhere/at/all"}, "does not exist"),
        ({"path": "${home}/x"}, "only \\$\\{stdlib\\}"),
        ({"path": ".", "include": ["*.nothing"]}, "no file in .* matches include"),
        ({"path": ".", "include": ["/etc/*"]}, "cannot be used"),
    ],
)
def test_errors_name_source_and_setting(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"'s0'.*{message}"):
        list_files(config(source))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"sources": []}, "sources"),
        ({"sources": [{"name": "a", "path": "."}, {"name": "a", "path": "x"}]}, "two sources are named 'a'"),
        ({"sources": [{"name": "a", "path": "."}], "quality": {"min_words": 9, "max_words": 3}}, "min_words"),
        ({"sources": [{"name": "a", "path": "."}], "pii": ["e-mail"]}, "pii"),
        ({"sources": [{"name": "a", "path": "."}], "dedupe": {}}, "did you mean 'dedup'"),
    ],
)
def test_bad_configurations(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(DataConfig, tree)


def test_fingerprint_sees_content_names_and_nothing_else(tree: Path) -> None:
    chosen = config({"path": str(tree)})
    first = source_fingerprint(chosen)
    assert first["s0"]["files"] == 5
    os.utime(tree / "b.py", (0, 0))
    assert source_fingerprint(chosen) == first
    (tree / "b.py").write_text("B.py")
    changed = source_fingerprint(chosen)
    assert changed["s0"]["bytes"] == first["s0"]["bytes"] and changed != first
    (tree / "b.py").write_text("b.py")
    (tree / "b.py").rename(tree / "bb.py")
    assert source_fingerprint(chosen) not in (first, changed)


def test_fingerprint_of_the_standard_library_is_quick() -> None:
    chosen = config({"path": "${stdlib}", "include": ["**/*.py"]})
    started = time.process_time()
    found = source_fingerprint(chosen)["s0"]
    assert found["files"] > 400
    assert time.process_time() - started < 0.05 + 5e-5 * found["files"] + 1e-8 * found["bytes"]
    assert all(f.file.is_relative_to(sysconfig.get_path("stdlib")) for f in list_files(chosen))


def test_workers_are_no_part_of_the_key(tree: Path) -> None:
    assert "workers" not in config({"path": str(tree)}).plain()
