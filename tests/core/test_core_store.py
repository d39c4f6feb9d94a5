"""Object storage on servers of this machine, moto's and a double of Google's: whole objects, writes on condition, and
errors of one line."""

import hashlib
import os
from http import HTTPStatus
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from obstore.store import MemoryStore

from lifecycle.core.config import ConfigError
from lifecycle.core.store import LOGIN, Changed, Missing, Store, StoreError, check_url, local_folder
from tests.gcs_server import Google, Stored

pytestmark = pytest.mark.xdist_group("s3")  # one server of each kind for all files that need it
ENDPOINT = {"s3": "AWS_ENDPOINT_URL", "gs": "GOOGLE_BASE_URL"}


def test_an_object_is_read_as_it_was_written(bucket: str, tmp_path: Path) -> None:
    store = Store(f"{bucket}/objects").below("deeper")
    for name in ("plain", "a/b c+ü%20&.txt", "a/b"):
        store.write(name, name.encode())
    assert {name: store.read(name).decode() for name in store.list()} == {
        name: name for name in sorted(["plain", "a/b c+ü%20&.txt", "a/b"])
    }
    assert list(store.list("a")) == ["a/b", "a/b c+ü%20&.txt"]
    assert store.head("a/b").bytes == 3 and store.head("a") is None  # type: ignore[union-attr]
    store.delete(["a/b", "never there"])
    assert "a/b" not in store.list() and Store(f"{bucket}/objects").read("deeper/plain") == b"plain"


def test_a_large_file_goes_in_parts_and_comes_back(bucket: str, tmp_path: Path) -> None:
    store, file = Store(f"{bucket}/parts"), tmp_path / "large"
    content = os.urandom(17 << 20)  # one part and a bit
    file.write_bytes(content)
    store.upload(file, "large")
    assert store.list()["large"].tag.endswith('-2"')  # as both mark what came in two parts
    assert store.download("large", tmp_path / "again") == hashlib.sha256(content).hexdigest()
    assert (tmp_path / "again").read_bytes() == content and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("where", ["s3", "gs", "memory"])
def test_of_two_writers_the_store_lets_one_win(where: str, request: pytest.FixtureRequest) -> None:
    memory = Store("mem://condition", MemoryStore())
    store = memory if where == "memory" else Store(f"{request.getfixturevalue(where)}/condition")
    version = store.create("lease", b"first")
    with pytest.raises(Changed, match="condition/lease: another process has written it"):
        store.create("lease", b"second")
    newer = store.replace("lease", b"first again", version)
    with pytest.raises(Changed):
        store.replace("lease", b"second", version)
    assert store.read_tagged("lease")[1].version == newer and store.read("lease") == b"first again"


def test_what_is_wrong_is_said_in_one_line(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Missing, match=rf"^{bucket}/x/nothing: no such object$"):
        Store(f"{bucket}/x").read("nothing")
    scheme = bucket.partition("://")[0]
    elsewhere = Store(f"{scheme}://no-such-bucket/x")
    for ask in (elsewhere.list, lambda: elsewhere.read("a"), lambda: elsewhere.write("a", b"")):
        with pytest.raises(StoreError, match=rf"^{scheme}://no-such-bucket: no such bucket; make it, or correct its"):
            ask()
    with pytest.raises(FileNotFoundError, match="gone"):  # of this machine, not of the store
        Store(f"{bucket}/x").upload(tmp_path / "gone", "a")
    monkeypatch.setenv(ENDPOINT[scheme], "http://127.0.0.1:9")
    login = LOGIN[scheme].partition(" ")[0]
    with pytest.raises(StoreError, match=rf"^{bucket}/x: no answer that can be used .*; check the network.*{login}"):
        Store(f"{bucket}/x", retry_s=0.2).list()  # two tries instead of three minutes of them


def test_refused_credentials_are_named(s3: str, gs: str, google: Google, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.core import set_initial_no_auth_action_count

    with pytest.raises(StoreError) as refused:
        set_initial_no_auth_action_count(0)(Store(f"{s3}/x").read)("a")
    of_another = rsa.generate_private_key(65537, 2048)
    Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"]).write_text(google.account(of_another))
    with pytest.raises(StoreError) as refused_there:
        Store(f"{gs}/x").read("a")
    for error, variable in ((refused, "AWS_ACCESS_KEY_ID"), (refused_there, "GOOGLE_APPLICATION_CREDENTIALS")):
        assert "access is refused (" in str(error.value) and variable in str(error.value)
        assert "\n" not in str(error.value)


def test_a_list_has_all_pages(gs: str, google: Google) -> None:
    """Of a thousand objects each."""
    names = [f"{number:04}" for number in range(2001)]
    google.buckets["bucket"] |= {f"pages/{name}": Stored(b"", "tag", 1) for name in names}
    assert list(Store(f"{gs}/pages").list()) == names


def test_a_busy_store_is_asked_again(gs: str, google: Google) -> None:
    """Google takes about one write of an object a second."""
    store = Store(f"{gs}/busy")
    google.faults[:] = [HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE]
    version = store.create("lease", b"first")
    google.faults[:] = [HTTPStatus.TOO_MANY_REQUESTS]
    store.replace("lease", b"second", version)
    assert store.read("lease") == b"second" and not google.faults


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("az://bucket/x", "no storage of this kind; use s3:// .* or gs://"),
        ("s3:///x", "no bucket; write it as s3://BUCKET/FOLDER"),
        ("s3://bucket/../x", "not an address of a folder"),
        ("gs://bucket//x", "not an address of a folder"),
        ("s3://bucket/a?b=SECRET", "^s3://bucket/a: not an address of a folder"),
        ("s3://key:SECRET@bucket/a", "^s3://bucket/a: not an address of a folder"),
        ("https://me:SECRET@host/a?b=SECRET", "^https://host/a: no storage of this kind"),
    ],
)
def test_an_address_that_no_store_has_is_refused(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as raised:
        check_url(url)
    assert "SECRET" not in str(raised.value)


def test_an_address_has_a_folder_of_its_own_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert local_folder("gs://bucket/a/b/", "runs") == tmp_path / "lifecycle" / "runs" / "gs" / "bucket" / "a" / "b"
