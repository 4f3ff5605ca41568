"""Read RLDS data sets in TFDS folders as a stream of `Episode`s. A folder has features.json,
dataset_info.json and *.tfrecord-*-of-*."""

import re
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json
from roboalign.core.outcomes import Fault
from roboalign.episodes.episode import Camera, Episode, content_id
from roboalign.episodes.formats.arrays import PngFrames
from roboalign.episodes.formats.rlds_layout import (
    FOLDER,
    Feature,
    StepLayout,
    find_layout,
    notes_of,
    read_features,
)
from roboalign.episodes.formats.tfrecord import (
    FETCH_FILE_AGAIN,
    TfRecord,
    Values,
    parse_example,
    read_tfrecord,
)
from roboalign.episodes.pictures import size_of_file
from roboalign.episodes.robot_data import About

_SHARD = re.compile(r"(?P<set>.+)-(?P<split>[^-]+)\.tfrecord-(?P<number>\d{5})-of-(?P<count>\d{5})")
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


@dataclass(frozen=True)
class Split:
    """A split: its files by shard number, their expected number, known records per shard."""

    name: str
    paths: dict[int, Path]
    count: int
    lengths: tuple[int, ...]


def read_rlds(
    folder: str | Path,
    *,
    split: str | None = None,
    fps: float | None = None,
    action: str | Sequence[str] = "action",
    state: str | Sequence[str] | None = None,
    instruction: str | None = None,
    name: str | None = None,
) -> Iterator[Episode | Fault]:
    """Yield the episodes of one RLDS data set: all splits in name order, or only `split`.

    `folder` contains features.json. `fps` is required unless the data set's name begins with bridge
    (5) or droid (15). `action` and `state` name numeric features, `action` below steps/, `state`
    below steps/observation/ or steps/; several are joined in that order
    (`action=["action_dict/joint_velocity", "action_dict/gripper_position"]`), and `state=()` reads
    none. The default `state` is that of the known set, else `state` or `proprio`, whichever exists.
    `instruction` names a text feature; the default is the first nonempty one of
    language_instruction, language_instruction_2, ... and natural_language_instruction. An empty
    instruction stays "", and `instruction=""` reads none. `name` chooses the data set if the folder
    has files of several.

    Every image feature below steps/ is a camera, and so is every tensor that contains a picture
    (`pictures.layout_of`). Image files stay as stored, even if all are black; a tensor frame is
    encoded as PNG on request. Episode ids are `<data set>/<split>/<shard file>/<record>-<digest of
    its actions>`.

    Raises RoboAlignError if the folder, a name or the fps does not fit. Faults in the stream are a
    broken record or episode, and what is declared but missing (shards `-of-N`, a split of
    dataset_info.json, records of a shard): users often have only an intact part of a data set.
    """
    folder = Path(folder)
    described, lengths = _read_info(folder / "dataset_info.json")
    chosen = choose_set(folder, described, name)
    features = read_features(folder / "features.json")
    layout = find_layout(
        chosen or described,
        features,
        str(folder / "features.json"),
        fps,
        action,
        state,
        instruction,
    )
    if chosen and chosen != described:
        lengths = {}
    return read_splits(find_splits(folder, lengths, split, chosen), layout, folder)


def about_rlds(
    folder: str | Path, *, split: str | None = None, name: str | None = None, **_: Any
) -> About:
    """Return what a user must know about how `read_rlds` reads this data set."""
    folder = Path(folder)
    notes = notes_of(read_features(folder / "features.json"))
    try:
        described, lengths = _read_info(folder / "dataset_info.json")
        chosen = choose_set(folder, described, name)
        lengths = {} if chosen and chosen != described else lengths
        splits = find_splits(folder, lengths, split, chosen)
    except RoboAlignError:  # the reader names it
        return About(notes=notes)
    known = all(len(one.lengths) == one.count for one in splits)
    there = [one.lengths[number] for one in splits for number in one.paths] if known else []
    return About(notes=notes, episodes=sum(there) or None)


