"""The registry: immutable versions, and aliases that move between them.

A version is the hash of a bundle's content, with the bundle's manifest and all its evaluations. An alias (`production`,
`candidate`, ...) points to the target of its newest move; moves are append-only, so an alias cannot disagree with its
history. What must hold: triggers in the database reject a change or deletion of a version (its path may change), a
move or an evaluation; a promotion names the version that it expects the alias to point to, so if two run at once, one
wins and the other fails. Bundles may be moved with the registry: paths below its folder are stored relative to it.
"""

import difflib
import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from sqlite3 import Connection, Row

from lifecycle.core.artifact import Manifest, open_artifact
from lifecycle.core.file_hashes import hash_files
from lifecycle.evals.results import EvalResult
from lifecycle.ops.database import DatabaseError, Schema, create_database, session

SHORTEST_PREFIX = 4
SHOWN_HASH = 12


class RegistryError(ValueError):
    """An unknown name, a bundle that cannot be registered, or an alias that cannot move."""


SCHEMA = Schema(
    name="model registry",
    application_id=0x4C435247,  # "LCRG"
    version=1,
    tables="""
    CREATE TABLE versions (
        hash TEXT PRIMARY KEY, kind TEXT NOT NULL, path TEXT NOT NULL, manifest TEXT NOT NULL, registered TEXT NOT NULL
    ) STRICT;
    CREATE TABLE evaluations (
        id INTEGER PRIMARY KEY, version TEXT NOT NULL REFERENCES versions, task TEXT NOT NULL, result TEXT NOT NULL,
        attached TEXT NOT NULL
    ) STRICT;
    CREATE INDEX evaluations_by_task ON evaluations (version, task, id);
    CREATE TABLE moves (
        id INTEGER PRIMARY KEY, alias TEXT NOT NULL, action TEXT NOT NULL CHECK (action IN ('move', 'rollback')),
        source TEXT REFERENCES versions, target TEXT NOT NULL REFERENCES versions, who TEXT NOT NULL, why TEXT NOT NULL,
        gate TEXT NOT NULL, at TEXT NOT NULL
    ) STRICT;
    CREATE INDEX moves_by_alias ON moves (alias, id);
    CREATE TRIGGER version_changed BEFORE UPDATE OF hash, kind, manifest, registered ON versions
        BEGIN SELECT RAISE(ABORT, 'a version cannot be altered'); END;
    CREATE TRIGGER version_deleted BEFORE DELETE ON versions
        BEGIN SELECT RAISE(ABORT, 'a version cannot be deleted'); END;
    CREATE TRIGGER evaluation_changed BEFORE UPDATE ON evaluations
        BEGIN SELECT RAISE(ABORT, 'an evaluation cannot be altered'); END;
    CREATE TRIGGER evaluation_deleted BEFORE DELETE ON evaluations
        BEGIN SELECT RAISE(ABORT, 'an evaluation cannot be deleted'); END;
    CREATE TRIGGER move_changed BEFORE UPDATE ON moves
        BEGIN SELECT RAISE(ABORT, 'the history of an alias cannot be altered'); END;
    CREATE TRIGGER move_deleted BEFORE DELETE ON moves
        BEGIN SELECT RAISE(ABORT, 'the history of an alias cannot be deleted'); END;
    """,
)


@dataclass(frozen=True)
class Version:
    """A registered bundle; `path` is its folder when it was last registered."""

    hash: str
    kind: str
    path: Path
    manifest: Manifest
    registered: str

    @property
    def short(self) -> str:
        """The prefix of the hash that is shown to users."""
        return self.hash[:SHOWN_HASH]


@dataclass(frozen=True)
class Move:
    """One line of an alias's history; `source` is None for its first move, `gate` the promotion gate's report."""

    alias: str
    action: str
    source: str | None
    target: str
    who: str
    why: str
    gate: str
    at: str

    def __str__(self) -> str:
        source = self.source[:SHOWN_HASH] if self.source else "nothing"
        step = f"{source} -> {self.target[:SHOWN_HASH]}"
        return f"{self.at} {self.alias}: {step} ({self.action} by {self.who}: {self.why})"


