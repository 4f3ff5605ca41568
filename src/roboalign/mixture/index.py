"""Store the index of a mixture on disk, and the files that tasks pass to it.

Everything whose size grows with the sources is in SQLite, not in memory. One process writes the
index. Each task writes its own file, complete or not at all, which is then copied into the index in
one transaction.
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
CREATE TABLE drawn (item INTEGER PRIMARY KEY, source INTEGER, key INTEGER, id TEXT, what TEXT, content INTEGER,
                    file TEXT);
CREATE TABLE shown (item INTEGER, number INTEGER, sha INTEGER, look INTEGER, PRIMARY KEY (item, number)) WITHOUT ROWID;
CREATE TABLE kept (source INTEGER, item INTEGER, copy INTEGER, key INTEGER, content INTEGER, PRIMARY KEY (item, copy));
CREATE TABLE placed (split TEXT, position INTEGER, item INTEGER, copy INTEGER, PRIMARY KEY (split, position))
    WITHOUT ROWID;
CREATE TABLE unasked (item INTEGER, question TEXT, times INTEGER);
CREATE INDEX drawn_content ON drawn (content);
CREATE INDEX kept_content ON kept (content);
"""
"""Schema of the index.

`items` are the samples of a source, based on their text. `chosen` are those examined, `drawn` is
the result (good, held, leak or fault), `shown` are the images of each, `kept` are trained on, and
`placed` is the order of each split.
"""
SCANNED = """
CREATE TABLE items (place INTEGER PRIMARY KEY, key INTEGER);
CREATE TABLE dropped (place INTEGER, id TEXT, what TEXT, reason TEXT);
"""
EXAMINED = """
CREATE TABLE rows (item INTEGER PRIMARY KEY, text TEXT);
CREATE TABLE shown (item INTEGER, number INTEGER, sha INTEGER, look INTEGER, thumb BLOB, data BLOB,
                    PRIMARY KEY (item, number));
CREATE TABLE drawn (item INTEGER PRIMARY KEY, source INTEGER, key INTEGER, id TEXT, what TEXT, content INTEGER);
CREATE TABLE dropped (place INTEGER, id TEXT, what TEXT, reason TEXT, other TEXT);
CREATE TABLE unasked (item INTEGER, question TEXT, times INTEGER);
"""
_CACHE = 16_000
"""Page cache in memory, in KB."""
BATCH = 1_000
"""Rows in memory before they are written."""


def open_index(path: Path) -> sqlite3.Connection:
    """Open the index for writing, creating it if missing. Others may read it at the same time."""
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
    """Yield a read-only connection."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        yield connection


@contextmanager
def task_file(path: Path, schema: str) -> Iterator[sqlite3.Connection]:
    """Yield a file for the results of one task, renamed when complete; it needs no journal."""
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
    """Run one transaction, which also marks `step` as done."""
    index.execute("BEGIN")
    try:
        yield
        index.execute("INSERT INTO done VALUES (?, ?)", (step, value))
    except BaseException:
        index.execute("ROLLBACK")
        raise
    index.execute("COMMIT")


def is_done(index: sqlite3.Connection, step: str) -> bool:
    """Return whether a transaction of this name has been committed."""
    return index.execute("SELECT 1 FROM done WHERE step = ?", (step,)).fetchone() is not None


def number(index: sqlite3.Connection, query: str, *arguments: object) -> int:
    """Return the one number that a query gives."""
    return index.execute(query, arguments).fetchone()[0]