def _read_info(path: Path) -> tuple[str, dict[str, tuple[int, ...]]]:
    """Return the data set's name, and the number of records of each shard of each split."""
    info = read_json(path, fix=FOLDER)
    try:
        name, file_format = info["name"], info.get("fileFormat", "tfrecord")
        lengths = {
            item["name"]: tuple(int(n) for n in item.get("shardLengths", ()))
            for item in info.get("splits", ())
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        raise RoboAlignError(
            "not the description of a TFDS data set", where=str(path), fix=FETCH_FILE_AGAIN
        ) from None
    if file_format != "tfrecord":
        fix = "prepare the data set again with file_format='tfrecord'"
        raise RoboAlignError(
            f"the files are {file_format}, this reads tfrecord", where=str(path), fix=fix
        )
    return str(name), lengths


# Which file holds what ------------------------------------------------------------------------------------------------


def choose_set(folder: Path, described: str, name: str | None) -> str | None:
    """Return the data set to read; None if there is only one and none is named. Raises
    RoboAlignError if there are several and none is named, or `name` is none of them."""
    there = sorted({match["set"] for p in folder.iterdir() if (match := _SHARD.fullmatch(p.name))})
    if name is not None and name not in there:
        raise RoboAlignError(
            f"no files of the data set {name!r}; there are {there}",
            where=str(folder),
            fix="name one of these with name=",
        )
    if name is None and len(there) > 1:
        raise RoboAlignError(
            f"the files of {len(there)} data sets are in one folder: {', '.join(there)}; "
            f"dataset_info.json is of {described}",
            where=str(folder),
            fix="choose one with --read name=NAME, or put each into a folder of its own",
        )
    return name


def find_splits(
    folder: Path, lengths: dict[str, tuple[int, ...]], wanted: str | None, name: str | None
) -> list[Split]:
    """Return the splits with files or declared by dataset_info.json (`lengths`), in name order.
    With `name`, files of other data sets are ignored."""
    paths: dict[str, dict[int, Path]] = defaultdict(dict)
    counts: dict[str, set[int]] = defaultdict(set)
    for path in sorted(folder.iterdir()):
        match = _SHARD.fullmatch(path.name)
        if match and name in (None, match["set"]):
            paths[match["split"]][int(match["number"])] = path
            counts[match["split"]].add(int(match["count"]))
    if not paths or (wanted is not None and wanted not in paths):
        problem = (
            f"no files of the split {wanted!r}; there are {sorted(paths)}"
            if paths
            else "no tfrecord files"
        )
        raise RoboAlignError(
            problem, where=str(folder), fix="give another split, or download the files of this one"
        )
    for name, found in counts.items():
        if len(found) > 1:
            raise RoboAlignError(
                f"the files of the split {name} come from several versions: of {sorted(found)} shards",
                where=str(folder),
                fix="keep the files of one version",
            )
    names = sorted({*paths, *lengths}) if wanted is None else [wanted]
    return [
        Split(
            name,
            paths[name],
            min(counts[name], default=len(lengths.get(name, ()))),
            lengths.get(name, ()),
        )
        for name in names
    ]


def read_splits(splits: list[Split], layout: StepLayout, folder: Path) -> Iterator[Episode | Fault]:
    """Yield the episodes of the splits; a Fault precedes a split with missing shards."""
    for split in splits:
        missing = [number for number in range(split.count) if number not in split.paths]
        if missing or not split.count:
            which = ", ".join(f"{number:05d}" for number in missing[:5]) + (
                ", ..." if len(missing) > 5 else ""
            )
            problem = (
                f"{len(missing)} of {split.count} shards are missing ({which})"
                if missing
                else "it has no files"
            )
            yield Fault(
                f"{folder}, split {split.name}",
                problem,
                "download them, or name the splits to read: split=",
            )
        for number, path in sorted(split.paths.items()):
            expected = split.lengths[number] if len(split.lengths) == split.count else None
            yield from read_shard(path, split.name, layout, expected)


def read_shard(
    path: Path, split: str, layout: StepLayout, expected: int | None
) -> Iterator[Episode | Fault]:
    """Yield the episodes of one file, which should contain `expected` of them."""
    count, item = 0, None
    for item in read_tfrecord(path):
        count += 1
        if isinstance(item, Fault):
            yield item
            continue
        where = f"{path}, record {item.number}"
        try:
            episode = _read_episode(
                item, layout, f"{layout.name}/{split}/{path.name}/{item.number}", where
            )
        except RoboAlignError as error:
            yield Fault(error.where, error.problem, error.fix)
        else:
            yield episode
    if expected is not None and count != expected and not isinstance(item, Fault):
        yield Fault(
            str(path), f"{count} records, dataset_info.json says {expected}", FETCH_FILE_AGAIN
        )


# One episode ----------------------------------------------------------------------------------------------------------


def _read_episode(record: TfRecord, layout: StepLayout, name: str, where: str) -> Episode:
    """Return the episode in one record; `name` begins its id. Raises RoboAlignError if it does not
    match features.json."""
    values = parse_example(record.data, where)
    actions = numbers(values, layout.actions, layout.widths, where)
    steps = len(actions)
    if not steps:
        raise RoboAlignError("the episode has no steps", where=where)
    state = (
        numbers(values, layout.state, layout.widths, where)
        if layout.state
        else np.zeros((steps, 0), np.float32)
    )
    if len(state) != steps:
        raise RoboAlignError(f"{steps} actions, but {len(state)} states", where=where)
    images: dict[str, Sequence[bytes]] = {}
    cameras: dict[str, Camera] = {}
    for camera, path in layout.images.items():
        if feature := layout.pixels.get(path):
            images[camera] = pixel_frames(values, path, feature, steps, where)
            cameras[camera] = Camera(camera, feature.layout.width, feature.layout.height)
        else:
            images[camera] = image_files(values, path, steps, where)
            cameras[camera] = measured(camera, images[camera][0], where)
    instruction = _find_instruction(values, layout.instructions, steps, where)
    return Episode(
        episode_id=content_id(name, actions),
        task=instruction or layout.name,
        instruction=instruction,
        fps=layout.fps,
        actions=actions,
        state=state,
        images=images,
        cameras=cameras,
    )


def numbers(
    values: dict[str, Values], paths: Sequence[str], widths: dict[str, int], where: str
) -> np.ndarray:
    """Return float32 [T, D]: the features `paths`, concatenated."""
    columns = []
    for path in paths:
        flat = values.get(path)
        if not isinstance(flat, np.ndarray):
            raise RoboAlignError(
                f"{path} {'is missing' if path not in values else 'holds no numbers'}", where=where
            )
        if len(flat) % widths[path]:
            raise RoboAlignError(
                f"{path} has {len(flat)} values, no multiple of {widths[path]}", where=where
            )
        columns.append(flat.reshape(-1, widths[path]).astype(np.float32))
        if len(columns[-1]) != len(columns[0]):
            raise RoboAlignError(
                f"{path} has {len(columns[-1])} steps, {paths[0]} {len(columns[0])}", where=where
            )
        if not np.isfinite(columns[-1]).all():
            step = int(np.argwhere(~np.isfinite(columns[-1]))[0][0])
            raise RoboAlignError(f"{path} is not finite at step {step}", where=where)
    return np.concatenate(columns, axis=1)


def image_files(values: dict[str, Values], path: str, steps: int, where: str) -> list[bytes]:
    """Return the image files of one camera, one per step."""
    files = values.get(path)
    if not isinstance(files, list) or len(files) != steps:
        raise RoboAlignError(
            f"{path} has {0 if files is None else len(files)} images for {steps} steps", where=where
        )
    for step, file in enumerate(files):
        if not file.startswith(SIGNATURES):
            raise RoboAlignError(f"{path} is neither JPEG nor PNG at step {step}", where=where)
    return files


def pixel_frames(
    values: dict[str, Values], path: str, feature: Feature, steps: int, where: str
) -> PngFrames:
    """Return the pictures of one camera stored as a tensor, one per step."""
    stored = values.get(path)
    if stored is None or (isinstance(stored, list) != (feature.encoding != "none")):
        raise RoboAlignError(f"{path} is missing, or not stored as features.json says", where=where)
    try:
        array = unpacked(stored, feature, steps)
    except ValueError as error:
        raise RoboAlignError(f"{path}: {error}", where=where) from None
    layout = feature.layout
    return PngFrames(steps, lambda t: layout.rgb(array[t], f"{where}, {path}, step {t}"))


def unpacked(stored: Values, feature: Feature, steps: int) -> np.ndarray:
    """Return [T, ...] of a tensor feature. Raises ValueError on a wrong size or values."""
    dtype = np.dtype(feature.dtype)
    if isinstance(stored, list):
        size = feature.width * dtype.itemsize
        if feature.encoding == "zlib":
            stored = [inflated(item, size) for item in stored]
        if len(stored) != steps or any(len(item) != size for item in stored):
            raise ValueError(f"expected {steps} pictures of {size} bytes")
        flat = np.frombuffer(b"".join(stored), dtype)
    else:
        flat = stored
        if len(flat) != steps * feature.width:
            raise ValueError(f"{len(flat)} values, expected {steps} x {feature.width}")
        if dtype.kind == "u" and (flat.min() < 0 or flat.max() > np.iinfo(dtype).max):
            raise ValueError(f"values outside of {dtype}")
    return flat.astype(dtype).reshape(steps, *feature.shape)


def inflated(data: bytes, size: int) -> bytes:
    """Decompress zlib data that should be `size` bytes; stop one byte after that."""
    try:
        return zlib.decompressobj().decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(f"not zlib data ({error})") from None


def measured(camera: str, file: bytes, where: str) -> Camera:
    """Return the camera with the size of its first image; features.json may leave it open."""
    try:
        width, height = size_of_file(file)
    except RoboAlignError as error:
        problem = f"the first image of {camera} is {error.problem}"
        raise RoboAlignError(problem, where=where, fix=error.fix) from None
    return Camera(camera, width, height)


def _find_instruction(
    values: dict[str, Values], paths: Sequence[str], steps: int, where: str
) -> str:
    """Return the first nonempty instruction, else ""; refuse one that changes in the episode."""
    for path in paths:
        texts = values.get(path)
        if not isinstance(texts, list) or len(texts) != (steps if path.startswith("steps/") else 1):
            raise RoboAlignError(f"{path} does not have one text a step", where=where)
        if len(set(texts)) > 1:
            step = next(t for t, text in enumerate(texts) if text != texts[0])
            raise RoboAlignError(
                f"{path} changes at step {step}", where=where, fix="split the episode there"
            )
        try:
            text = texts[0].decode()
        except UnicodeDecodeError:
            raise RoboAlignError(f"{path} is not UTF-8", where=where) from None
        if text.strip():
            return text
    return ""
