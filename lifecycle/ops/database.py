"""SQLite files shared by several processes: created atomically, opened in WAL mode, rejected if of another kind.

A new file gets its schema and its WAL mode under a temporary name and is then linked to its final one, so that two
processes that start at once neither see half a schema nor lock each other out while one switches the journal. A
database in a folder that cannot be written, such as a read-only mount, can be read.
"""

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from lifecycle.core.files import is_writable

BUSY_TIMEOUT_S = 30.0  # a write takes milliseconds; waiting longer than this is an error


class DatabaseError(ValueError):
    """A database file is missing, damaged, of another kind, or cannot be written."""


@dataclass(frozen=True)
class Schema:
    """A kind of database; `application_id` and `version` are in the file's header."""

    name: str
    application_id: int
    version: int
    tables: str


def create_database(path: Path, schema: Schema) -> None:
    """Creates the database unless it exists; of several processes at once, one creates it."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        try:
            with contextlib.closing(sqlite3.connect(temporary, autocommit=True)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(schema.tables)
                connection.execute(f"PRAGMA application_id = {schema.application_id}")
                connection.execute(f"PRAGMA user_version = {schema.version}")
        except sqlite3.OperationalError as error:
            raise DatabaseError(f"{path}: cannot make a {schema.name}: {error}; {_FIX}") from None
        with contextlib.suppress(FileExistsError):  # another process was first
            os.link(temporary, path)


def connect(path: Path, schema: Schema, write: bool = False) -> sqlite3.Connection:
    """Opens an existing database of this schema; raises `DatabaseError` if it is missing, damaged or another kind, or
    in a read-only folder with `write`."""
    if not path.is_file():
        raise DatabaseError(f"{path}: no {schema.name} here")
    connection = _open(path, write)
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = NORMAL")
        application_id = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.DatabaseError as error:
        connection.close()
        raise DatabaseError(f"{path}: not a readable {schema.name} ({error}); {_FIX}") from None
    if (application_id, version) != (schema.application_id, schema.version):
        connection.close()
        what = f"version {version} of one" if application_id == schema.application_id else "a database of another kind"
        raise DatabaseError(f"{path}: expected a {schema.name} of version {schema.version}, got {what}; move it away")
    connection.row_factory = sqlite3.Row
    return connection


def _open(path: Path, write: bool) -> sqlite3.Connection:
    """In WAL mode SQLite makes two files beside the database even to read it, unless that is declared immutable."""
    if is_writable(path.parent):
        return sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, autocommit=True)
    if write:
        raise DatabaseError(f"{path}: its folder is read-only; change it where the folder can be written")
    log, index = (path.with_name(f"{path.name}-{end}") for end in ("wal", "shm"))
    is_logged = log.is_file() and log.stat().st_size > 0
    if is_logged and not index.is_file():
        raise DatabaseError(f"{log}: changes that a killed process left; open {path} once where its folder is writable")
    how = "mode=ro" if is_logged else "immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, timeout=BUSY_TIMEOUT_S, autocommit=True)


@contextlib.contextmanager
def session(path: Path, schema: Schema, write: bool = False) -> Generator[sqlite3.Connection]:
    """A connection for one piece of work; with `write`, one transaction that is committed or rolled back.

    `BEGIN IMMEDIATE` takes the write lock first, so what is read inside cannot change before the commit.
    """
    with contextlib.closing(connect(path, schema, write)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            yield connection
            connection.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise DatabaseError(f"{path}: {error}; {_FIX}") from None


_FIX = "if the disk is full, free some space; if the file is damaged, move it away and restore a copy"
