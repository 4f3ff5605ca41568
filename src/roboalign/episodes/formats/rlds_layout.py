"""Map the features of an RLDS data set, in features.json, to the parts of an episode."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json
from roboalign.episodes import pictures

FOLDER = (
    "give the folder that holds features.json and the tfrecord files, such as bridge_dataset/1.0.0"
)


@dataclass(frozen=True)
class Feature:
    """A leaf of features.json. `kind` is numbers, text, image (an encoded file), pixels (an array)
    or other."""

    kind: str
    width: int = 0
    """For numbers and pixels: values per step."""
    why: str = ""
    """For what looks like a picture but is not: the reason."""
    shape: tuple[int, ...] = ()
    dtype: str = ""
    encoding: str = "none"
    """For pixels: none (a list of numbers), bytes or zlib (one string per step)."""

    @property
    def layout(self) -> pictures.PixelLayout:
        """For pixels: how one picture is stored."""
        found = pictures.layout_of("", self.shape, self.dtype)
        assert isinstance(found, pictures.PixelLayout)
        return found


_Features = dict[str, Feature]


@dataclass(frozen=True)
class KnownSet:
    """Facts about a data set, known by name, that RLDS files do not record."""

    fps: float
    state: tuple[str, ...]


_KNOWN = {
    "bridge": KnownSet(5.0, ("state",)),
    "droid": KnownSet(15.0, ("cartesian_position", "gripper_position")),
}
_DEFAULT_STATES = ("state", "proprio")
INSTRUCTION = re.compile(r"(natural_)?language_instruction(_\d+)?")


@dataclass(frozen=True)
class StepLayout:
    """Locations of the parts of an episode in a record: paths such as `steps/action`."""

    name: str
    fps: float
    actions: tuple[str, ...]
    state: tuple[str, ...]
    instructions: tuple[str, ...]
    images: dict[str, str]
    """camera -> path of an encoded image or of pixels"""
    pixels: dict[str, Feature]
    """path of pixels -> how they are stored"""
    widths: dict[str, int]
    """path of a numeric feature -> values per step"""


def read_features(path: Path) -> _Features:
    """Return features.json as path of a leaf -> its description, in name order."""
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


def flat_features(feature: dict[str, Any], path: str = "") -> _Features:
    """Return the leaves below one feature. The steps are one level: `steps/action`."""
    if path == "steps" and "sequence" in feature:
        return flat_features(feature["sequence"]["feature"], path)
    if "featuresDict" not in feature:
        return {path: leaf(feature, path.rsplit("/", 1)[-1])}
    children = sorted(feature["featuresDict"]["features"].items())
    flat = [flat_features(child, f"{path}/{name}" if path else name) for name, child in children]
    return {key: value for part in flat for key, value in part.items()}


def leaf(feature: dict[str, Any], name: str) -> Feature:
    """Return the description of one leaf called `name`. Numbers of open shape, depth maps and the
    like are `other`."""
    tensor = feature.get("tensor") or {}
    dtype = tensor.get("dtype", "")
    if "text" in feature or dtype in ("string", "object"):
        return Feature("text")
    if "image" in feature:
        return image_leaf(feature["image"], name)
    sizes = tuple(int(size) for size in tensor.get("shape", {}).get("dimensions", ()))
    encoding = tensor.get("encoding", "none").lower()
    if not all(size > 0 for size in sizes):
        return Feature("other")
    width = math.prod(sizes)
    if re.fullmatch(r"(float|u?int)\d+", dtype) and encoding in ("none", "bytes", "zlib"):
        found = pictures.layout_of(name, sizes, dtype)
        if isinstance(found, pictures.PixelLayout):
            return Feature("pixels", width, shape=sizes, dtype=dtype, encoding=encoding)
        if found:
            return Feature("other", why=found)
    if encoding == "none" and re.fullmatch(r"(bfloat|float|u?int)\d+|bool", dtype):
        return Feature("numbers", width)
    return Feature("other")


def image_leaf(image: dict[str, Any], name: str) -> Feature:
    """Describe an encoded image; over 8 bits, or named depth or mask, it is not a color image."""
    if image.get("dtype", "uint8") != "uint8":
        return Feature("other", why=f"an image of {image['dtype']}: depth, not color")
    if pictures.NOT_COLOR.search(name.lower()):
        return Feature("other", why="its name says that it is no color image")
    return Feature("image")


def find_layout(
    name: str,
    features: _Features,
    where: str,
    fps: float | None,
    action: str | Sequence[str],
    state: str | Sequence[str] | None,
    instruction: str | None,
) -> StepLayout:
    """Return the layout of the data set `name`. Raises RoboAlignError naming the argument that is
    missing or wrong."""
    known = next(
        (value for key, value in _KNOWN.items() if re.fullmatch(rf"{key}(\d*|_.*)", name)), None
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
    images = [path for path, feature in below.items() if feature.kind in ("image", "pixels")]
    if state is None:
        state = default_state(widths, known, where)
    return StepLayout(
        name=name,
        fps=float(fps),
        actions=named(action, ("steps/",), widths, "action", where),
        state=named(state, ("steps/observation/", "steps/"), widths, "state", where),
        instructions=find_instructions(features, instruction, where),
        pixels={path: feature for path, feature in below.items() if feature.kind == "pixels"},
        images={path.removeprefix("steps/").removeprefix("observation/"): path for path in images},
        widths=widths,
    )


def default_state(widths: dict[str, int], known: KnownSet | None, where: str) -> tuple[str, ...]:
    """Return the names of the state if the caller gives none."""
    if known and all(f"steps/observation/{name}" in widths for name in known.state):
        return known.state
    found = [name for name in _DEFAULT_STATES if f"steps/observation/{name}" in widths]
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
    """Return the paths of the numeric features `names`, each below the first of `bases` with it."""
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
    """Return paths without steps/, for messages."""
    return [path.removeprefix("steps/") for path in widths]


def find_instructions(features: _Features, instruction: str | None, where: str) -> tuple[str, ...]:
    """Return the paths of the text features that may be the instruction, in order of preference."""
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


def notes_of(features: _Features) -> tuple[str, ...]:
    """Return a sentence for each feature that looks like a picture and is left out."""
    return tuple(
        f"Feature {path.removeprefix('steps/')} is left out of the cameras: {feature.why}"
        for path, feature in features.items()
        if feature.why and path.startswith("steps/")
    )
