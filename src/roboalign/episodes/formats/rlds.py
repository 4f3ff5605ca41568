"""RLDS data sets in TFDS folders (features.json, dataset_info.json, *.tfrecord-*-of-*) as a stream of `Episode`s."""

import io
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json
from roboalign.core.outcomes import Fault
from roboalign.episodes.episode import Camera, Episode
from roboalign.episodes.formats.tfrecord import AGAIN, Record, Values, parse_example, read_tfrecord


@dataclass(frozen=True)
class Feature:
    """A leaf of features.json. `kind` is numbers, text, image (three channels, encoded) or other."""

    kind: str
    width: int = 0
    """Of numbers: values a step."""


Features = dict[str, Feature]


@dataclass(frozen=True)
class KnownSet:
    """What RLDS files do not record, of a data set that is known by name."""

    fps: float
    state: tuple[str, ...]


KNOWN = {
    "bridge": KnownSet(5.0, ("state",)),
    "droid": KnownSet(15.0, ("cartesian_position", "gripper_position")),
}
DEFAULT_STATES = ("state", "proprio")
INSTRUCTION = re.compile(r"(natural_)?language_instruction(_\d+)?")
SHARD = re.compile(r"(?P<set>.+)-(?P<split>[^-]+)\.tfrecord-(?P<number>\d{5})-of-(?P<count>\d{5})")
FOLDER = (
    "give the folder that holds features.json and the tfrecord files, such as bridge_dataset/1.0.0"
)
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


@dataclass(frozen=True)
class Layout:
    """Where the parts of an episode lie in a record: paths such as `steps/action`."""

    name: str
    fps: float
    actions: tuple[str, ...]
    state: tuple[str, ...]
    instructions: tuple[str, ...]
    images: dict[str, str]
    """camera -> path"""
    widths: dict[str, int]
    """path of a numeric feature -> values a step"""


@dataclass(frozen=True)
class Split:
    """A split, its files by shard number, how many there should be, and records a shard where that is known."""

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
) -> Iterator[Episode | Fault]:
    """The episodes of one RLDS data set, one at a time: all splits in name order, or only `split`.

    `folder` holds features.json. `fps` is needed unless the data set's name begins with bridge (5) or droid (15).
    `action` and `state` name numeric features, `action` below steps/, `state` below steps/observation/ or steps/;
    several are joined in that order (`action=["action_dict/joint_velocity", "action_dict/gripper_position"]`), and
    `state=()` reads none. Without `state` it is that of the known set, else `state` or `proprio`, whichever there is.
    `instruction` names a text feature; without it the first that is not empty of language_instruction,
    language_instruction_2, ... and natural_language_instruction counts. An empty instruction stays "", and
    `instruction=""` reads none.

    Every image feature of three channels below steps/ is a camera; its files stay as stored, also where all are black.
    Episode ids are `<data set>/<split>/<shard file>/<record>`.

    Raises RoboAlignError where the folder, a name or the fps does not fit. Faults in the stream: a broken record or
    episode, and what is promised but not there (shards `-of-N`, a split of dataset_info.json, records of a shard):
    often one has only a part of a data set, and that part is good.
    """
    folder = Path(folder)
    name, lengths = read_info(folder / "dataset_info.json")
    features = read_features(folder / "features.json")
    layout = find_layout(
        name, features, str(folder / "features.json"), fps, action, state, instruction
    )
    return read_splits(find_splits(folder, lengths, split), layout, folder)


