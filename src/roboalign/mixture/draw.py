"""Choose which samples are examined, which are trained on, and their order.

The index decides, by hashes.
"""

import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.mixture import index as store
from roboalign.mixture.config import MixtureConfig
from roboalign.mixture.keys import key_of
from roboalign.mixture.looks import LOOK_DTYPE, SeenImages
from roboalign.mixture.parts import Fate

SPARE = 100
"""One in this many samples is examined in addition, to replace those that drop out.

A second round would read everything again.
"""


def check_enough(index: sqlite3.Connection, config: MixtureConfig) -> None:
    """Raise RoboAlignError if a source has too few samples and may not be repeated."""
    for number, (source, asked) in enumerate(zip(config.sources, config.asked())):
        there = store.number(index, "SELECT count(*) FROM items WHERE source = ?", number)
        if not there or (there < asked and not source.repeat):
            dropped = index.execute(
                "SELECT what, reason, count(*) FROM dropped WHERE source = ? GROUP BY what, reason "
                "ORDER BY 3 DESC, 1, 2 LIMIT 1",
                (number,),
            ).fetchone()
            most = f"; {dropped[2]} are left out as {dropped[0]}: {dropped[1]}" if dropped else ""
            fix = (
                f"lower its count to {there}, or set `repeat: true`"
                if there
                else "check what the source holds"
            )
            raise RoboAlignError(
                f"{asked} samples are asked and it has {there}{most}",
                where=f"source {source.name}",
                fix=fix,
            )


def check_some(index: sqlite3.Connection) -> None:
    """Raise RoboAlignError if no sample is left to train on."""
    if store.number(index, "SELECT count(*) FROM kept"):
        return
    lost = ", ".join(
        f"{times} x {what}: {reason}"
        for what, reason, times in index.execute(
            "SELECT what, reason, count(*) FROM dropped GROUP BY what, reason ORDER BY 3 DESC, 1, 2 LIMIT 3"
        )
    )
    raise RoboAlignError(
        f"no sample is left to train on ({lost or 'all are held out'})",
        where="mixture",
        fix="correct the sources, or `evaluation` where it names what is to be trained on",
    )


