"""Local copies of what is in object storage."""

from pathlib import Path

import pytest
from obstore.store import MemoryStore

from lifecycle.core.fetched import copy_of, local_copy
from lifecycle.core.store import Store, StoreError


def test_two_users_of_an_address_keep_each_others_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: dict[str, MemoryStore]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store, downloaded, folder = Store("s3://bucket/docs"), list[str](), copy_of("s3://bucket/docs")
    download = Store.download

    def noted(self: Store, name: str, file: Path) -> str:
        downloaded.append(name)
        return download(self, name, file)

    monkeypatch.setattr(Store, "download", noted)
    for name in ("a.txt", "b.md"):
        store.write(name, name.encode())
    for _ in range(2):
        for suffix in (".txt", ".md"):
            local_copy("s3://bucket/docs", lambda name, suffix=suffix: name.endswith(suffix))
    assert {path.name for path in folder.iterdir()} == {"a.txt", "b.md"}
    assert downloaded == ["a.txt", "b.md"]
    store.delete(["a.txt"])
    store.write("b.md", b"changed")
    local_copy("s3://bucket/docs", lambda name: name.endswith(".txt"))
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("b.md", "b.md")]
    local_copy("s3://bucket/docs", lambda name: name.endswith(".md"))
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("b.md", "changed")]


@pytest.mark.parametrize("times", [1, 2])
def test_of_an_object_that_grows_while_it_is_read_comes_what_is_there_then(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: dict[str, MemoryStore]
) -> None:
    """Not if it grows again after that: a file whose version is unknown is no copy."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store, downloads, download = Store("s3://bucket/run"), [0], Store.download
    store.write("log", b"1")

    def growing(self: Store, name: str, file: Path) -> str:
        downloads[0] += 1
        store.write("log", b"1\n2")
        try:
            return download(self, name, file)
        finally:
            if times == 2:
                store.write("log", b"1\n2\n3")

    monkeypatch.setattr(Store, "download", growing)
    if times == 2:
        with pytest.raises(StoreError, match="run/log: changed while it was read; run again"):
            local_copy("s3://bucket/run")
        return
    assert [(local_copy("s3://bucket/run") / "log").read_bytes() for _ in range(2)] == [b"1\n2"] * 2
    assert downloads == [1]
