"""Files on the web: copied whole, and again only if the server has another one."""

import errno

import pytest

from lifecycle.core.config import ConfigError, Section, validate
from lifecycle.core.fetched import Place, file_place, local_file
from lifecycle.core.store import Missing, StoreError
from lifecycle.core.web import web_folder, web_tags
from lifecycle.core.web_address import WebAddress
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
    assert web_tags(url).keys() == {"config.json", "tokenizer.json"} and folder.name == "model"
    website.files["model/tokenizer.json"] = b"3"
    del website.files["model/config.json"]
    website.answers.clear()
    assert {file.name: file.read_bytes() for file in web_folder(url, names).iterdir()} == {"tokenizer.json": b"3"}
    assert [status for status, _ in website.answers] == [404, 200, 404]
    assert web_folder(url, names[1:2]) == folder and website.answers[-1] == (304, "model/tokenizer.json")


def test_a_file_that_is_gone_leaves_no_tag(website: Website) -> None:
    website.files |= {"model/a.x": b"1", "model/b.x": b"2", "model/c": b"3"}
    url = f"{website.url}/model"
    web_folder(url, ("a.x", "b.x", "c"))
    del website.files["model/b.x"]
    folder = web_folder(url, ("b.x",), lambda name: name.endswith(".x"))
    assert [file.name for file in folder.iterdir()] == list(web_tags(url)) == ["c"]
    assert web_tags(url, ("a.x",)) == {}


def test_a_server_without_tags_is_asked_by_time(website: Website) -> None:
    website.files["rows.jsonl"], website.has_tags = b"first", False
    url = f"{website.url}/rows.jsonl"
    assert [local_file(url).read_bytes() for _ in range(2)] == [b"first"] * 2
    assert [status for status, _ in website.answers] == [200, 304] and web_tags(url)["rows.jsonl"]


def test_a_request_is_repeated_where_that_may_help(website: Website, monkeypatch: pytest.MonkeyPatch) -> None:
    website.files["rows.jsonl"], url = b"first", f"{website.url}/rows.jsonl"
    paused: list[float] = []
    monkeypatch.setattr("lifecycle.core.web.time.sleep", paused.append)
    website.refused = [503, 429]
    assert local_file(url).read_bytes() == b"first"
    assert [status for status, _ in website.answers] == [503, 429, 200] and paused == [7, 7]
    website.refused = [503] * 3
    with pytest.raises(StoreError, match="503 Service Unavailable, asked 3 times; try again later"):
        local_file(url)
    for status, advice in ((401, "no login is sent"), (403, "no login is sent"), (410, "correct"), (400, "correct")):
        website.refused = [status]
        with pytest.raises(StoreError, match=rf"jsonl: {status} \w.*{advice}"):
            local_file(url)
    assert website.refused == [] and local_file(url).read_bytes() == b"first"


def test_a_disk_without_room_is_no_fault_of_the_network(website: Website, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lifecycle.core.web.copyfileobj", full)
    website.files["rows.jsonl"] = b"first"
    with pytest.raises(StoreError, match=r"jsonl: no room for it in .*No space left.*make room"):
        local_file(f"{website.url}/rows.jsonl")
    assert len(website.answers) == 1


def test_a_query_is_sent_and_never_shown(website: Website) -> None:
    address = WebAddress.of(f"{website.url}/model/?token=SECRET&a=b c#part")
    assert address.below("x.json").url == f"{website.url}/model/x.json?token=SECRET&a=b%20c"
    assert "SECRET" not in f"{address} {address!r}" and address.name == "model"
    assert address.key != WebAddress.of(f"{website.url}/model/").key
    for refused in ("gone?token=SECRET", "rows.jsonl?token=SECRET"):
        website.refused = [404]
        with pytest.raises(StoreError, match=rf"^{website.url}/[a-z.]+: 404") as raised:
            local_file(f"{website.url}/{refused}")
        assert "SECRET" not in str(raised.value)


class OnePlace(Section):
    place: Place


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("https://user:SECRET@host/x?token=SECRET", "https://host/x: given with a user or a password"),
        ("https://SECRET@host/x", "https://host/x: given with a user"),
        ("http://user:SECRET@[::1/x?token=SECRET", r"http://\[::1/x: not an address on the web; write it as https://"),
        ("http://user:SEC/RET@host/x", "http://host/x: not an address on the web"),
        ("http://host:99999/x?SECRET", "http://host:99999/x: not an address on the web"),
        ("https:///x", "https:///x: not an address on the web"),
        ("https://host/a\0b?SECRET", "not an address on the web"),
    ],
)
def test_no_login_is_taken_or_shown(place: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        validate(OnePlace, {"place": place})
    assert "SEC" not in str(raised.value)


def test_a_record_of_the_settings_has_no_query() -> None:
    place = "https://host/x.jsonl?token=SECRET"
    config = validate(OnePlace, {"place": place})
    assert config.place == place and config.plain() == {"place": "https://host/x.jsonl"}


def test_the_name_of_a_copy_fits_a_file_system() -> None:
    assert len(WebAddress.of(f"https://host/{'a' * 300}.parquet").name) == 200
    assert [WebAddress.of(f"https://host/{path}").name for path in ("m/..", "m/", "")] == ["file", "m", "file"]


def test_a_place_is_a_path_or_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifecycle.core.web.PAUSES_S", (0.0,))
    assert [file_place(place) for place in ("./rows.jsonl", "s3://bucket/a b/é.jsonl")] == [
        "rows.jsonl", "s3://bucket/a b/é.jsonl",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"no storage of this kind; use s3:// .* or gs:// .* or https://, or a path"):
        file_place("ftp://host/rows.jsonl")
    assert WebAddress.of(file_place("HTTPS://host/rows.jsonl")).url == "https://host/rows.jsonl"
    with pytest.raises(StoreError, match="no answer that can be used"):
        local_file("http://127.0.0.1:9/rows.jsonl")
