"""Read sources in independent parts: first find the samples, then read those drawn."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from roboalign.conversations.conversation import (
    OWN,
    ROW,
    TURN_KINDS,
    Conversation,
    shards,
    turns_of,
)
from roboalign.conversations.qa.convert import text_conversation
from roboalign.conversations.qa.normal import QaSample
from roboalign.conversations.qa.presets import find_preset, preset_files, read_preset
from roboalign.conversations.qa.read import Answers, read_qa
from roboalign.conversations.qa.records import QaColumns, records
from roboalign.conversations.qa.texts import control_token, folder_special_tokens
from roboalign.conversations.styles.registry import require_style, style_of
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_file, read_json
from roboalign.core.hub import resolve
from roboalign.core.outcomes import Fault, Refused
from roboalign.episodes.open import format_of
from roboalign.mixture.config import MixtureConfig, SourceConfig
from roboalign.mixture.parts import (
    FRAME_BITS,
    STREAMED,
    Candidate,
    Dropped,
    Fate,
    Part,
    Wanted,
    changed,
    matched,
)
from roboalign.mixture.sources.robot import fetch_robot, read_robot, scan_robot
from roboalign.mixture.tokens import Tokens
from roboalign.mllm.placement import IMAGE_MARK

ROWS = 64
"""Number of conversations read at a time: they contain their images."""
SLICES = 8
"""Number of tasks that share a robot data set, by episode.

Reading an episode's actions is cheap; reading its frames is not.
"""
SMALL = 1 << 16
"""Maximum bytes of a robot data file fingerprinted by content; larger ones use name and size."""


def parts_of(number: int, source: SourceConfig) -> tuple[list[Part], list[Fault]]:
    """Return the parts of a source in order, and those that are missing.

    Raises RoboAlignError if there is nothing at all.
    """
    given = getattr(source, source.place)
    if source.robot is not None:
        given = str(resolve(given, "data set", where=f"source {source.name}"))
    elif source.place != "preset" and not Path(given).exists():
        raise RoboAlignError(
            "no such file or folder",
            where=f"source {source.name}, {given}",
            fix=f"correct `{source.place}`, or give --at {source.name}=PATH",
        )
    if source.qa is not None:
        file = Path(source.qa)
        return [
            Part(number, 0, file, file.name, Path(source.images) if source.images else file.parent)
        ], []
    if source.preset is not None:
        return preset_parts(number, source)
    if source.conversations is not None:
        folder = Path(source.conversations)
        return [
            Part(number, i, path, path.name) for i, path in enumerate(shards(folder, "train"))
        ], []
    assert source.robot is not None
    robot = Path(given)
    read_robot(source)  # reports errors of the whole data set now
    # Records of an RLDS file must be unpacked to be skipped: sharing it would read all of it many
    # times.
    slices = 1 if (source.format or format_of(robot)) == "rlds" else SLICES
    return [Part(number, 0, robot, "", slices=slices)], []


def preset_parts(number: int, source: SourceConfig) -> tuple[list[Part], list[Fault]]:
    """Return the files of a preset in order, each with the folder of its images."""
    assert source.preset is not None and source.path is not None
    folder = Path(source.path)
    read_preset(source.preset, folder)  # raises if it is unavailable, or nothing of it is there
    files, missing = preset_files(find_preset(source.preset), folder)
    parts = [
        Part(number, place, file, str(file.relative_to(folder)), images)
        for place, (file, images) in enumerate(files)
    ]
    return parts, [Fault(pattern, fault.problem, fault.fix) for pattern, fault in missing]


def taught_files(config: MixtureConfig) -> list[tuple[str, Path]]:
    """Return (name, path) of the shards with a teacher's questions that are packed."""
    return [
        (f"{source.name}/teacher/{path.name}", path)
        for source in config.sources
        if source.pack and source.pack.teacher
        for path in shards(source.pack.teacher, "train")
    ]


