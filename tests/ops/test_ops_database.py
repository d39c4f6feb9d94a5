"""Database files: made once and whole, refused when they are something else."""

import sqlite3
import sys
from pathlib import Path

import pytest

from lifecycle.ops.database import DatabaseError, Schema, connect, create_database, session
from tests.read_only import read_only

SCHEMA = Schema("shelf", application_id=7, version=2, tables="CREATE TABLE books (title TEXT NOT NULL) STRICT;")


def test_made_once_in_wal_mode_with_the_users_permissions(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "shelf.sqlite"
    create_database(path, SCHEMA)
    with session(path, SCHEMA, write=True) as db:
        db.execute("INSERT INTO books VALUES ('one')")
    create_database(path, SCHEMA)
    with session(path, SCHEMA) as db:
        assert [row["title"] for row in db.execute("SELECT title FROM books")] == ["one"]
    db = connect(path, SCHEMA)
    assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    db.close()
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode & 0o777 == (tmp_path / "plain").stat().st_mode & 0o777 & 0o644
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_failed_session_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "shelf.sqlite"
    create_database(path, SCHEMA)
    with pytest.raises(DatabaseError, match="NOT NULL"), session(path, SCHEMA, write=True) as db:
        db.execute("INSERT INTO books VALUES ('one')")
        db.execute("INSERT INTO books VALUES (NULL)")
    with pytest.raises(KeyError), session(path, SCHEMA, write=True) as db:
        db.execute("INSERT INTO books VALUES ('two')")
        raise KeyError("the caller's own")
    with session(path, SCHEMA) as db:
        assert db.execute("SELECT count(*) FROM books").fetchone()[0] == 0


def test_a_read_only_folder_can_be_read_and_says_why_it_cannot_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "shelf.sqlite"
    create_database(path, SCHEMA)
    with session(path, SCHEMA, write=True) as db:
        db.execute("INSERT INTO books VALUES ('one')")
    script = (
        "import sys; from pathlib import Path; from lifecycle.ops.database import Schema, session\n"
        f"with session(Path({str(path)!r}), {SCHEMA!r}, write=sys.argv[1] == 'write') as db:\n"
        "    print([row['title'] for row in db.execute('SELECT title FROM books')])"
    )
    assert read_only(tmp_path, [sys.executable, "-c", script, "read"]) == "['one']"
    assert "its folder is read-only" in read_only(tmp_path, [sys.executable, "-c", script, "write"])


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "shelf.sqlite"
    with pytest.raises(DatabaseError, match="no shelf here"):
        connect(path, SCHEMA)
    create_database(path, SCHEMA)
    newer = Schema("shelf", application_id=7, version=3, tables=SCHEMA.tables)
    with pytest.raises(DatabaseError, match="expected a shelf of version 3, got version 2 of one"):
        connect(path, newer)
    with pytest.raises(DatabaseError, match="expected a box of version 2, got a database of another kind"):
        connect(path, Schema("box", application_id=8, version=2, tables=""))
    path.write_text("not a database, long enough to have a header " * 4)
    with pytest.raises(DatabaseError, match=r"not a readable shelf .*file is not a database"):
        connect(path, SCHEMA)


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        create_database(tmp_path / "file" / "shelf.sqlite", SCHEMA)


def test_the_wait_for_a_lock_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifecycle.ops.database.BUSY_TIMEOUT_S", 0.05)
    path = tmp_path / "shelf.sqlite"
    create_database(path, SCHEMA)
    holder = sqlite3.connect(path, autocommit=True)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseError, match="locked"), session(path, SCHEMA, write=True):
        pass
    holder.close()
