"""Open the SQLite files of a mixture that is being built: the index, and a file for each task.

Everything whose size grows with the sources is in SQLite, not in memory. One process writes the
index. Each task writes its own file, complete or not at all, which is then copied into the index in
one transaction.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Self

from roboalign.core.files import atomic_path
from roboalign.mixture.keys import key_of

_INDEX = """
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


class Database:
    """One SQLite file: how it is opened, and its transactions."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    @classmethod
    @contextmanager
    def index(cls, path: Path) -> Iterator[Self]:
        """Yield the index for writing, created if missing. Others may read it at the same time."""
        new = not path.exists()
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute(f"PRAGMA cache_size = -{_CACHE}")
            if new or not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                db.executescript(f"BEGIN;{_INDEX}COMMIT;")
            db.create_function("key_of", -1, key_of, deterministic=True)
            yield cls(db)

    @classmethod
    @contextmanager
    def reading(cls, path: Path) -> Iterator[Self]:
        """Yield an index or a task's file, for reading only."""
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            yield cls(db)

    @classmethod
    @contextmanager
    def task_file(cls, path: Path, schema: str) -> Iterator[Self]:
        """Yield a file for the results of one task, renamed when complete; it needs no journal.

        `schema` is SCANNED or EXAMINED.
        """
        with (
            atomic_path(path) as temporary,
            closing(sqlite3.connect(temporary, isolation_level=None)) as db,
        ):
            db.executescript(
                "PRAGMA page_size = 16384; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
            )
            db.executescript(schema)
            db.execute("BEGIN")
            yield cls(db)
            db.execute("COMMIT")

    @contextmanager
    def transaction(self, step: str) -> Iterator[None]:
        """Run one transaction, which also marks `step` as done."""
        self._db.execute("BEGIN")
        try:
            yield
            self._db.execute("INSERT INTO done VALUES (?, '')", (step,))
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def is_done(self, step: str) -> bool:
        """Return whether a transaction of this name has been committed."""
        return self._db.execute("SELECT 1 FROM done WHERE step = ?", (step,)).fetchone() is not None

    def _number(self, query: str, *arguments: object) -> int:
        return self._db.execute(query, arguments).fetchone()[0]
