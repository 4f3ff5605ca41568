"""Write generated questions to a folder: shards of conversations, then a manifest.

The manifest says what they are and what was left out.

    plan.json        which frames of which episodes are asked about, under which settings
    train-*.parquet  conversations, at most _SHARD and the rest of a work of them in one file
    shards.jsonl     one line for each shard that is whole
    manifest.json    written last

A killed run continues after its last complete shard.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from roboalign import __version__
from roboalign.conversations.conversation import Conversation, write_conversations
from roboalign.conversations.styles.base import DEFAULT_STYLE
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import append_jsonl, hash_file, locked, read_json, read_jsonl, write_json
from roboalign.core.outcomes import Fault
from roboalign.core.progress import Progress
from roboalign.episodes.robot_data import RobotData
from roboalign.questions.base import Generator, Made, Work

_SHARD = 1000
"""Conversations after which a shard is written."""
AT_ONCE = 100
"""Maximum frames of one episode asked about before a shard can be written."""
MOST_FAULTS = 100
"""Maximum faults listed in the manifest; further ones are only counted."""


@dataclass(frozen=True)
class Plan:
    """The frames to ask about."""

    lengths: list[tuple[str, int]]
    """(id, steps) of every episode, in the order of the data set."""
    frames: list[tuple[int, tuple[int, ...]]]
    """(episode's place, frames), ascending; an episode with many frames has several entries."""
    faults: list[Fault]
    """Episodes that could not be read."""

    @property
    def count(self) -> int:
        """Return the number of frames."""
        return sum(len(frames) for _, frames in self.frames)


@dataclass
class _Tally:
    """What was made, and what was not made and why."""

    conversations: int = 0
    types: dict[str, Counter[str]] = field(default_factory=dict)
    """type -> mode -> questions."""
    refused: Counter[str] = field(default_factory=Counter)
    fault_count: int = 0
    faults: list[dict[str, str]] = field(default_factory=list)
    episodes: list[str] = field(default_factory=list)

    def add(self, made: Made) -> None:
        """Count the result of one work."""
        for conversation in made.conversations:
            self.conversations += 1
            for turn in conversation.turns:
                self.types.setdefault(turn.type, Counter())[turn.mode] += 1
        self.refused.update(one.reason for one in made.refused)
        self.add_faults([asdict(fault) for fault in made.faults], len(made.faults))
        self.add_episodes([conversation.episode_id for conversation in made.conversations])

    def add_faults(self, faults: list[dict[str, str]], count: int) -> None:
        """Count faults, and list them while there is room."""
        self.fault_count += count
        self.faults += faults[: MOST_FAULTS - len(self.faults)]

    def add_episodes(self, ids: list[str]) -> None:
        """List each episode once; the entries of one that is in several works are consecutive."""
        self.episodes += [ident for ident in dict.fromkeys(ids) if self.episodes[-1:] != [ident]]

    def merge(self, other: Mapping[str, Any]) -> None:
        """Add a `summary` of another part."""
        self.conversations += other["conversations"]
        for name, modes in other["types"].items():
            self.types.setdefault(name, Counter()).update(modes)
        self.refused.update(other["refused"])
        self.add_faults(other["faults"]["listed"], other["faults"]["count"])
        self.add_episodes(other["episodes"])

    def summary(self) -> dict[str, Any]:
        """Return a summary for JSON; names are sorted, so the order of events does not show."""
        types = {name: dict(sorted(modes.items())) for name, modes in sorted(self.types.items())}
        modes = sum(self.types.values(), Counter[str]())
        return {
            "conversations": self.conversations,
            "questions": modes.total(),
            "modes": dict(sorted(modes.items())),
            "types": types,
            "refused": dict(sorted(self.refused.items())),
            "faults": {"count": self.fault_count, "listed": self.faults},
            "episodes": self.episodes,
        }


def make_plan(data: RobotData, count: int, seed: int, each: int | None = None) -> Plan:
    """Draw `count` frames of the data set uniformly, or all if there are fewer. Reads it once.

    With `each`, frames are drawn from that many evenly spaced ones per episode. Raises
    RoboAlignError if no episode can be read.
    """
    with Progress(f"look through {data.name}", total=None) as progress:
        lengths = []
        for episode in data:
            lengths.append((episode.episode_id, len(episode)))
            progress.advance()
    return draw_frames(lengths, list(data.faults), count, seed, data.name, each)


def spaced(length: int, each: int | None) -> Sequence[int]:
    """Return the frames of an episode that may be drawn.

    They are the middles of `each` equal parts, or all frames if there are no more than that.
    """
    if each is None or each >= length:
        return range(length)
    return [(2 * part + 1) * length // (2 * each) for part in range(each)]


def draw_frames(
    lengths: list[tuple[str, int]],
    faults: list[Fault],
    count: int,
    seed: int,
    name: str,
    each: int | None = None,
) -> Plan:
    """Return the plan of a data set whose episodes are known."""
    frames_of = [spaced(length, each) for _, length in lengths]
    total = sum(map(len, frames_of))
    if not total:
        first = f": {faults[0].where}: {faults[0].problem}" if faults else ""
        raise RoboAlignError(
            f"no episode could be read{first}", where=name, fix="check that it is complete"
        )
    # Take the first frames of one fixed order: asking for more frames keeps the earlier ones, so
    # cached answers still apply.
    drawn = np.sort(np.random.default_rng(seed).permutation(total)[:count]).tolist()
    frames, place, before = [], 0, 0
    chosen: list[int] = []
    for number in [*drawn, total]:
        while number >= before + len(frames_of[place]):
            frames += [
                (place, tuple(chosen[i : i + AT_ONCE])) for i in range(0, len(chosen), AT_ONCE)
            ]
            chosen, before, place = [], before + len(frames_of[place]), place + 1
            if place == len(lengths):
                return Plan(lengths, frames, faults)
        chosen.append(frames_of[place][number - before])
    raise AssertionError("the last number is past every episode")


def write_questions(
    data: RobotData,
    generator: Generator,
    folder: str | Path,
    *,
    count: int,
    seed: int,
    settings: dict[str, Any],
    each: int | None = None,
    shard: int = _SHARD,
    planned: Callable[[Plan], None] = lambda plan: None,
) -> dict[str, Any]:
    """Write at most `count` conversations, one per frame drawn (`make_plan`); return the manifest.

    `settings` is everything else that determines the result: it is written to the manifest, and a
    folder with other settings is refused. The same data set, generator, settings and seed give the
    same bytes. `planned` is called before the first frame is asked about. Raises RoboAlignError if
    another command uses the folder, if the data set is not the one that the folder was started
    with, if no question could be made, and, with `data.strict`, on the first fault.
    """
    folder = Path(folder)
    settings = {
        **settings,
        "count": count,
        "seed": seed,
        "frames": each,
        "shard": shard,
        "version": __version__,
    }
    settings = json.loads(json.dumps(settings))  # in the form in which they are read back
    with locked(folder):
        plan = open_plan(data, folder, count, seed, each, settings)
        if (folder / "manifest.json").exists():
            return read_json(folder / "manifest.json", fix="remove the folder")
        planned(plan)
        done = read_jsonl(folder / "shards.jsonl")
        check_shards(folder, done)
        tally = _Tally()
        tally.add_faults([asdict(fault) for fault in plan.faults], len(plan.faults))
        for record in done:
            tally.merge(record["tally"])
        for record in write_shards(data, generator, folder, plan, done, shard):
            done.append(record)
            tally.merge(record["tally"])
        if not tally.conversations:
            often = "; ".join(
                f"{reason} ({times})" for reason, times in tally.refused.most_common(3)
            )
            first = (
                f"; {tally.faults[0]['where']}: {tally.faults[0]['problem']}"
                if tally.faults
                else ""
            )
            raise RoboAlignError(
                f"no question could be made: {often or 'nothing was refused'}{first}",
                where=data.name,
                fix="say what is missing: --space, --axes, --camera, --position",
            )
        shards = {record["shard"]: record["sha256"] for record in done if record["shard"]}
        manifest = {
            "settings": settings,
            "prompts": settings.get("prompts", DEFAULT_STYLE),
            **tally.summary(),
            "spent": generator.spent(),
            "shards": shards,
        }
        write_json(folder / "manifest.json", manifest)
        return manifest


def open_plan(
    data: RobotData, folder: Path, count: int, seed: int, each: int | None, settings: dict[str, Any]
) -> Plan:
    """Return the plan that the folder was started with, or a new one.

    A new one is also made if nothing was made yet under other settings. Raises RoboAlignError if
    something was.
    """
    path = folder / "plan.json"
    begun = read_json(path, fix="remove the folder") if path.exists() else {}
    made = any(record["shard"] for record in read_jsonl(folder / "shards.jsonl"))
    if not begun or (begun.get("settings") != settings and not made):
        (folder / "shards.jsonl").unlink(missing_ok=True)
        plan = make_plan(data, count, seed, each)
        record = {
            "settings": settings,
            "episodes": plan.lengths,
            "faults": [asdict(fault) for fault in plan.faults],
        }
        write_json(path, record)
        return plan
    if begun.get("settings") != settings:
        other = sorted(
            key
            for key in {*settings, *begun.get("settings", {})}
            if settings.get(key) != begun.get("settings", {}).get(key)
        )
        raise RoboAlignError(
            f"it was begun with other settings ({', '.join(other)})",
            where=str(folder),
            fix="give another folder with --out, or the same settings",
        )
    faults = [Fault(**fault) for fault in begun["faults"]]
    lengths = [(ident, length) for ident, length in begun["episodes"]]
    return draw_frames(lengths, faults, count, seed, data.name, each)


def check_shards(folder: Path, done: list[dict[str, Any]]) -> None:
    """Raise RoboAlignError if a shard that was written is missing or has changed."""
    for record in done:
        path = folder / str(record["shard"])
        if record["shard"] and (not path.is_file() or hash_file(path) != record["sha256"]):
            raise RoboAlignError(
                "it is missing, or not the one in shards.jsonl",
                where=str(path),
                fix="remove the folder and run the command again",
            )


def write_shards(
    data: RobotData,
    generator: Generator,
    folder: Path,
    plan: Plan,
    done: list[dict[str, Any]],
    shard: int,
) -> Iterator[dict[str, Any]]:
    """Write the missing shards; yield the record of each once it is on disk.

    The last record may have no shard: it lists what was refused after the last conversation.
    """
    skip, number = done[-1]["works"] if done else 0, sum(bool(record["shard"]) for record in done)
    held: list[Conversation] = []
    tally, works = _Tally(), skip
    start = sum(len(frames) for _, frames in plan.frames[:skip])

    def flush() -> dict[str, Any]:
        name = f"train-{number:05d}.parquet" if held else None
        if name:
            write_conversations(folder / name, held)
        digest = hash_file(folder / name) if name else ""
        record = {"shard": name, "sha256": digest, "works": works, "tally": tally.summary()}
        append_jsonl(folder / "shards.jsonl", record)
        return record

    with Progress(f"questions {data.name}", total=plan.count, start=start) as progress:
        for made in generator.questions(read_work(data, plan, skip)):
            if data.strict and made.faults:
                fault = made.faults[0]
                raise RoboAlignError(fault.problem, where=fault.where, fix=fault.fix)
            held += made.conversations
            tally.add(made)
            progress.advance(len(plan.frames[works][1]))
            works += 1
            if len(held) >= shard:
                yield flush()
                held, tally, number = [], _Tally(), number + 1
        if works > skip and (held or tally.refused or tally.fault_count):
            yield flush()


def read_work(data: RobotData, plan: Plan, skip: int) -> Iterator[Work]:
    """Yield the planned work after the first `skip`, in order.

    Raises RoboAlignError if the data set has other episodes than when the plan was made.
    """
    wanted = iter(plan.frames[skip:])
    place, frames = next(wanted, (-1, ()))
    for number, episode in enumerate(data if place >= 0 else ()):
        if number >= len(plan.lengths) or (episode.episode_id, len(episode)) != tuple(
            plan.lengths[number]
        ):
            raise RoboAlignError(
                "the data set has changed since the folder was begun",
                where=f"episode {episode.episode_id}",
                fix="remove the folder and run the command again",
            )
        while number == place:
            yield Work(episode, frames)
            place, frames = next(wanted, (-1, ()))
        if place < 0:
            return
    if place >= 0:
        raise RoboAlignError(
            "the data set has fewer episodes than when the folder was begun",
            where=data.name,
            fix="remove the folder and run the command again",
        )