class Registry:
    """The registry in one SQLite file; safe for any number of processes and threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = path.resolve().parent

    def register(self, bundle: Path, kind: str, evaluations: Iterable[EvalResult] = ()) -> Version:
        """Adds a bundle (a finished artifact); for a known version, records its current path.

        New evaluations are added; for each task the newest result counts. kind: the kind of model, for example `base`
        or `chat`. Reads the full bundle: its content must match its manifest.
        """
        manifest = _verified_manifest(bundle)
        create_database(self.path, SCHEMA)
        with self._session(write=True) as db:
            known = db.execute("SELECT * FROM versions WHERE hash = ?", (manifest.content_hash,)).fetchone()
            if known is None:
                db.execute(
                    "INSERT INTO versions VALUES (?, ?, ?, ?, ?)",
                    (manifest.content_hash, kind, self._relative(bundle), manifest.model_dump_json(), _now()),
                )
            elif known["kind"] != kind:
                raise RegistryError(
                    f"{bundle}: version {manifest.content_hash[:SHOWN_HASH]} is registered as {known['kind']!r}, "
                    f"and a version's kind cannot change to {kind!r}"
                )
            else:  # the bundle that was just verified is the one to serve
                db.execute("UPDATE versions SET path = ? WHERE hash = ?", (self._relative(bundle), known["hash"]))
            _attach(db, manifest.content_hash, evaluations)
        return self.resolve(manifest.content_hash)

    def evaluations(self, name: str) -> dict[str, EvalResult]:
        """The newest result of each task, without per-example details."""
        with self._session() as db:
            version = self._find(db, name)["hash"]
            rows = db.execute(
                "SELECT task, result FROM evaluations WHERE version = ? ORDER BY id", (version,)
            ).fetchall()
        return {row["task"]: EvalResult.model_validate_json(row["result"]) for row in rows}

    def versions(self) -> list[Version]:
        """All versions, oldest first."""
        with self._session() as db:
            return [self._version(row) for row in db.execute("SELECT * FROM versions ORDER BY registered, rowid")]

    def resolve(self, name: str) -> Version:
        """The version of an alias, a hash or a prefix of one; raises `RegistryError` listing the known names."""
        with self._session() as db:
            return self._version(self._find(db, name))

    def aliases(self) -> dict[str, str]:
        """Each alias's current version."""
        with self._session() as db:
            rows = db.execute("SELECT alias, target FROM moves ORDER BY id").fetchall()
        return {row["alias"]: row["target"] for row in rows}

    def history(self, alias: str) -> list[Move]:
        """The moves of an alias, oldest first."""
        with self._session() as db:
            return _history(db, alias)

    def move(
        self, alias: str, name: str, *, who: str, why: str, expected: str | None = None, gate: str = "not checked"
    ) -> Move:
        """Moves an alias to a version. If it points there already, returns the move that led there and adds none.

        expected: the hash that the caller saw the alias point to, "" for none; raises `RegistryError` if it has moved
        since. None: no check.
        """
        _check_alias(alias)
        with self._session(write=True) as db:
            target = self._find(db, name)["hash"]
            past = _history(db, alias)
            current = past[-1].target if past else None
            if expected is not None and (current or "") != expected:
                newest = past[-1] if past else "it has no version"
                raise RegistryError(f"{alias} was moved by someone else meanwhile: {newest}; check and try again")
            if current == target:
                return past[-1]
            return _append(db, Move(alias, "move", current, target, who, why, gate, _now()))

    def rollback(self, alias: str, *, who: str, why: str) -> Move:
        """Moves an alias back to its previous version; a second rollback goes one further back."""
        with self._session(write=True) as db:
            stack: list[str] = []
            for move in _history(db, alias):
                if move.action == "rollback":
                    stack.pop()
                else:
                    stack.append(move.target)
            if len(stack) < 2:
                raise RegistryError(f"{alias}: no earlier version to roll back to")
            return _append(db, Move(alias, "rollback", stack[-1], stack[-2], who, why, "not checked", _now()))

    @contextmanager
    def _session(self, write: bool = False) -> Generator[Connection]:
        if not self.path.exists():
            raise RegistryError(f"{self.path}: no registry here yet; `lifecycle run` or `lifecycle export` creates it")
        try:
            with session(self.path, SCHEMA, write) as db:
                yield db
        except DatabaseError as error:
            raise RegistryError(str(error)) from None

    def _find(self, db: Connection, name: str) -> Row:
        """The row of the version that `name` means: an alias first, then a hash or a prefix of one."""
        target = db.execute("SELECT target FROM moves WHERE alias = ? ORDER BY id DESC LIMIT 1", (name,)).fetchone()
        pattern = target["target"] if target else name.lower()
        is_hash = re.fullmatch(r"[0-9a-f]+", pattern) and len(pattern) >= SHORTEST_PREFIX
        query = "SELECT * FROM versions WHERE hash GLOB ?"
        rows = db.execute(query, (f"{pattern}*",)).fetchall() if is_hash else []
        if len(rows) == 1:
            return rows[0]
        if rows:
            fitting = ", ".join(row["hash"][: max(SHOWN_HASH, len(pattern) + 4)] for row in rows)
            raise RegistryError(f"{name!r} is the beginning of {len(rows)} versions ({fitting}); give more characters")
        raise RegistryError(f"{self.path}: no version or alias {name!r}{_known(db, name)}")

    def _version(self, row: Row) -> Version:
        manifest = Manifest.model_validate_json(row["manifest"])
        return Version(row["hash"], row["kind"], self._absolute(row["path"]), manifest, row["registered"])

    def _relative(self, bundle: Path) -> str:
        path = bundle.resolve()
        return str(path.relative_to(self._folder) if path.is_relative_to(self._folder) else path)

    def _absolute(self, path: str) -> Path:
        return self._folder / path