def fingerprint(part: Part) -> str:
    """Return the sha256 of the file, or of a robot data set.

    The latter covers the names and sizes of its files and the bytes of the small ones.
    """
    if part.file.is_file():
        return hash_file(part.file)
    digest = hashlib.sha256()
    for path in sorted(p for p in part.file.rglob("*") if p.is_file()):
        size = path.stat().st_size
        content = hash_file(path) if size <= SMALL else ""
        digest.update(f"{path.relative_to(part.file)}\0{size}\0{content}\n".encode())
    return digest.hexdigest()


def scan(config: MixtureConfig, part: Part) -> Iterator[tuple[int, str] | Dropped]:
    """Yield (place, id) of every sample of a part, in order, from its text; open no image."""
    source = config.sources[part.source]
    if source.robot is not None:
        return scan_robot(source)
    if source.conversations is not None:
        return (
            (place, f"{source.name}/{row['id']}") if isinstance(row, dict) else row
            for place, row in conversation_rows(
                part, ["id", "turns", "chat", "image_sha256"], special_of(config)
            )
        )
    return scan_samples(config, part)


def fetch(
    config: MixtureConfig, part: Part, wanted: Iterable[Wanted], tokens: Tokens | None
) -> Iterator[tuple[Wanted, Candidate | Dropped]]:
    """Yield the wanted samples of a part, which are in the order of their places.

    `tokens` is used for the action samples of robot data.
    """
    source = config.sources[part.source]
    if source.robot is not None:
        assert tokens
        return fetch_robot(source, wanted, tokens, config.seed, style_of(config.prompts))
    if source.conversations is not None:
        rows = matched(conversation_rows(part, OWN), wanted, str(part.file))
        return (
            (one, row if isinstance(row, Dropped) else stored_draft(source.name, row))
            for one, row in rows
        )
    return fetch_samples(config, part, wanted)


# Question-answering sources -------------------------------------------------------------------------------------------


def read_samples(
    config: MixtureConfig, part: Part, take: Callable[[Path, QaColumns], Iterator[Any]] = records
) -> Iterator[QaSample | Fault]:
    """Yield the records of one file, or those of it that `take` yields."""
    source = config.sources[part.source]
    if source.preset is None:
        answers = Answers(source.answers.kinds, source.answers.style)
        return read_qa(
            part.file,
            source.layout,
            images=part.images,
            links=source.links,
            source=source.name,
            kind=source.kind or "general",
            answers=answers,
            take=take,
        )
    preset = find_preset(source.preset)
    assert preset.layout is not None
    return read_qa(
        part.file,
        preset.layout,
        columns=preset.columns,
        images=part.images,
        source=source.name,
        kind=preset.kind,
        answers=preset.answers,
        prepare=preset.prepare,
        take=take,
    )


def special_of(config: MixtureConfig) -> frozenset[str]:
    """Return the special tokens of the mixture's model; none if it names no model."""
    if not config.model:
        return frozenset()
    return folder_special_tokens(resolve(config.model, "settings", where="model"))


def scan_samples(config: MixtureConfig, part: Part) -> Iterator[tuple[int, str] | Dropped]:
    special = special_of(config)
    for number, sample in enumerate(read_samples(config, part), start=1):
        place = number << FRAME_BITS
        if isinstance(sample, Fault):
            yield Dropped(place, f"{part.name}, record {number}", Fate.FAULT, sample.problem)
        elif not isinstance(
            found := text_conversation(sample, config.grid, special, config.prompts), Refused
        ):
            yield place, f"{sample.source}/{sample.id}"
        else:
            yield Dropped(place, f"{sample.source}/{sample.id}", Fate.REFUSED, found.reason)


