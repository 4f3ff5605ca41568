"""Store the samples of a mixture while it is built: every question about them that is asked in SQL."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from roboalign.mixture.database import Database
from roboalign.mixture.keys import TOP
from roboalign.mixture.parts import FRAME_BITS, Fate, Part, Wanted

_IMAGES = (
    "SELECT d.item, s.number, s.sha, s.look, d.file FROM {0} JOIN drawn d ON d.item = {0}.item "
    "JOIN shown s ON s.item = d.item WHERE {1}"
)
_HELDOUT_IMAGES = _IMAGES.format("placed", "split = 'heldout'")
_KEPT_IMAGES = _IMAGES.format("kept", "kept.copy = 1")
_ORDER = "row_number() OVER (ORDER BY key_of(?, 'order', d.key, {0}), d.item) - 1, d.item, {0}"
"""A sample's place in its split, by a hash of the seed, its key and its copy."""
ImageRow = tuple[int, int, int, int, str]
"""An image: its sample, its number in it, first bytes of its sha256, its hash, the examined file."""


class SampleStore(Database):
    """The index of a mixture, or the file of one task: what is known about its samples."""

    def rounds(self) -> int:
        """Return how many rounds of examining are complete."""
        return self._number("SELECT count(*) FROM done WHERE step LIKE 'looked %'")

    # What a task found, and its way into the index.

    def add_scanned(
        self, items: Iterable[tuple[int, int]], dropped: Iterable[tuple[int, str, Fate, str]]
    ) -> None:
        """Add (place, key) of samples, and (place, id, fate, reason) of what is none."""
        self._db.executemany("INSERT INTO items VALUES (?, ?)", items)
        self._db.executemany("INSERT INTO dropped VALUES (?, ?, ?, ?)", dropped)

    def take_scanned(self, part: Part, path: Path) -> None:
        """Copy what was found in a part."""
        with SampleStore.reading(path) as found:
            self._db.executemany(
                "INSERT INTO items (source, part, place, key) VALUES (?, ?, ?, ?)",
                _of(part, found._db.execute("SELECT * FROM items ORDER BY place")),
            )
            self._db.executemany(
                "INSERT INTO dropped VALUES (?, ?, ?, ?, ?, ?, NULL)",
                _of(part, found._db.execute("SELECT * FROM dropped")),
            )

    def add_missing(self, source: int, place: int, where: str, problem: str) -> None:
        """Add a part that is not there."""
        self._db.execute(
            "INSERT INTO dropped VALUES (?, -1, ?, ?, ?, ?, NULL)",
            (source, place, where, Fate.FAULT, problem),
        )

    def sort_items(self) -> None:
        """Index the samples by their key and by their place, once all are added."""
        self._db.execute("CREATE INDEX items_by_key ON items (source, key, item)")
        self._db.execute("CREATE INDEX items_by_place ON items (source, part, place)")

    def add_examined(
        self,
        drawn: Sequence[tuple[Any, ...]],
        rows: Sequence[tuple[int, str]],
        shown: Sequence[tuple[Any, ...]],
        dropped: Sequence[tuple[Any, ...]],
        unasked: Sequence[tuple[int, str, int]],
    ) -> None:
        """Add the outcomes of samples: the columns are those of the tables in EXAMINED."""
        self._db.executemany("INSERT INTO dropped VALUES (?, ?, ?, ?, ?)", dropped)
        self._db.executemany("INSERT INTO rows VALUES (?, ?)", rows)
        self._db.executemany("INSERT INTO shown VALUES (?, ?, ?, ?, ?, ?)", shown)
        self._db.executemany("INSERT INTO drawn VALUES (?, ?, ?, ?, ?, ?)", drawn)
        self._db.executemany("INSERT INTO unasked VALUES (?, ?, ?)", unasked)

    def take_examined(self, part: Part, path: Path) -> None:
        """Copy what a task found, without texts, thumbnails and image files."""
        with SampleStore.reading(path) as found:
            ask, add = found._db.execute, self._db.executemany
            shown = ask("SELECT item, number, sha, look FROM shown")
            add("INSERT INTO shown VALUES (?, ?, ?, ?)", shown)
            drawn = ((*row, path.name) for row in ask("SELECT * FROM drawn"))
            add("INSERT INTO drawn VALUES (?, ?, ?, ?, ?, ?, ?)", drawn)
            add("INSERT INTO unasked VALUES (?, ?, ?)", ask("SELECT * FROM unasked"))
            dropped = _of(part, ask("SELECT * FROM dropped"))
            add("INSERT INTO dropped VALUES (?, ?, ?, ?, ?, ?, ?)", dropped)

    def example(self, item: int) -> tuple[str, tuple[bytes, ...]]:
        """Return the text of an examined sample and its image files."""
        (text,) = self._db.execute("SELECT text FROM rows WHERE item = ?", (item,)).fetchone()
        query = "SELECT data FROM shown WHERE item = ? ORDER BY number"
        return text, tuple(data for (data,) in self._db.execute(query, (item,)))

    def thumbnail(self, item: int, number: int) -> bytes:
        """Return the thumbnail of an image of an examined sample."""
        query = "SELECT thumb FROM shown WHERE item = ? AND number = ?"
        return self._db.execute(query, (item, number)).fetchone()[0]

    # The draw.

    def found(self, source: int) -> int:
        """Return how many samples a source has."""
        return self._number("SELECT count(*) FROM items WHERE source = ?", source)

    def kept(self, source: int | None = None) -> int:
        """Return how many samples are trained on, repeats included."""
        if source is None:
            return self._number("SELECT count(*) FROM kept")
        return self._number("SELECT count(*) FROM kept WHERE source = ?", source)

    def unexamined(self, source: int) -> int:
        """Return how many samples of a source no round has examined."""
        drawn = self._number("SELECT count(*) FROM drawn WHERE source = ?", source)
        return self.found(source) - drawn

    def first_drawn(self, source: int, most: int) -> Iterator[Wanted]:
        """Yield the samples of a source that come first by key, in the order of their places."""
        query = (
            "SELECT place, item, key FROM (SELECT * FROM items WHERE source = ? ORDER BY key, item "
            "LIMIT ?) ORDER BY place"
        )
        return map(Wanted._make, self._db.execute(query, (source, most)))

    def choose(self, turn: int, source: int, count: int) -> None:
        """Choose the next samples of a source by key for a round."""
        chosen = self._number(
            "SELECT count(*) FROM chosen c JOIN items i ON i.item = c.item WHERE source = ?", source
        )
        self._db.execute(
            "INSERT INTO chosen SELECT item, ? FROM items WHERE source = ? ORDER BY key, item "
            "LIMIT ? OFFSET ?",
            (turn, source, count, chosen),
        )

    def chosen_parts(self, turn: int) -> set[tuple[int, int]]:
        """Return (source, part) of what a round examines."""
        query = (
            "SELECT DISTINCT source, part FROM items WHERE item IN "
            "(SELECT item FROM chosen WHERE round = ?)"
        )
        return set(self._db.execute(query, (turn,)))

    def chosen_of(self, turn: int, part: Part, number: int) -> Iterator[Wanted]:
        """Yield what a round examines of one slice of a part, in the order of the places."""
        query = (
            "SELECT i.place, i.item, i.key FROM items i CROSS JOIN chosen c ON c.item = i.item "
            "WHERE c.round = ? AND i.source = ? AND i.part = ? AND (i.place >> ?) % ? = ? "
            "ORDER BY i.place"
        )
        slice_ = (FRAME_BITS, part.slices, number)
        return map(Wanted._make, self._db.execute(query, (turn, part.source, part.number, *slice_)))

    def settle(self, asked: Sequence[int]) -> None:
        """Keep the first good samples of each source by key, as many as asked, without duplicates.

        Of two samples with the same content, that of the earlier source is kept; within one source,
        that of the smaller key.
        """
        self._db.execute("BEGIN")
        self._db.execute("DELETE FROM kept")
        for source, most in enumerate(asked):
            self._db.execute(
                "INSERT INTO kept SELECT source, item, 1, key, content FROM (SELECT *, row_number() "
                "OVER (PARTITION BY content ORDER BY key, item) AS n FROM drawn WHERE source = ? AND "
                "what = ?) WHERE n = 1 AND content NOT IN (SELECT content FROM kept) "
                "ORDER BY key, item LIMIT ?",
                (source, Fate.GOOD, most),
            )
        self._db.execute("COMMIT")

    def repeat(self, source: int, copy: int, count: int) -> None:
        """Keep the first samples of a source once more, as this copy."""
        self._db.execute(
            "INSERT INTO kept SELECT source, item, ?, key, content FROM kept WHERE source = ? AND "
            "copy = 1 ORDER BY key, item LIMIT ?",
            (copy, source, count),
        )

    # The order of each split.

    def place_train(self, seed: int) -> None:
        """Order the samples that are trained on."""
        self._db.execute(
            f"INSERT INTO placed SELECT 'train', {_ORDER.format('k.copy')} FROM kept k "
            "JOIN drawn d ON d.item = k.item",
            (seed,),
        )

    def place_rl(self, seed: int, source: int, count: int) -> None:
        """Choose the RL subset: the kept samples of a source that come first by a separate hash."""
        self._db.execute(
            f"INSERT INTO placed SELECT 'rl', {_ORDER.format('1')} FROM (SELECT item, key FROM kept "
            "WHERE source = ? AND copy = 1 ORDER BY key_of(?, 'rl', key), item LIMIT ?) d",
            (seed, source, seed, count),
        )

    def place_heldout(self, seed: int) -> None:
        """Order what is held out; of equal samples the first."""
        self._db.execute(
            f"INSERT INTO placed SELECT 'heldout', {_ORDER.format('1')} FROM drawn d WHERE what = ? "
            "AND NOT EXISTS (SELECT 1 FROM drawn e WHERE e.content = d.content AND e.what = ? "
            "AND (e.source, e.key, e.item) < (d.source, d.key, d.item))",
            (seed, Fate.HELD, Fate.HELD),
        )

    def placed(self, split: str) -> int:
        """Return how many samples a split has."""
        return self._number("SELECT count(*) FROM placed WHERE split = ?", split)

    def placed_between(self, split: str, first: int, last: int) -> list[tuple[int, int, str]]:
        """Return (sample, copy, examined file) of the positions from `first` to below `last`."""
        query = (
            "SELECT p.item, p.copy, d.file FROM placed p JOIN drawn d ON d.item = p.item WHERE "
            "p.split = ? AND p.position >= ? AND p.position < ? ORDER BY p.position"
        )
        return self._db.execute(query, (split, first, last)).fetchall()

    def placed_ids(self, split: str) -> Iterator[str]:
        """Yield the ids of a split's samples in order."""
        query = (
            "SELECT d.id FROM placed p JOIN drawn d ON d.item = p.item WHERE split = ? "
            "ORDER BY position"
        )
        return (id_ for (id_,) in self._db.execute(query, (split,)))

    def count_heldout_images(self) -> int:
        """Return how many images the held-out samples have."""
        return self._number(f"SELECT count(*) FROM ({_HELDOUT_IMAGES})")

    def heldout_images(self) -> Iterator[ImageRow]:
        """Yield the images of the held-out samples, file by file."""
        yield from self._db.execute(f"{_HELDOUT_IMAGES} ORDER BY d.file, d.item, s.number")

    def kept_images(self) -> Iterator[ImageRow]:
        """Yield the images that are trained on, file by file."""
        yield from self._db.execute(f"{_KEPT_IMAGES} ORDER BY d.file, d.item, s.number")

    def release(self, items: Iterable[int]) -> None:
        """Take samples out of the held-out set, because training shows the same pictures."""
        gone = [(item,) for item in items]
        query = "DELETE FROM placed WHERE split = 'heldout' AND item = ?"
        self._db.executemany(query, gone)
        self._db.executemany(f"UPDATE drawn SET what = '{Fate.SEEN}' WHERE item = ?", gone)
        query = "SELECT item FROM placed WHERE split = 'heldout' ORDER BY position"
        left = self._db.execute(query).fetchall()
        self._db.execute("DELETE FROM placed WHERE split = 'heldout'")
        self._db.executemany(
            "INSERT INTO placed VALUES ('heldout', ?, ?, 1)",
            ((position, item) for position, (item,) in enumerate(left)),
        )

    # What became of the samples.

    def outcomes(self, source: int) -> dict[str, int]:
        """Return how many samples of a source had each outcome; each is counted independently.

        A broken episode counts as one sample that was found. `copies` are repeats and `kept`.
        """

        def ask(query: str, *more: object) -> int:
            return self._number(f"SELECT count(*) FROM {query}", source, *more)

        dropped, drawn = (
            "dropped WHERE source = ? AND what = ?",
            "drawn WHERE source = ? AND what = ?",
        )
        nowhere = (
            "dropped d WHERE source = ? AND NOT EXISTS (SELECT 1 FROM items i WHERE "
            "i.source = d.source AND i.part = d.part AND i.place = d.place)"
        )
        held = "placed p JOIN drawn d ON d.item = p.item WHERE d.source = ? AND p.split = 'heldout'"
        undrawn = "items WHERE source = ? AND item NOT IN (SELECT item FROM drawn)"
        unneeded = f"{drawn} AND item NOT IN (SELECT item FROM kept)"
        return {
            "found": self.found(source) + ask(nowhere),
            "kept": ask("kept WHERE source = ? AND copy = 1"),
            "repeats": ask("kept WHERE source = ? AND copy > 1"),
            "copies": self.kept(source),
            "heldout": ask(held),
            "heldout_seen": ask(drawn, Fate.SEEN),
            "duplicates": ask(dropped, Fate.DUPLICATE),
            "leaks": ask(dropped, Fate.LEAK),
            "refused": ask(dropped, Fate.REFUSED),
            "faults": ask(dropped, Fate.FAULT),
            "not_drawn": ask(undrawn) + ask(unneeded, Fate.GOOD),
        }

    def not_asked(self, source: int) -> dict[str, int]:
        """Return `type: reason` -> how often a question did not apply to a kept sample."""
        query = (
            "SELECT question, sum(times) FROM unasked u JOIN kept k ON k.item = u.item "
            "WHERE source = ? AND copy = 1 GROUP BY question ORDER BY question"
        )
        return dict(self._db.execute(query, (source,)).fetchall())

    def reasons(self, source: int) -> Iterator[tuple[str, str, int]]:
        """Yield (fate, reason, times) of what was left out of a source, without duplicates."""
        query = (
            "SELECT what, reason, count(*) FROM dropped WHERE source = ? AND what != ? "
            "GROUP BY what, reason"
        )
        yield from self._db.execute(query, (source, Fate.DUPLICATE))

    def frequent_reasons(self, most: int, source: int | None = None) -> list[tuple[str, str, int]]:
        """Return the most frequent (fate, reason, times) of what was left out, of one source or all."""
        query = (
            "SELECT what, reason, count(*) FROM dropped WHERE ? IS NULL OR source = ? "
            "GROUP BY what, reason ORDER BY 3 DESC, 1, 2 LIMIT ?"
        )
        return self._db.execute(query, (source, source, most)).fetchall()

    def note_duplicates(self, asked: Sequence[int]) -> None:
        """List the samples whose content equals another one's, with that one.

        Samples examined after the last one that a source needed were not drawn, whatever their
        content.
        """
        for source, most in enumerate(asked):
            query = "SELECT max(key), count(*) FROM kept WHERE source = ? AND copy = 1"
            last, kept = self._db.execute(query, (source,)).fetchone()
            self._db.execute(
                "UPDATE drawn SET what = ? WHERE source = ? AND what = ? AND key <= ? AND item NOT "
                "IN (SELECT item FROM kept) AND content IN (SELECT content FROM kept)",
                (Fate.DUPLICATE, source, Fate.GOOD, last if kept == most else TOP - 1),
            )
        self._db.execute(
            "UPDATE drawn SET what = ? WHERE what = ? AND item NOT IN "
            "(SELECT item FROM placed WHERE split = 'heldout')",
            (Fate.HELD_DUPLICATE, Fate.HELD),
        )
        held = f"SELECT item, content FROM drawn WHERE what IN ('{Fate.HELD}', '{Fate.SEEN}')"
        trained = "SELECT item, content FROM kept WHERE copy = 1"
        for what, others in ((Fate.DUPLICATE, trained), (Fate.HELD_DUPLICATE, held)):
            self._db.execute(
                f"INSERT INTO dropped SELECT d.source, i.part, i.place, d.id, '{Fate.DUPLICATE}', "
                f"'same image and turns', (SELECT e.id FROM ({others}) o JOIN drawn e ON "
                "e.item = o.item WHERE o.content = d.content ORDER BY o.item LIMIT 1) "
                "FROM drawn d JOIN items i ON i.item = d.item WHERE d.what = ?",
                (what,),
            )

    def dropped(self) -> Iterator[tuple[int, str, str, str, str | None]]:
        """Yield (source, id, fate, reason, the other sample or set) of what was left out."""
        query = (
            "SELECT source, id, what, reason, other FROM dropped ORDER BY source, part, place, what"
        )
        yield from self._db.execute(query)

    def seen(self) -> Iterator[tuple[int, str]]:
        """Yield (source, id) of what was held out until training showed the same picture."""
        query = "SELECT source, id FROM drawn WHERE what = ? ORDER BY item"
        yield from self._db.execute(query, (Fate.SEEN,))

    def different_images(self) -> tuple[int, int]:
        """Return how many images are trained on, by their bytes and by their perceptual hash."""
        query = "SELECT count(DISTINCT {}) FROM kept k JOIN shown s ON s.item = k.item"
        return self._number(query.format("sha")), self._number(query.format("look"))


def _of(part: Part, rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    return ((part.source, part.number, *row) for row in rows)