def verify(version: Version) -> None:
    """Raises `ArtifactError` or `RegistryError` unless the bundle on disk is the registered version, by its manifest;
    loading it compares the contents with that."""
    if open_artifact(version.path).content_hash != version.hash:
        raise RegistryError(
            f"{version.path}: another bundle is at the path where version {version.short} was registered"
        )


def _verified_manifest(bundle: Path) -> Manifest:
    manifest = open_artifact(bundle).manifest
    if hash_files(bundle, manifest.files) != manifest.content_hash:
        raise RegistryError(f"{bundle}: the files differ from the manifest; export it again")
    return manifest


def _attach(db: Connection, version: str, evaluations: Iterable[EvalResult]) -> None:
    for result in evaluations:
        bare = result.model_copy(update={"examples": [e.model_copy(update={"detail": {}}) for e in result.examples]})
        text = bare.model_dump_json()
        query = "SELECT result FROM evaluations WHERE version = ? AND task = ? ORDER BY id DESC LIMIT 1"
        newest = db.execute(query, (version, result.task)).fetchone()
        if newest is None or newest["result"] != text:
            db.execute(
                "INSERT INTO evaluations (version, task, result, attached) VALUES (?, ?, ?, ?)",
                (version, result.task, text, _now()),
            )


def _history(db: Connection, alias: str) -> list[Move]:
    columns = "alias, action, source, target, who, why, gate, at"
    return [Move(*row) for row in db.execute(f"SELECT {columns} FROM moves WHERE alias = ? ORDER BY id", (alias,))]


def _append(db: Connection, move: Move) -> Move:
    db.execute(
        "INSERT INTO moves (alias, action, source, target, who, why, gate, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (move.alias, move.action, move.source, move.target, move.who, move.why, move.gate, move.at),
    )
    return move


def _check_alias(alias: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", alias) or re.fullmatch(r"[0-9a-f]{4,}", alias):
        raise RegistryError(
            f"alias {alias!r}: use lower-case letters, digits, - and _, beginning with a letter; names of hexadecimal "
            "digits only are reserved for hashes"
        )


def _known(db: Connection, name: str) -> str:
    aliases = [row["alias"] for row in db.execute("SELECT DISTINCT alias FROM moves ORDER BY alias")]
    hashes = [row["hash"] for row in db.execute("SELECT hash FROM versions ORDER BY rowid DESC LIMIT 8")]
    close = difflib.get_close_matches(name, aliases, n=1, cutoff=0.5)
    nearest = f"; did you mean {close[0]!r}?" if close else ""
    versions = ", ".join(known[:SHOWN_HASH] for known in hashes) or "none"
    return f"{nearest}; aliases: {', '.join(aliases) or 'none'}; newest versions: {versions}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