def fetch_samples(
    config: MixtureConfig, part: Part, wanted: Iterable[Wanted]
) -> Iterator[tuple[Wanted, Candidate]]:
    special = special_of(config)
    numbered = (
        (number << FRAME_BITS, sample)
        for number, sample in enumerate(read_samples(config, part), start=1)
    )
    for one, sample in matched(numbered, wanted, str(part.file)):
        if isinstance(sample, Fault):
            raise changed(str(part.file))
        conversation = text_conversation(sample, config.grid, special, config.prompts)
        if isinstance(conversation, Refused):
            raise changed(str(part.file))
        yield one, Candidate(conversation, sample.images)


# Conversations that are stored ----------------------------------------------------------------------------------------


def conversation_rows(
    part: Part, columns: list[str], special: frozenset[str] = frozenset()
) -> Iterator[tuple[int, dict[str, Any] | Dropped]]:
    """Yield (place, row) of a shard, read in batches.

    Raises RoboAlignError if it is broken or has another schema.
    """
    number = 0
    try:
        file = pq.ParquetFile(part.file, **STREAMED)
        if missing := [name for name in columns if name not in file.schema_arrow.names]:
            raise RoboAlignError(
                f"no column {', '.join(missing)}",
                where=str(part.file),
                fix="give a folder of conversation shards",
            )
        schema = pa.schema([ROW.field(name) for name in columns])
        for batch in file.iter_batches(ROWS, columns=columns):
            for row in batch.select(columns).cast(schema).to_pylist():
                number += 1
                place, reason = number << FRAME_BITS, wrong_with(row, special)
                yield place, Dropped(place, str(row["id"]), Fate.REFUSED, reason) if reason else row
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RoboAlignError(
            f"not a readable conversation shard ({error})",
            where=str(part.file),
            fix="write it again",
        ) from None


def require_stored_style(source: SourceConfig, prompts: str) -> None:
    """Raise RoboAlignError where stored conversations of a source are of another prompt style.

    Their manifest says so; shards without one, or with an older one, are of the default style.
    """
    stored = source.conversations or (source.pack and source.pack.teacher)
    if not stored:
        return
    path = Path(stored) / "manifest.json"
    found = read_json(path) if path.is_file() else {}
    where = f"source {source.name}, {stored}"
    require_style(found.get("prompts"), prompts, what="source", where=where)


def wrong_with(row: dict[str, Any], special: frozenset[str] = frozenset()) -> str:
    """Return why a stored conversation is unsuitable for a mixture; "" if it is suitable."""
    told, chat = row["turns"] or [], row["chat"] or []
    if row["id"] is None or any(one is None or None in one.values() for one in (*told, *chat)):
        return "a field of it is empty"
    kinds = {turn["kind"] for turn in told}
    if not kinds or kinds - set(TURN_KINDS) or len(chat) != 2 * len(told):
        return "it has no turn of a known kind"
    turns = turns_of(row)
    markers = sum(turn.question.count(IMAGE_MARK) for turn in turns)
    if markers not in (0, len(row["image_sha256"] or ())):
        return f"its questions have {markers} {IMAGE_MARK} markers, it has another number of images"
    for turn in turns:
        for text in (turn.question.replace(IMAGE_MARK, ""), turn.answer):
            if token := control_token(text, special):
                return f"a text spells {token}, which a model reads as a command"
    if "action" in kinds:
        return "it holds action tokens, of which tokenizer is not known: take the robot data itself"
    return ""


def stored_draft(source: str, row: dict[str, Any]) -> Candidate:
    """Return a stored row as a sample of this mixture, held out with its episode."""
    # An image that is missing is a fault, not a conversation without images.
    images = row["images"] or [None] * len(row["image_sha256"] or ())
    conversation = Conversation(
        f"{source}/{row['id']}",
        row["episode_id"] or "",
        row["frame"] or 0,
        row["task"] or source,
        tuple((image or {}).get("bytes") or b"" for image in images),
        turns_of(row),
    )
    return Candidate(conversation, group=row["episode_id"] or "")
