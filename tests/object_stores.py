"""Object storage for tests: stores in this process's memory, and servers on this machine: moto's for S3, a double of
Google's."""

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.request import Request, urlopen

import pytest
from obstore.store import MemoryStore

from lifecycle.core import store

if TYPE_CHECKING:
    from tests.gcs_server import Google

LOGIN = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_REGION": "us-east-1"}
BUCKET = "bucket"


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, MemoryStore]:
    """The buckets that this test uses, each in memory."""
    buckets: dict[str, MemoryStore] = {}
    monkeypatch.setattr(store, "_connect", lambda scheme, bucket, retry_s: buckets.setdefault(bucket, MemoryStore()))
    return buckets


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server on this machine, one for the session; it has a bucket."""
    from moto.server import ThreadedMotoServer  # a second of imports: only for tests that need it

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    signed = {"Authorization": f"AWS4-HMAC-SHA256 Credential={LOGIN['AWS_ACCESS_KEY_ID']}/20260101/us-east-1/s3/aws4"}
    urlopen(Request(f"http://{host}:{port}/{BUCKET}", method="PUT", headers=signed)).close()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a bucket on that server, with the environment that leads to it, for child processes too."""
    for name, value in (LOGIN | {"AWS_ENDPOINT_URL": s3_server, "AWS_ALLOW_HTTP": "true"}).items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}"


@pytest.fixture(scope="session")
def google() -> Iterator["Google"]:
    """A double of Google Cloud Storage, one for the session; it has a bucket."""
    from tests import gcs_server

    with gcs_server.serving(BUCKET) as google:
        yield google


@pytest.fixture
def gs(google: "Google", monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> str:
    """As `s3`, of the bucket there; its login is the key of a service account."""
    account = tmp_path_factory.mktemp("login") / "account.json"
    account.write_text(google.account())
    for name, value in {"GOOGLE_BASE_URL": google.url, "GOOGLE_APPLICATION_CREDENTIALS": str(account)}.items():
        monkeypatch.setenv(name, value)
    return f"gs://{BUCKET}"


@pytest.fixture(params=["s3", "gs"])
def bucket(request: pytest.FixtureRequest) -> str:
    """The address of a bucket, of each kind of server in turn."""
    return request.getfixturevalue(request.param)