def read_info(path: Path) -> tuple[str, dict[str, tuple[int, ...]]]:
    """The data set's name, and the number of records of each shard of each split."""
    info = read_json(path, fix=FOLDER)
    try:
        name, file_format = info["name"], info.get("fileFormat", "tfrecord")
        lengths = {
            item["name"]: tuple(int(n) for n in item.get("shardLengths", ()))
            for item in info.get("splits", ())
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        raise RoboAlignError(
            "not the description of a TFDS data set", where=str(path), fix=AGAIN
        ) from None
    if file_format != "tfrecord":
        fix = "prepare the data set again with file_format='tfrecord'"
        raise RoboAlignError(
            f"the files are {file_format}, this reads tfrecord", where=str(path), fix=fix
        )
    return str(name), lengths


def read_features(path: Path) -> Features:
    """features.json as path of a leaf -> what it is, in name order."""
    tree = read_json(path, fix=FOLDER)
    try:
        if "sequence" not in tree["featuresDict"]["features"]["steps"]:
            raise ValueError("no sequence of steps")
        return flat_features(tree)
    except (AttributeError, KeyError, TypeError, ValueError):
        fix = "download it again; where an old TFDS wrote it, prepare the data set with a newer one"
        raise RoboAlignError(
            "not the features of an RLDS data set", where=str(path), fix=fix
        ) from None


def flat_features(feature: dict[str, Any], path: str = "") -> Features:
    """The leaves below one feature. The steps are one level: `steps/action`."""
    if path == "steps" and "sequence" in feature:
        return flat_features(feature["sequence"]["feature"], path)
    if "featuresDict" not in feature:
        return {path: leaf(feature)}
    children = sorted(feature["featuresDict"]["features"].items())
    flat = [flat_features(child, f"{path}/{name}" if path else name) for name, child in children]
    return {key: value for part in flat for key, value in part.items()}


def leaf(feature: dict[str, Any]) -> Feature:
    """What one leaf is. Numbers of open shape or stored encoded, depth maps and the like are `other`."""
    tensor = feature.get("tensor") or {}
    dtype = tensor.get("dtype", "")
    if "text" in feature or dtype in ("string", "object"):
        return Feature("text")
    if "image" in feature:
        channels = feature["image"].get("shape", {}).get("dimensions", ["3"])[-1:]
        return Feature("image" if channels == ["3"] else "other")
    sizes = [int(size) for size in tensor.get("shape", {}).get("dimensions", ())]
    plain = tensor.get("encoding", "none").lower() == "none" and all(size > 0 for size in sizes)
    if plain and re.fullmatch(r"(bfloat|float|u?int)\d+|bool", dtype):
        return Feature("numbers", math.prod(sizes))
    return Feature("other")


# Which feature is what ------------------------------------------------------------------------------------------------


def find_layout(
    name: str,
    features: Features,
    where: str,
    fps: float | None,
    action: str | Sequence[str],
    state: str | Sequence[str] | None,
    instruction: str | None,
) -> Layout:
    """The layout of the data set `name`. Raises RoboAlignError naming the argument that is missing or wrong."""
    known = next(
        (value for key, value in KNOWN.items() if re.fullmatch(rf"{key}(\d*|_.*)", name)), None
    )
    fps = fps if fps is not None else known.fps if known else None
    if fps is None:
        raise RoboAlignError(
            f"RLDS files do not record the control rate, and that of {name!r} is not known",
            where=where,
            fix="give it as fps=, steps a second",
        )
    if not 0 < fps < math.inf:
        raise RoboAlignError(
            f"fps is {fps}", where="fps", fix="give the control rate, steps a second"
        )
    below = {path: feature for path, feature in features.items() if path.startswith("steps/")}
    widths = {path: feature.width for path, feature in below.items() if feature.kind == "numbers"}
    images = [path for path, feature in below.items() if feature.kind == "image"]
    if state is None:
        state = default_state(widths, known, where)
    return Layout(
        name=name,
        fps=float(fps),
        actions=named(action, ("steps/",), widths, "action", where),
        state=named(state, ("steps/observation/", "steps/"), widths, "state", where),
        instructions=find_instructions(features, instruction, where),
        images={path.removeprefix("steps/").removeprefix("observation/"): path for path in images},
        widths=widths,
    )


def default_state(widths: dict[str, int], known: KnownSet | None, where: str) -> tuple[str, ...]:
    """The names of the state where the caller gives none."""
    if known and all(f"steps/observation/{name}" in widths for name in known.state):
        return known.state
    found = [name for name in DEFAULT_STATES if f"steps/observation/{name}" in widths]
    if len(found) != 1:
        problem = (
            f"both {' and '.join(found)} could be the state"
            if found
            else "no observation is called state"
        )
        raise RoboAlignError(
            f"{problem}; numeric features are {short_names(widths)}",
            where=where,
            fix="name one or several with state=, or give state=() for none",
        )
    return (found[0],)


def named(
    names: str | Sequence[str],
    bases: Sequence[str],
    widths: dict[str, int],
    argument: str,
    where: str,
) -> tuple[str, ...]:
    """The paths of the numeric features called `names`, each below the first of `bases` that holds it."""
    paths = []
    for name in (names,) if isinstance(names, str) else tuple(names):
        found = [base + name for base in bases if base + name in widths]
        if not found:
            raise RoboAlignError(
                f"no numeric feature {bases[0]}{name}; there are {short_names(widths)}",
                where=where,
                fix=f"name one or several of them with {argument}=",
            )
        paths.append(found[0])
    if not paths and argument == "action":
        raise RoboAlignError(
            "no action is named", where="action", fix=f"name some of {short_names(widths)}"
        )
    return tuple(paths)


def short_names(widths: dict[str, int]) -> list[str]:
    """Paths without steps/, for messages."""
    return [path.removeprefix("steps/") for path in widths]


def find_instructions(features: Features, instruction: str | None, where: str) -> tuple[str, ...]:
    """The paths of the text features that may hold the instruction, in order of preference."""
    texts = [path for path, feature in features.items() if feature.kind == "text"]
    if instruction == "":
        return ()
    if instruction is None:
        found = [path for path in texts if INSTRUCTION.fullmatch(path.rsplit("/", 1)[-1])]
    else:
        found = [path for path in (f"steps/{instruction}", instruction) if path in texts][:1]
    others = [path for path in texts if path.startswith("steps/")]
    if not found and (instruction is not None or others):
        wanted = (
            f"called {instruction}"
            if instruction is not None
            else "that is clearly the instruction"
        )
        fix = "name one of them with instruction=, or give instruction='' for none"
        raise RoboAlignError(f"no text feature {wanted}; there are {texts}", where=where, fix=fix)
    return tuple(found)


# Which file holds what ------------------------------------------------------------------------------------------------


def find_splits(
    folder: Path, lengths: dict[str, tuple[int, ...]], wanted: str | None
) -> list[Split]:
    """The splits that have files or are promised by dataset_info.json (`lengths`), in name order."""
    paths: dict[str, dict[int, Path]] = defaultdict(dict)
    counts: dict[str, set[int]] = defaultdict(set)
    for path in sorted(folder.iterdir()):
        if match := SHARD.fullmatch(path.name):
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


def read_splits(splits: list[Split], layout: Layout, folder: Path) -> Iterator[Episode | Fault]:
    """The episodes of the splits; before those of each, a Fault where some of its shards are missing."""
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
    path: Path, split: str, layout: Layout, expected: int | None
) -> Iterator[Episode | Fault]:
    """The episodes of one file, which should hold `expected` of them."""
    count, item = 0, None
    for item in read_tfrecord(path):
        count += 1
        if isinstance(item, Fault):
            yield item
            continue
        where = f"{path}, record {item.number}"
        try:
            episode = read_episode(
                item, layout, f"{layout.name}/{split}/{path.name}/{item.number}", where
            )
        except RoboAlignError as error:
            yield Fault(error.where, error.problem, error.fix)
        else:
            yield episode
    if expected is not None and count != expected and not isinstance(item, Fault):
        yield Fault(str(path), f"{count} records, dataset_info.json says {expected}", AGAIN)


