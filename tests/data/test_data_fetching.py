"""Lists of addresses fetched from servers on this machine: manners, robots.txt, limits, kills; each has one outcome."""

import gzip
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from extraction import documents
from fastwarc.warc import ArchiveIterator, WarcRecordType

from lifecycle.data.collecting.archive import INDEX
from lifecycle.data.collecting.fetching import Fetched, fetch_list, read_list
from lifecycle.data.collecting.requests import FetchError, Manners, ask, server_of
from lifecycle.data.config import DataConfig
from lifecycle.data.reading.extract import extract_file
from lifecycle.data.reading.raw import RawDocument
from lifecycle.data.reading.sources import list_files
from tests.web_server import QuietHandler, Server, answering

MANNERS = Manners("mailto:tests@example.org", 0.0, pauses_s=(0.0, 0.0), private=True)
type Reply = tuple[int, dict[str, str], bytes]


class Site:
    """Answers by path, each a reply or a list of them that are given in turn; `asked` are the requests."""

    def __init__(self) -> None:
        self.url = ""
        self.pages: dict[str, Reply | list[Reply]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.open = self.most_open = 0
        self.lock = threading.Lock()

    def reply(self, path: str) -> Reply:
        found = self.pages.get(path, (404, {}, b""))
        return (found.pop(0) if len(found) > 1 else found[0]) if isinstance(found, list) else found

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked if path != "/robots.txt"]


