"""A double of Google Cloud Storage's XML API on this machine, which the store's client speaks for `gs://`.

No emulator that can be installed has what a run in object storage relies on: of fake-gcs-server, gcp-storage-emulator,
drongo and gcplocal, all speak the JSON API, and none knows writes on condition of a generation, uploads in parts or
listings of this one. This has them, in memory, as the reference says them, with a service account's signed tokens.
What must hold: what it does not know it refuses, so that no test passes by an answer that Google would not give.

https://cloud.google.com/storage/docs/xml-api/overview
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from functools import cached_property
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.web_server import QuietHandler, answering

EMAIL = "tests@project.iam.gserviceaccount.com"
SCOPES = {f"https://www.googleapis.com/auth/{name}" for name in ("cloud-platform", "devstorage.full_control")}
PAGE = 1000  # objects of a listing in one answer, at most
MIN_PART_BYTES = 5 << 20  # of each but the last
NAMESPACE = "http://doc.s3.amazonaws.com/2006-03-01"


class Refused(Exception):
    """An answer that is an error: its status, and the code and message of its body."""


def no_bucket() -> Refused:
    return Refused(HTTPStatus.NOT_FOUND, "NoSuchBucket", "The specified bucket does not exist.")


def no_object() -> Refused:
    return Refused(HTTPStatus.NOT_FOUND, "NoSuchKey", "The specified key does not exist.")


def no_upload() -> Refused:
    return Refused(HTTPStatus.NOT_FOUND, "NoSuchUpload", "The requested upload was not found.")


@dataclass(frozen=True)
class Stored:
    """An object. Each write of a name has another generation; of one in parts the ETag is no hash of the content."""

    content: bytes
    tag: str
    generation: int
    modified: float = field(default_factory=time.time)

    @property
    def headers(self) -> dict[str, str]:
        return {
            "ETag": f'"{self.tag}"',
            "Last-Modified": formatdate(self.modified, usegmt=True),
            "x-goog-generation": str(self.generation),
            "x-goog-metageneration": "1",
        }


@dataclass
class Google:
    """What the double holds, and how it fails next: each of `faults` is the status of an answer; that of a request in
    `lost` is given after it was carried out."""

    buckets: dict[str, dict[str, Stored]]
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    faults: list[HTTPStatus] = field(default_factory=list)
    lost: list[HTTPStatus] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    one_at_a_time: threading.Lock = field(default_factory=threading.Lock)
    key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    newest: int = 0
    url: str = ""

    def generation(self) -> int:
        self.newest = max(self.newest + 1, time.time_ns() // 1000)
        return self.newest

    def account(self, key: rsa.RSAPrivateKey | None = None) -> str:
        """The JSON of a service account's key, by default of the one that may do all."""
        form = serialization.PrivateFormat.PKCS8
        pem = (key or self.key).private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        return json.dumps(
            {"type": "service_account", "client_email": EMAIL, "private_key_id": "1", "private_key": pem.decode()}
        )

    def require_login(self, header: str) -> None:
        """Refuses what is not signed by the account: https://google.aip.dev/auth/4111."""
        try:
            signed, _, signature = header.removeprefix("Bearer ").rpartition(".")
            claims = json.loads(_decoded(signed.partition(".")[2]))
            self.key.public_key().verify(_decoded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
            may_write = bool(set(claims["scope"].split()) & SCOPES)
            is_valid = claims["iss"] == EMAIL and claims["exp"] > time.time() and may_write
        except (ValueError, KeyError, InvalidSignature):
            is_valid = False
        if not is_valid:
            raise Refused(HTTPStatus.UNAUTHORIZED, "AuthenticationRequired", "Authentication required.")


@dataclass
class Request:
    """One request, as it came, and the answers to each kind of it: status, headers, body."""

    google: Google
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @cached_property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))

    @property
    def name(self) -> str:
        return unquote(urlsplit(self.target).path).removeprefix("/").partition("/")[2]

    @property
    def bucket(self) -> dict[str, Stored]:
        held = self.google.buckets.get(unquote(urlsplit(self.target).path).removeprefix("/").partition("/")[0])
        if held is None:
            raise no_bucket()
        return held

    def answer(self) -> "Answer":
        self.google.require_login(self.headers.get("authorization", ""))
        kind = next((word for word in ("list-type", "uploads", "uploadId") if word in self.query), "")
        if (self.method, kind) not in ANSWERS:
            raise Refused(HTTPStatus.NOT_IMPLEMENTED, "NotImplemented", f"The double knows no such {self.method}.")
        _ = self.bucket
        return ANSWERS[self.method, kind](self)

    def get(self) -> "Answer":
        found = self._found()
        if (asked := self.headers.get("range")) is None:
            return HTTPStatus.OK, found.headers, found.content
        first, last = (int(text) if text else None for text in asked.removeprefix("bytes=").split("-"))
        start = first if first is not None else max(len(found.content) - (last or 0), 0)
        stop = len(found.content) if first is None or last is None else min(last + 1, len(found.content))
        if start >= len(found.content):
            raise Refused(
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "InvalidRange", "The requested range cannot be satisfied."
            )
        part = {"Content-Range": f"bytes {start}-{stop - 1}/{len(found.content)}"}
        return HTTPStatus.PARTIAL_CONTENT, found.headers | part, found.content[start:stop]

    def put(self) -> "Answer":
        expected = self.headers.get("x-goog-if-generation-match")
        held = self.bucket.get(self.name)
        if expected is not None and int(expected) != (held.generation if held else 0):
            raise Refused(
                HTTPStatus.PRECONDITION_FAILED, "PreconditionFailed",
                "At least one of the pre-conditions you specified did not hold.",
            )  # fmt: skip
        return HTTPStatus.OK, self._keep(self.body, hashlib.md5(self.body).hexdigest()).headers, b""

    def delete(self) -> "Answer":
        self._found()
        del self.bucket[self.name]
        return HTTPStatus.NO_CONTENT, {}, b""

    def start(self) -> "Answer":
        upload = f"upload-{self.google.generation()}"
        self.google.uploads[upload] = {}
        fields = {"Bucket": "", "Key": self.name, "UploadId": upload}
        return HTTPStatus.OK, {}, _xml("InitiateMultipartUploadResult", _elements(fields))

    def part(self) -> "Answer":
        self._parts()[int(self.query["partNumber"])] = self.body
        return HTTPStatus.OK, {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'}, b""

    def complete(self) -> "Answer":
        parts, total = self._parts(), hashlib.md5()
        for number, tag in _named_parts(self.body):
            part = hashlib.md5(parts.get(number, b""))
            if number not in parts or tag.strip('"') != part.hexdigest():
                raise Refused(HTTPStatus.BAD_REQUEST, "InvalidPart", f"Part {number} could not be found.")
            if number != max(parts) and len(parts[number]) < MIN_PART_BYTES:
                raise Refused(HTTPStatus.BAD_REQUEST, "EntityTooSmall", f"Part {number} is too small.")
            total.update(part.digest())
        chosen = [number for number, _ in _named_parts(self.body)]
        kept = self._keep(b"".join(parts[number] for number in chosen), f"{total.hexdigest()}-{len(chosen)}")
        del self.google.uploads[self.query["uploadId"]]
        fields = {"Key": self.name, "ETag": f'"{kept.tag}"'}
        return HTTPStatus.OK, kept.headers, _xml("CompleteMultipartUploadResult", _elements(fields))

    def abort(self) -> "Answer":
        self._parts()
        del self.google.uploads[self.query["uploadId"]]
        return HTTPStatus.NO_CONTENT, {}, b""

    def list(self) -> "Answer":
        """A page of the names after the token, in the order of their bytes."""
        prefix, after = self.query.get("prefix", ""), self.query.get("continuation-token", "")
        if {"delimiter", "start-after"} & self.query.keys():
            raise Refused(HTTPStatus.NOT_IMPLEMENTED, "NotImplemented", "The double lists all below a prefix.")
        names = sorted(name for name in self.bucket if name.startswith(prefix) and name > after)
        page = names[: min(PAGE, int(self.query.get("max-keys", PAGE)))]
        more = {"IsTruncated": "true", "NextContinuationToken": page[-1]} if len(page) < len(names) else {}
        contents = "".join(f"<Contents>{_elements(_listed(name, self.bucket[name]))}</Contents>" for name in page)
        return HTTPStatus.OK, {}, _xml("ListBucketResult", _elements({"Prefix": prefix, **more}) + contents)

    def _found(self) -> Stored:
        held = self.bucket.get(self.name)
        if held is None:
            raise no_object()
        return held

    def _keep(self, content: bytes, tag: str) -> Stored:
        self.bucket[self.name] = Stored(content, tag, self.google.generation())
        return self.bucket[self.name]

    def _parts(self) -> dict[int, bytes]:
        parts = self.google.uploads.get(self.query["uploadId"])
        if parts is None:
            raise no_upload()
        return parts


type Answer = tuple[HTTPStatus, dict[str, str], bytes]
ANSWERS: dict[tuple[str, str], Callable[[Request], Answer]] = {
    ("GET", ""): Request.get, ("HEAD", ""): Request.get, ("PUT", ""): Request.put, ("DELETE", ""): Request.delete,
    ("GET", "list-type"): Request.list,
    ("POST", "uploads"): Request.start, ("PUT", "uploadId"): Request.part,
    ("POST", "uploadId"): Request.complete, ("DELETE", "uploadId"): Request.abort,
}  # fmt: skip


class Handler(QuietHandler):
    """Reads requests and writes answers; a connection is kept."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one packet
    google: Google

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.google, self.command, self.path, headers, body)
        with self.google.one_at_a_time:
            self.google.requests.append(f"{self.command} {self.path}")
            try:
                if self.google.faults:
                    raise Refused(self.google.faults.pop(0), "SlowDown", "Please reduce your request rate.")
                status, more, content = request.answer()
                if self.google.lost:
                    raise Refused(self.google.lost.pop(0), "InternalError", "We encountered an internal error.")
            except Refused as refused:
                status, code, message = refused.args
                more, content = {}, _xml("Error", _elements({"Code": code, "Message": message}))
        self.send_response(status)
        for name, value in (more | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve


@contextmanager
def serving(*buckets: str) -> Generator[Google]:
    """The double, with empty buckets, at `google.url` while the block runs."""
    google = Google({bucket: {} for bucket in buckets})
    with answering(type("GoogleHandler", (Handler,), {"google": google})) as url:
        google.url = url
        yield google


def _listed(name: str, held: Stored) -> dict[str, str]:
    modified = datetime.fromtimestamp(held.modified, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {
        "Key": name, "Generation": str(held.generation), "MetaGeneration": "1", "LastModified": modified,
        "ETag": f'"{held.tag}"', "Size": str(len(held.content)),
    }  # fmt: skip


def _named_parts(body: bytes) -> list[tuple[int, str]]:
    root = ElementTree.fromstring(re.sub(rb' xmlns="[^"]*"', b"", body))
    return [(int(part.findtext("PartNumber", "0")), part.findtext("ETag", "")) for part in root.iter("Part")]


def _elements(fields: dict[str, str]) -> str:
    return "".join(f"<{name}>{escape(value)}</{name}>" for name, value in fields.items())


def _xml(root: str, inner: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?><{root} xmlns="{NAMESPACE}">{inner}</{root}>'.encode()


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