def draw(index: sqlite3.Connection, config: MixtureConfig, turn: int) -> None:
    """Choose what this round examines: the next samples of each source by key.

    As many are chosen as are missing.
    """
    with store.transaction(index, f"round {turn}"):
        for number, missing in enumerate(missing_of(index, config)):
            if missing:
                chosen = store.number(
                    index,
                    "SELECT count(*) FROM chosen c JOIN items i ON i.item = c.item WHERE source = ?",
                    number,
                )
                missing = int(missing / (1 - config.heldout.share)) if config.heldout else missing
                index.execute(
                    "INSERT INTO chosen SELECT item, ? FROM items WHERE source = ? ORDER BY key, item "
                    "LIMIT ? OFFSET ?",
                    (turn, number, missing + missing // SPARE + 16, chosen),
                )


def missing_of(index: sqlite3.Connection, config: MixtureConfig) -> list[int]:
    """Return how many samples each source lacks; 0 if all of its samples were examined."""
    result = []
    for number, asked in enumerate(config.asked()):
        kept = store.number(index, "SELECT count(*) FROM kept WHERE source = ?", number)
        left = store.number(
            index, "SELECT count(*) FROM items WHERE source = ?", number
        ) - store.number(index, "SELECT count(*) FROM drawn WHERE source = ?", number)
        result.append(asked - kept if left else 0)
    return result


def settle(index: sqlite3.Connection, config: MixtureConfig) -> None:
    """Keep the first good samples of each source by key, as many as requested, without duplicates.

    Of two samples with the same content, that of the earlier source is kept; within one source,
    that of the smaller key.
    """
    index.execute("BEGIN")
    index.execute("DELETE FROM kept")
    for number, asked in enumerate(config.asked()):
        index.execute(
            "INSERT INTO kept SELECT source, item, 1, key, content FROM (SELECT *, row_number() OVER (PARTITION BY "
            f"content ORDER BY key, item) AS n FROM drawn WHERE source = ? AND what = '{Fate.GOOD}') "
            "WHERE n = 1 AND content NOT IN (SELECT content FROM kept) ORDER BY key, item LIMIT ?",
            (number, asked),
        )
    index.execute("COMMIT")


def place_drawn(index: sqlite3.Connection, config: MixtureConfig, work: Path) -> None:
    """Add repeats, choose the RL subset and the held-out set, and order each split."""
    index.create_function("key_of", -1, key_of, deterministic=True)
    with store.transaction(index, "placed"):
        for number, (source, asked) in enumerate(zip(config.sources, config.asked())):
            once = store.number(index, "SELECT count(*) FROM kept WHERE source = ?", number)
            for copy in range(2, -(-asked // once) + 1 if source.repeat and once else 2):
                index.execute(
                    "INSERT INTO kept SELECT source, item, ?, key, content FROM kept WHERE source = ? AND "
                    "copy = 1 ORDER BY key, item LIMIT ?",
                    (copy, number, asked - (copy - 1) * once),
                )
        order = (
            "row_number() OVER (ORDER BY key_of(?, ?, d.key, {copy}), d.item) - 1, d.item, {copy}"
        )
        index.execute(
            f"INSERT INTO placed SELECT 'train', {order.format(copy='k.copy')} FROM kept k JOIN drawn d ON "
            "d.item = k.item",
            (config.seed, "order"),
        )
        if config.rl:
            place_rl(index, config, order.format(copy="1"))
        if config.heldout:
            index.execute(
                f"INSERT INTO placed SELECT 'heldout', {order.format(copy='1')} FROM drawn d WHERE "
                f"what = '{Fate.HELD}' AND NOT EXISTS (SELECT 1 FROM drawn e WHERE e.content = d.content "
                f"AND e.what = '{Fate.HELD}' AND (e.source, e.key, e.item) < (d.source, d.key, d.item))",
                (config.seed, "order"),
            )
            release_seen(index, config, work)


def place_rl(index: sqlite3.Connection, config: MixtureConfig, order: str) -> None:
    """Choose the RL subset: the kept samples of the source that come first by a separate hash."""
    assert config.rl
    number = [source.name for source in config.sources].index(config.rl.source)
    index.execute(
        f"INSERT INTO placed SELECT 'rl', {order} FROM (SELECT item, key FROM kept WHERE source = ? AND copy = 1 "
        "ORDER BY key_of(?, 'rl', key), item LIMIT ?) d",
        (config.seed, "order", number, config.seed, config.rl.count),
    )
    there = store.number(index, "SELECT count(*) FROM placed WHERE split = 'rl'")
    kept = store.number(index, "SELECT count(*) FROM kept")
    if there < config.rl.count or there > config.rl.at_most * kept:
        raise RoboAlignError(
            f"{config.rl.count} samples are asked; {there} were kept, and {config.rl.at_most} of the {kept} SFT "
            f"samples are {int(config.rl.at_most * kept)}",
            where=f"rl, source {config.rl.source}",
            fix="lower rl.count",
        )


def release_seen(index: sqlite3.Connection, config: MixtureConfig, work: Path) -> None:
    """Remove from the held-out set what training also shows in another file.

    That is a sample with an image of the same bytes or the same picture.
    """
    found = "SELECT d.item, s.number, s.sha, s.look, d.file FROM {} JOIN drawn d ON d.item = {}.item JOIN shown s ON "
    found += "s.item = d.item WHERE "
    held = found.format("placed", "placed") + "split = 'heldout'"
    count = store.number(index, f"SELECT count(*) FROM ({held})")
    images, items = np.zeros(count, dtype=LOOK_DTYPE), np.zeros(count, dtype=np.int64)
    for number, (item, sha, look, thumb) in enumerate(looks(index, work, held)):
        images[number], items[number] = (sha, look, thumb()), item
    seen, trained = SeenImages(images, config.near.distance, config.near.difference), set()
    kept = found.format("kept", "kept") + "kept.copy = 1"
    for _, sha, look, thumb in looks(index, work, kept) if count else ():
        trained.update(seen.exact(sha).tolist())
        if seen.alike(look).size:
            trained.update(seen.near(look, thumb()).tolist())
    gone = [(int(item),) for item in np.unique(items[sorted(trained)])]
    index.executemany("DELETE FROM placed WHERE split = 'heldout' AND item = ?", gone)
    index.executemany(f"UPDATE drawn SET what = '{Fate.SEEN}' WHERE item = ?", gone)
    left = index.execute(
        "SELECT item FROM placed WHERE split = 'heldout' ORDER BY position"
    ).fetchall()
    index.execute("DELETE FROM placed WHERE split = 'heldout'")
    index.executemany(
        "INSERT INTO placed VALUES ('heldout', ?, ?, 1)",
        ((position, item) for position, (item,) in enumerate(left)),
    )


def looks(
    index: sqlite3.Connection, work: Path, query: str
) -> Iterator[tuple[int, int, int, Callable[[], np.ndarray]]]:
    """Yield (item, first bytes of the sha256, hash, function that reads the thumbnail) of images.

    `query` gives the item, the number of the image in it, the next two, and the file. Read the
    thumbnail before requesting the next image.
    """
    for file, group in groupby(
        index.execute(f"{query} ORDER BY d.file, d.item, s.number"), key=itemgetter(4)
    ):
        with store.reading(work / "examined" / file) as rows:
            for item, number, sha, look, _ in group:
                yield item, sha, look & (2**64 - 1), partial(thumb_of, rows, item, number)


def thumb_of(rows: sqlite3.Connection, item: int, number: int) -> np.ndarray:
    """Return uint8 [256], the thumbnail of an image of an examined sample."""
    query = "SELECT thumb FROM shown WHERE item = ? AND number = ?"
    return np.frombuffer(rows.execute(query, (item, number)).fetchone()[0], np.uint8)