class Handler(QuietHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        site = self.site
        with site.lock:
            site.open += 1
            site.most_open = max(site.most_open, site.open)
            site.asked.append((self.path, dict(self.headers)))
            status, headers, body = site.reply(self.path)
        if headers.get("ETag") and self.headers.get("If-None-Match") == headers["ETag"]:
            status, body = 304, b""
        time.sleep(float(headers.get("X-Sleep", "0")))
        self.send_response(status)
        for name, value in ({"Content-Type": "text/html", "Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        with site.lock:
            site.open -= 1
        if "X-Drip" in headers:
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
        self.wfile.write(body)
        self.close_connection = True


@pytest.fixture
def sites() -> Iterator[Callable[[], Site]]:
    with ExitStack() as stack:

        def one() -> Site:
            site = Site()
            site.url = stack.enter_context(answering(type("SiteHandler", (Handler,), {"site": site})))
            return site

        yield one


def page(text: str, **headers: str) -> Reply:
    body = f"<title>{text}</title><p>The page of {text}, with a sentence.</p>".encode()
    return 200, {name.replace("_", "-"): value for name, value in headers.items()}, body


def read(folder: Path) -> list[RawDocument]:
    config = DataConfig.model_validate({"sources": [{"name": "s", "path": str(folder)}]})
    files = list_files(config)
    return documents([item for file in files for item in extract_file(file, config.sources[0], 10**6)])


def outcomes(folder: Path) -> dict[str, tuple[str, str]]:
    lines = (folder / INDEX).read_text(encoding="utf-8").splitlines()
    return {entry["url"]: (entry["outcome"], entry["reason"]) for entry in map(json.loads, lines)}


def test_pages_of_several_servers_become_a_source(sites: Callable[[], Site], tmp_path: Path) -> None:
    one, two = sites(), sites()
    one.pages = {"/a": page("A"), "/z": (200, {"Content-Encoding": "gzip"}, gzip.compress(page("Z")[2]))}
    two.pages = {"/b": page("B"), "/t": (200, {"Content-Type": "text/plain"}, b"plain text")}
    urls = [f"{one.url}/a", f"{two.url}/b#part", f"{one.url}/z", f"{two.url}/t", f"{one.url}/a"]
    assert fetch_list(urls, tmp_path, MANNERS) == Fetched(5, 1, 4)
    found = {entry.url: entry.text for entry in read(tmp_path)}
    assert found[f"{two.url}/t"] == "plain text" and found[f"{one.url}/z"].startswith("The page of Z")
    assert set(found) == {f"{one.url}/a", f"{one.url}/z", f"{two.url}/b", f"{two.url}/t"}
    assert one.asked[0][0] == "/robots.txt"
    assert all(headers["User-Agent"].startswith("lifecycle/") for _, headers in one.asked)
    assert all("+mailto:tests@example.org" in headers["User-Agent"] for _, headers in one.asked)


def test_another_reader_reads_the_archive(sites: Callable[[], Site], tmp_path: Path) -> None:
    site = sites()
    site.pages = {f"/{n}": page(str(n)) for n in range(5)}
    fetch_list([f"{site.url}/{n}" for n in range(5)], tmp_path, MANNERS)
    (file,) = tmp_path.glob("*.warc.gz")
    with file.open("rb") as stream:
        records = [
            (record.headers["WARC-Target-URI"], record.verify_block_digest(), record.reader.read())
            for record in ArchiveIterator(stream, record_types=WarcRecordType.response, parse_http=False)
        ]
    assert [(url, is_right) for url, is_right, _ in records] == [(f"{site.url}/{n}", True) for n in range(5)]
    with file.open("rb") as stream:
        assert b"lifecycle/" in next(ArchiveIterator(stream, record_types=WarcRecordType.warcinfo)).reader.read()
    members = file.read_bytes()
    assert members.count(b"\x1f\x8b\x08") >= 6  # one for each record


ROBOTS = """User-agent: *
Disallow: /

User-agent: lifecycle
Disallow: /private
Allow: /private/open
Disallow: /*.php$
"""


@pytest.mark.parametrize(
    ("robots", "allowed"),
    [
        ((200, {}, ROBOTS.encode()), {"/", "/private/open", "/a.php?x"}),
        ((200, {}, b"User-agent: other\nDisallow: /"), {"/", "/private/open", "/private", "/a.php", "/a.php?x"}),
        ((404, {}, b""), {"/", "/private/open", "/private", "/a.php", "/a.php?x"}),
        ((403, {}, b""), {"/", "/private/open", "/private", "/a.php", "/a.php?x"}),
        ((500, {}, b""), set()),
        ((302, {"Location": "/moved"}, b""), {"/", "/private/open", "/a.php?x"}),
        ((200, {"Content-Encoding": "gzip"}, gzip.compress(ROBOTS.encode())), {"/", "/private/open", "/a.php?x"}),
        ((200, {"Content-Encoding": "gzip"}, b"none"), set()),
        ((200, {"Content-Encoding": "br"}, b"unknown"), set()),
        ((200, {}, ROBOTS.encode("utf-8-sig")), {"/", "/private/open", "/a.php?x"}),
        ((200, {}, b"User-agent: *\nCrawl-delay: 1e300"), set()),
        ((200, {}, b"User-agent: *\nCrawl-delay: 31536000"), set()),
    ],
)
def test_robots_txt(sites: Callable[[], Site], tmp_path: Path, robots: Reply, allowed: set[str]) -> None:
    site = sites()
    paths = ["/", "/private/open", "/private", "/a.php", "/a.php?x"]
    site.pages = {path: page(path) for path in paths} | {"/robots.txt": robots, "/moved": (200, {}, ROBOTS.encode())}
    found = fetch_list([f"{site.url}{path}" for path in paths], tmp_path, MANNERS)
    assert set(site.paths()) - {"/moved"} == allowed
    assert (found.fetched, found.refused, found.failed.total()) == (len(allowed), 5 - len(allowed), 0)


def test_a_server_that_cannot_be_reached_allows_nothing(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a"
        assert fetch_list([url], tmp_path, MANNERS) == Fetched(1, refused=1)
    assert outcomes(tmp_path) == {url: ("refused", "robots")}


def test_redirections_are_followed_as_robots_txt_allows(sites: Callable[[], Site], tmp_path: Path) -> None:
    one, two = sites(), sites()
    two.pages = {"/robots.txt": (200, {}, b"User-agent: *\nDisallow: /no"), "/yes": page("yes"), "/no": page("no")}
    one.pages = {
        "/a": (301, {"Location": f"{two.url}/yes"}, b""), "/b": (302, {"Location": f"{two.url}/no"}, b""),
        "/loop": (301, {"Location": "/loop"}, b""), "/none": (301, {}, b""),
        "/file": (301, {"Location": "file:///etc/passwd"}, b""),
    }  # fmt: skip
    fetch_list([f"{one.url}/{name}" for name in ("a", "b", "loop", "none", "file")], tmp_path, MANNERS)
    assert {url.rpartition("/")[2]: found for url, found in outcomes(tmp_path).items()} == {
        "a": ("fetched", ""), "b": ("refused", "robots"), "loop": ("failed", "redirect"),
        "none": ("failed", "redirect"), "file": ("failed", "no_address"),
    }  # fmt: skip
    assert two.paths() == ["/yes"] and one.paths().count("/loop") == MANNERS.redirects + 1
    assert [entry.url for entry in read(tmp_path)] == [f"{two.url}/yes"]


def test_what_cannot_be_fetched_has_a_reason(sites: Callable[[], Site], tmp_path: Path) -> None:
    site = sites()
    site.pages = {
        "/large": (200, {}, b"x" * 2000), "/declared": (200, {"Content-Length": "9999"}, b"x"),
        "/png": (200, {"Content-Type": "image/png"}, b"x"), "/gone": (410, {}, b""), "/cut": (
            200, {"Content-Length": "900"}, b"x"), "/drip": (200, {"X-Drip": "1"}, b"x" * 900),
    }  # fmt: skip
    manners = replace(MANNERS, max_bytes=1000, answer_s=0.5, pauses_s=())
    urls = [f"{site.url}{path}" for path in site.pages] + ["ftp://a/b", "http://u:p@127.0.0.1/", "nonsense"]
    found = fetch_list(urls, tmp_path, manners)
    assert found.failed == {
        "too_large": 2, "type": 1, "status_410": 1, "no_answer": 1, "too_slow": 1, "no_address": 3,
    }  # fmt: skip
    assert not found.fetched and not list(tmp_path.glob("*.warc.gz"))


def test_a_hostile_answer_ends_its_own_address_alone(sites: Callable[[], Site], tmp_path: Path) -> None:
    site = sites()
    chunked = {"Transfer-Encoding": "chunked"}
    site.pages = {
        "/length": (200, {"Content-Length": "9" * 5000}, b"x" * 2000), "/less": (200, chunked, b"-5\r\nabcde\r\n"),
        "/all": (200, chunked, b"-1\r\n" + b"x" * 2000), "/host": (302, {"Location": "http://[::1"}, b""),
        "/blank": (302, {"Location": "http://127.0.0.1 /"}, b""), "/well": page("well"),
    }  # fmt: skip
    manners = replace(MANNERS, max_bytes=1000, pauses_s=())
    found = fetch_list([f"{site.url}{path}" for path in site.pages] + ["http://[::1/#a"], tmp_path, manners)
    assert found.fetched == 1
    assert found.failed == {"too_large": 1, "no_answer": 2, "redirect": 1, "no_address": 2}


def test_private_addresses_are_refused_unless_allowed(sites: Callable[[], Site], tmp_path: Path) -> None:
    site = sites()
    site.pages = {"/a": page("A")}
    port = site.url.rpartition(":")[2]
    public = replace(MANNERS, private=False)
    for host in ("127.0.0.1", "localhost", "0.0.0.0", "[::1]", "10.0.0.1", "169.254.169.254", "[::ffff:127.0.0.1]"):
        with pytest.raises(FetchError, match="private network"):
            ask(f"http://{host}:{port}/a", public)
    assert fetch_list([f"{site.url}/a"], tmp_path, public).failed == {"private": 1} and not site.asked
    assert server_of("HTTP://[::1]/a") == "http://[::1]:80" and server_of("https://A.org/b") == "https://a.org:443"


def certificate(folder: Path) -> Path:
    """A certificate of `localhost`, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "server.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(secret + made.public_bytes(Encoding.PEM))
    return file


def test_a_server_must_have_a_certificate_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, site = certificate(tmp_path), Site()
    site.pages = {"/a": page("A")}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with Server(("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": site})) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        port = server.server_port
        with pytest.raises(FetchError, match="CERTIFICATE_VERIFY_FAILED"):
            ask(f"https://localhost:{port}/a", MANNERS)
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        assert ask(f"https://localhost:{port}/a", MANNERS).body == page("A")[2]
        with pytest.raises(FetchError, match="IP address mismatch"):
            ask(f"https://127.0.0.1:{port}/a", MANNERS)
        server.shutdown()


def test_requests_are_repeated_as_a_server_asks(sites: Callable[[], Site], tmp_path: Path) -> None:
    site = sites()
    busy: Reply = (503, {"Retry-After": "1"}, b"")
    site.pages = {"/a": [busy, page("A")], "/b": [(500, {}, b"")], "/c": [(429, {"Retry-After": "9999"}, b"")]}
    begun = time.monotonic()
    found = fetch_list([f"{site.url}/{name}" for name in "abc"], tmp_path, MANNERS)
    assert time.monotonic() - begun >= 1 and site.paths() == ["/a", "/a", "/b", "/b", "/b", "/c"]
    assert found.fetched == 1 and found.failed == {"status_500": 1, "status_429": 1}


def test_a_server_has_one_request_at_a_time_with_a_pause(sites: Callable[[], Site], tmp_path: Path) -> None:
    one, two = sites(), sites()
    for site in (one, two):
        site.pages = {f"/{n}": page(str(n), X_Sleep="0.05") for n in range(4)}
    two.pages["/robots.txt"] = (200, {}, b"User-agent: *\nCrawl-delay: 0.3\nDisallow:")
    begun = time.monotonic()
    fetch_list([f"{site.url}/{n}" for n in range(4) for site in (one, two)], tmp_path, replace(MANNERS, delay_s=0.1))
    assert one.most_open == two.most_open == 1
    assert time.monotonic() - begun >= 3 * 0.3


def test_a_second_run_asks_only_for_what_is_not_there(sites: Callable[[], Site], tmp_path: Path) -> None:
    site = sites()
    site.pages = {"/a": page("A", ETag='"1"'), "/b": (404, {}, b""), "/c": page("C", Last_Modified="Mon")}
    urls = [f"{site.url}/{name}" for name in "abc"]
    fetch_list(urls, tmp_path, MANNERS)
    site.asked.clear()
    assert fetch_list(urls, tmp_path, MANNERS) == Fetched(3, fetched=2, failed=Counter(status_404=1))
    assert site.paths() == ["/b"]
    site.pages["/c"] = page("C, changed")
    site.asked.clear()
    assert fetch_list(urls, tmp_path, MANNERS, again=True).unchanged == 1
    assert site.asked[1][1]["If-None-Match"] == '"1"' and site.asked[-1][1]["If-Modified-Since"] == "Mon"
    assert sorted(entry.meta["title"] for entry in read(tmp_path)) == ["A", "C", "C, changed"]


@pytest.mark.parametrize("torn", ["record", "line", "both"])
def test_what_a_kill_leaves_is_cut(sites: Callable[[], Site], tmp_path: Path, torn: str) -> None:
    site = sites()
    site.pages = {f"/{n}": page(str(n)) for n in range(4)}
    urls = [f"{site.url}/{n}" for n in range(4)]
    fetch_list(urls[:3], tmp_path, MANNERS)
    (file,), index = tmp_path.glob("*.warc.gz"), tmp_path / INDEX
    if torn in ("record", "both"):
        file.write_bytes(file.read_bytes() + gzip.compress(b"WARC/1.1\r\n")[:-3])
    if torn in ("line", "both"):
        index.write_bytes(index.read_bytes()[:-5])
    site.asked.clear()
    assert fetch_list(urls, tmp_path, MANNERS) == Fetched(4, fetched=4)
    assert site.paths() == (["/3"] if torn == "record" else ["/2", "/3"])
    assert [entry.meta["title"] for entry in read(tmp_path)] == ["0", "1", "2", "3"]


def test_a_killed_run_goes_on(sites: Callable[[], Site], tmp_path: Path) -> None:
    site = sites()
    site.pages = {f"/{n}": page(str(n), X_Sleep="0.02") for n in range(40)}
    (tmp_path / "list").write_text("\n".join(f"{site.url}/{n}" for n in range(40)), encoding="utf-8")
    code = (
        "from pathlib import Path; from lifecycle.data.collecting.fetching import *;"
        f"fetch_list(read_list(Path({str(tmp_path / 'list')!r})), Path({str(tmp_path / 'pages')!r}),"
        " Manners('a@example.org', 0.0, private=True))"
    )
    killed = subprocess.Popen([sys.executable, "-c", code])
    while len(site.paths()) < 10:
        assert killed.poll() is None
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    found = fetch_list(read_list(tmp_path / "list"), tmp_path / "pages", MANNERS)
    assert found == Fetched(40, fetched=40)
    assert sorted(int(entry.meta["title"]) for entry in read(tmp_path / "pages")) == list(range(40))
    assert len(site.paths()) <= 41  # only what was under way was asked for twice
