"""The index of a mixture on disk, and the files that tasks hand to it.

Everything whose size grows with the sources is in SQLite, not in memory. One process writes the index; tasks write a
file of their own, whole or not at all, which is then taken over in one transaction.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from roboalign.core.files import atomic_path

INDEX = """
CREATE TABLE done (step TEXT PRIMARY KEY, value TEXT);
CREATE TABLE items (item INTEGER PRIMARY KEY, source INTEGER, part INTEGER, place INTEGER, key INTEGER);
CREATE TABLE dropped (source INTEGER, part INTEGER, place INTEGER, id TEXT, what TEXT, reason TEXT, other TEXT);
CREATE TABLE chosen (item INTEGER PRIMARY KEY, round INTEGER);
CREATE TABLE drawn (item INTEGER PRIMARY KEY, source INTEGER, key INTEGER, id TEXT, what TEXT, sha INTEGER,
                    look INTEGER, content INTEGER, file TEXT);
CREATE TABLE kept (source INTEGER, item INTEGER, copy INTEGER, key INTEGER, content INTEGER, PRIMARY KEY (item, copy));
CREATE TABLE placed (split TEXT, position INTEGER, item INTEGER, copy INTEGER, PRIMARY KEY (split, position))
    WITHOUT ROWID;
CREATE INDEX drawn_content ON drawn (content);
CREATE INDEX kept_content ON kept (content);
"""
"""`items` are the samples that a source has, by what its text says; of these `chosen` are looked at, `drawn` is what
was found then (good, held, leak or fault), `kept` trains, and `placed` is the order of each split."""
SCANNED = """
CREATE TABLE items (place INTEGER PRIMARY KEY, key INTEGER);
CREATE TABLE dropped (place INTEGER, id TEXT, what TEXT, reason TEXT);
"""
EXAMINED = """
CREATE TABLE rows (item INTEGER PRIMARY KEY, text TEXT, thumb BLOB, image BLOB);
CREATE TABLE drawn (item INTEGER PRIMARY KEY, source INTEGER, key INTEGER, id TEXT, what TEXT, sha INTEGER,
                    look INTEGER, content INTEGER);
CREATE TABLE dropped (place INTEGER, id TEXT, what TEXT, reason TEXT, other TEXT);
"""
_CACHE = 16_000
"""KB of pages in memory."""
BATCH = 1_000
"""Rows in memory before they are written."""


def open_index(path: Path) -> sqlite3.Connection:
    """The index for writing, made where it is missing. Readers may be at work beside it."""
    new = not path.exists()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA cache_size = -{_CACHE}")
    if new or not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        connection.executescript(f"BEGIN;{INDEX}COMMIT;")
    return connection


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that only reads."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        yield connection


@contextmanager
def task_file(path: Path, schema: str) -> Iterator[sqlite3.Connection]:
    """A file for what one task finds, in place once it is whole: it needs no journal."""
    with (
        atomic_path(path) as temporary,
        closing(sqlite3.connect(temporary, isolation_level=None)) as connection,
    ):
        connection.executescript(
            "PRAGMA page_size = 16384; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
        )
        connection.executescript(schema)
        connection.execute("BEGIN")
        yield connection
        connection.execute("COMMIT")


@contextmanager
def transaction(index: sqlite3.Connection, step: str, value: str = "") -> Iterator[None]:
    """All or nothing, and `step` is marked as done with it."""
    index.execute("BEGIN")
    try:
        yield
        index.execute("INSERT INTO done VALUES (?, ?)", (step, value))
    except BaseException:
        index.execute("ROLLBACK")
        raise
    index.execute("COMMIT")


def is_done(index: sqlite3.Connection, step: str) -> bool:
    """Whether a transaction of this name has been committed."""
    return index.execute("SELECT 1 FROM done WHERE step = ?", (step,)).fetchone() is not None


def number(index: sqlite3.Connection, query: str, *arguments: object) -> int:
    """The one number that a query gives."""
    return index.execute(query, arguments).fetchone()[0]
