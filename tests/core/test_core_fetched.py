"""Local copies of what is in object storage."""

from pathlib import Path

import pytest
from obstore.store import MemoryStore

from lifecycle.core.fetched import copy_of, local_copy
from lifecycle.core.store import Store


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
