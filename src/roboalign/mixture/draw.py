"""Choose which samples are examined, which are trained on, and their order.

The index decides, by hashes.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.mixture.config import MixtureConfig
from roboalign.mixture.looks import LOOK_DTYPE, SeenImages
from roboalign.mixture.store import ImageRow, SampleStore

SPARE = 100
"""One in this many samples is examined in addition, to replace those that drop out.

A second round would read everything again.
"""


def check_enough(index: SampleStore, config: MixtureConfig) -> None:
    """Raise RoboAlignError if a source has too few samples and may not be repeated."""
    for number, (source, asked) in enumerate(zip(config.sources, config.asked())):
        there = index.found(number)
        if not there or (there < asked and not source.repeat):
            most = "".join(
                f"; {times} are left out as {what}: {reason}"
                for what, reason, times in index.frequent_reasons(1, number)
            )
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


def check_some(index: SampleStore) -> None:
    """Raise RoboAlignError if no sample is left to train on."""
    if index.kept():
        return
    found = index.frequent_reasons(3)
    lost = ", ".join(f"{times} x {what}: {reason}" for what, reason, times in found)
    raise RoboAlignError(
        f"no sample is left to train on ({lost or 'all are held out'})",
        where="mixture",
        fix="correct the sources, or `evaluation` where it names what is to be trained on",
    )


def draw(index: SampleStore, config: MixtureConfig, turn: int) -> None:
    """Choose what this round examines: the next samples of each source by key.

    As many are chosen as are missing.
    """
    with index.transaction(f"round {turn}"):
        for number, missing in enumerate(missing_of(index, config)):
            if missing:
                missing = int(missing / (1 - config.heldout.share)) if config.heldout else missing
                index.choose(turn, number, missing + missing // SPARE + 16)


def missing_of(index: SampleStore, config: MixtureConfig) -> list[int]:
    """Return how many samples each source lacks; 0 if all of its samples were examined."""
    return [
        asked - index.kept(number) if index.unexamined(number) else 0
        for number, asked in enumerate(config.asked())
    ]


def place_drawn(index: SampleStore, config: MixtureConfig, work: Path) -> None:
    """Add repeats, choose the RL subset and the held-out set, and order each split."""
    with index.transaction("placed"):
        for number, (source, asked) in enumerate(zip(config.sources, config.asked())):
            once = index.kept(number)
            for copy in range(2, -(-asked // once) + 1 if source.repeat and once else 2):
                index.repeat(number, copy, asked - (copy - 1) * once)
        index.place_train(config.seed)
        if config.rl:
            place_rl(index, config)
        if config.heldout:
            index.place_heldout(config.seed)
            release_seen(index, config, work)


def place_rl(index: SampleStore, config: MixtureConfig) -> None:
    """Choose the RL subset. Raises RoboAlignError if it is smaller or larger than it may be."""
    assert config.rl
    number = [source.name for source in config.sources].index(config.rl.source)
    index.place_rl(config.seed, number, config.rl.count)
    there, kept = index.placed("rl"), index.kept()
    if there < config.rl.count or there > config.rl.at_most * kept:
        raise RoboAlignError(
            f"{config.rl.count} samples are asked; {there} were kept, and {config.rl.at_most} of the {kept} SFT "
            f"samples are {int(config.rl.at_most * kept)}",
            where=f"rl, source {config.rl.source}",
            fix="lower rl.count",
        )


def release_seen(index: SampleStore, config: MixtureConfig, work: Path) -> None:
    """Remove from the held-out set what training also shows in another file.

    That is a sample with an image of the same bytes or the same picture.
    """
    count = index.count_heldout_images()
    images, items = np.zeros(count, dtype=LOOK_DTYPE), np.zeros(count, dtype=np.int64)
    for number, (item, sha, look, thumb) in enumerate(looks(index.heldout_images(), work)):
        images[number], items[number] = (sha, look, thumb()), item
    seen, trained = SeenImages(images, config.near.distance, config.near.difference), set()
    for _, sha, look, thumb in looks(index.kept_images(), work) if count else ():
        trained.update(seen.exact(sha).tolist())
        if seen.alike(look).size:
            trained.update(seen.near(look, thumb()).tolist())
    index.release(np.unique(items[sorted(trained)]).tolist())


def looks(
    rows: Iterable[ImageRow], work: Path
) -> Iterator[tuple[int, int, int, Callable[[], np.ndarray]]]:
    """Yield (item, first bytes of the sha256, hash, function that reads the thumbnail) of images.

    The rows of a file follow each other. Read the thumbnail before requesting the next image.
    """
    for file, group in groupby(rows, key=itemgetter(4)):
        with SampleStore.reading(work / "examined" / file) as examined:
            for item, number, sha, look, _ in group:
                yield item, sha, look & (2**64 - 1), partial(thumb_of, examined, item, number)


def thumb_of(examined: SampleStore, item: int, number: int) -> np.ndarray:
    """Return uint8 [256], the thumbnail of an image of an examined sample."""
    return np.frombuffer(examined.thumbnail(item, number), np.uint8)
