"""Files on the web: copied whole, and again only if the server has another one."""

import pytest

from lifecycle.core.config import ConfigError
from lifecycle.core.fetched import copied_tags, file_place, local_file
from lifecycle.core.store import Missing, StoreError
from lifecycle.core.web import web_folder
from tests.website import Website


def test_a_file_is_copied_again_only_if_it_has_changed(website: Website) -> None:
    url = f"{website.url}/a%20b/rows é.jsonl?download=true"
    website.files["a b/rows é.jsonl"] = b"first"
    assert file_place(url) == url
    assert [local_file(url).read_bytes() for _ in range(2)] == [b"first"] * 2
    assert [status for status, _ in website.answers] == [200, 304] and local_file(url).suffix == ".jsonl"
    website.files["a b/rows é.jsonl"] = b"second"
    website.is_cut = True
    with pytest.raises(StoreError, match=rf"^{website.url}/.* é.*no answer that can be used \(2 bytes of 6\)"):
        local_file(url)
    website.is_cut = False
    assert local_file(url).read_bytes() == b"second"
    with pytest.raises(Missing, match="gone: 404 Not Found; correct the address"):
        local_file(f"{website.url}/gone")


def test_of_a_folder_the_named_files_come(website: Website) -> None:
    """Those that the server has; one that it has no longer goes, and nothing is read twice."""
    website.files |= {"model/config.json": b"{}", "model/tokenizer.json": b"1", "model/other": b"2"}
    url, names = f"{website.url}/model", ("config.json", "tokenizer.json", "missing")
    folder = web_folder(url, names)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        "config.json": b"{}", "tokenizer.json": b"1",
    }  # fmt: skip
    assert copied_tags(url).keys() == {"config.json", "tokenizer.json"} and folder.name == "model"
    website.files["model/tokenizer.json"] = b"3"
    del website.files["model/config.json"]
    website.answers.clear()
    assert {file.name: file.read_bytes() for file in web_folder(url, names).iterdir()} == {"tokenizer.json": b"3"}
    assert [status for status, _ in website.answers] == [404, 200, 404]
    assert web_folder(url, names[1:2]) == folder and website.answers[-1] == (304, "model/tokenizer.json")


def test_a_place_is_a_path_or_an_address() -> None:
    assert [file_place(place) for place in ("./rows.jsonl", "s3://bucket/a b/é.jsonl")] == [
        "rows.jsonl", "s3://bucket/a b/é.jsonl",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="no storage of this kind"):
        file_place("ftp://host/rows.jsonl")
    with pytest.raises(StoreError, match="no answer that can be used"):
        local_file("http://127.0.0.1:9/rows.jsonl")