# One episode ----------------------------------------------------------------------------------------------------------


def read_episode(record: Record, layout: Layout, episode_id: str, where: str) -> Episode:
    """The episode in one record. Raises RoboAlignError where it is not what features.json says."""
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
    images = {
        camera: image_files(values, path, steps, where) for camera, path in layout.images.items()
    }
    instruction = find_instruction(values, layout.instructions, steps, where)
    return Episode(
        episode_id=episode_id,
        task=instruction or layout.name,
        instruction=instruction,
        fps=layout.fps,
        actions=actions,
        state=state,
        images=images,
        cameras={camera: measured(camera, files[0], where) for camera, files in images.items()},
    )


def numbers(
    values: dict[str, Values], paths: Sequence[str], widths: dict[str, int], where: str
) -> np.ndarray:
    """float32 [T, D]: the features `paths` side by side."""
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
    """The image files of one camera, one a step."""
    files = values.get(path)
    if not isinstance(files, list) or len(files) != steps:
        raise RoboAlignError(
            f"{path} has {0 if files is None else len(files)} images for {steps} steps", where=where
        )
    for step, file in enumerate(files):
        if not file.startswith(SIGNATURES):
            raise RoboAlignError(f"{path} is neither JPEG nor PNG at step {step}", where=where)
    return files


def measured(camera: str, file: bytes, where: str) -> Camera:
    """The camera with the size that its first image has; features.json may leave it open."""
    try:
        width, height = Image.open(io.BytesIO(file)).size
    except (OSError, SyntaxError, ValueError) as error:
        raise RoboAlignError(
            f"the first image of {camera} is broken ({error})", where=where
        ) from None
    return Camera(camera, width, height)


def find_instruction(
    values: dict[str, Values], paths: Sequence[str], steps: int, where: str
) -> str:
    """The first instruction that is not empty, else "". One that changes within the episode is refused."""
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
