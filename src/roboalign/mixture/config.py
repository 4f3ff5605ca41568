"""Define the mixture file: the sources, samples of each, and what training must exclude."""

import difflib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from roboalign.actions.normalize import Method
from roboalign.conversations.qa.normal import Style
from roboalign.conversations.styles.base import DEFAULT_STYLE, StyleName
from roboalign.core.config import Config, Seed
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json
from roboalign.core.hub import pinned
from roboalign.core.yaml import read_yaml
from roboalign.episodes.frame_file import FrameFile
from roboalign.mixture.holdout import HeldoutConfig, HoldoutConfig, NearConfig
from roboalign.mixture.sources.pack import PackConfig

PLACES = ("robot", "preset", "qa", "conversations")
FIELDS_OF = {
    "robot": {"robot", "named", "format", "read", "space", "camera", "frames", "pack"},
    "preset": {"preset", "path"},
    "qa": {"qa", "layout", "images", "links", "answers"},
    "conversations": {"conversations"},
}
_START = "start from recipes/mixtures/bridge-tiny.yaml"
KIND_OF = {"robot": ("action",), "qa": ("general", "embodied", "reasoning")}


class AnswersConfig(Config):
    """How to convert the answers of a question-answering file to the normal form."""

    kinds: tuple[Literal["points", "boxes", "choice"], ...] = ()
    """What the answers contain besides free text."""
    style: Style | None = None
    """Coordinate style of points and boxes; pixels refer to the image as stored."""


class SourceConfig(Config):
    """One source of samples.

    It has exactly one of `robot`, `preset`, `qa` and `conversations`, and one of `count` and
    `weight`.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the source; it prefixes the ids of its samples and affects which are drawn."""
    robot: str | None = None
    """Robot data of any format: each of its frames is an action sample."""
    named: str | None = None
    """For robot data: the path in the mixture file, recorded if `--at` gives another. Ids that
    contain a folder name use that of this path, so that they do not depend on where the data is
    stored."""
    preset: str | None = None
    """A source of the paper (qa/presets.py) or of an installed package, downloaded to `path`."""
    qa: str | None = None
    """A .json, .jsonl or .parquet file of questions and answers."""
    conversations: str | None = None
    """A folder of conversation shards (train-*.parquet): a mixture, generated questions, distilled reasoning."""
    count: int | None = Field(None, ge=1)
    """Number of its samples; a sample is one record, conversation or action."""
    weight: float | None = Field(None, gt=0, le=1e12)
    """Share of what `total` leaves for the sources without a count, relative to their weights."""
    repeat: bool = False
    """Whether to repeat a source that has fewer samples than requested."""
    kind: Literal["general", "embodied", "reasoning", "action"] | None = None
    """For a qa file: general (the default), embodied or reasoning. A robot source is action."""
    path: str | None = None
    """For a preset: its download folder."""
    layout: str = "llava"
    """For a qa file: messages, llava, sharegpt or pairs."""
    images: str | None = None
    """For a qa file: the folder, .zip or .tar of its images; by default the file's own folder."""
    links: bool = False
    """For a qa file: whether an image may be a link that leaves the image folder."""
    answers: AnswersConfig = AnswersConfig()
    """For a qa file: how its answers are written."""
    format: str | None = None
    """For robot data: its format, if the files do not show it."""
    read: dict[str, Any] = Field(default_factory=dict)
    """For robot data: options of the format's reader, for example {fps: 5}."""
    space: str | None = None
    """For robot data: what its actions mean, by name."""
    camera: str | tuple[str, ...] | None = None
    """For robot data: the camera, required if there are several; a list shows one image of each."""
    frames: FrameFile = FrameFile()
    """For robot data: the image files of a video's frames, for example {format: jpeg, quality: 95}."""
    pack: PackConfig | None = None
    """For robot data: questions packed with each action, for example {max_turns: 6}; {} for the
    defaults. Without it a sample is the action alone."""

    @property
    def place(self) -> str:
        """Return which of PLACES the source is."""
        return next(name for name in PLACES if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _consistent(self) -> "SourceConfig":
        given = [name for name in PLACES if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"it has {' and '.join(given)}" if given else "it has none of them"
            raise ValueError(f"source {self.name} needs one of {', '.join(PLACES)}; {found}")
        foreign = set().union(*FIELDS_OF.values()) - FIELDS_OF[given[0]]
        defaults = {
            name: field.get_default(call_default_factory=True)
            for name, field in type(self).model_fields.items()
        }
        if strange := sorted(name for name in foreign if getattr(self, name) != defaults[name]):
            raise ValueError(
                f"source {self.name} is {given[0]}, and `{strange[0]}` does not belong to that"
            )
        if (self.preset is None) != (self.path is None):
            raise ValueError(f"source {self.name}: `preset` and `path` go together")
        if (self.count is None) == (self.weight is None):
            raise ValueError(f"source {self.name} needs either a count or a weight")
        several = self.camera is not None and not isinstance(self.camera, str)
        if self.pack and self.pack.teacher and several:
            raise ValueError(f"source {self.name}: pack.teacher needs one camera")
        if self.kind is not None and self.kind not in KIND_OF.get(given[0], ()):
            raise ValueError(f"source {self.name}: kind {self.kind} does not go with `{given[0]}`")
        return self


class TokensConfig(Config):
    """The FAST tokenizer of the action samples: an existing one, or one fitted on them."""

    path: str | None = None
    """A FAST folder, or tokenizer/ of a mixture or run, whose action statistics are then used."""
    fit: bool = False
    """Fit a tokenizer on the drawn samples."""
    horizon: int = Field(16, ge=1, le=10_000)
    """Action steps per chunk."""
    scale: float = Field(10.0, ge=1e-6, le=1e6)
    """For a fitted tokenizer: factor applied to DCT coefficients before rounding."""
    vocab_size: int = Field(1024, ge=8, le=1_000_000)
    """For a fitted tokenizer: size of its byte-pair vocabulary."""
    chunks: int = Field(100_000, ge=1)
    """Maximum chunks used to fit the statistics and the tokenizer: the first that are drawn."""
    mixed: bool = False
    """Whether sources with other dimension names or rates may share statistics without `space`."""
    statistics: Method = "quantiles"
    """Values that normalize to -1, 1: quantiles (1%, 99%), min_max, or mean_std (mean -/+ std)."""
    clip: bool = True
    """Clip normalized actions to [-1, 1], as OpenVLA does; openpi does not. Not for mean_std."""

    @model_validator(mode="after")
    def _consistent(self) -> "TokensConfig":
        if self.fit == (self.path is not None):
            raise ValueError("give the `path` of a FAST tokenizer, or `fit: true`")
        return self


class RlSubset(Config):
    """The action samples used for RL; they stay in the SFT samples too."""

    source: str
    """A robot source of the mixture."""
    count: int = Field(ge=1)
    """Number of its samples; the paper uses 12,800."""
    at_most: float = Field(0.01, gt=0, le=1)
    """Maximum share of the SFT samples; the paper uses 0.0056."""


class MixtureConfig(Config):
    """The contents of a mixture file."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    """The mixture's name."""
    seed: Seed = 0
    """Fixes every random draw."""
    prompts: StyleName = DEFAULT_STYLE
    """How questions are asked and answered (docs/explanation/prompts.md): labelled or paper."""
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    """Where the samples come from."""
    total: int | None = Field(None, ge=1)
    """Total number of samples; required if a source has a weight, else the sum of the counts."""
    tokenizer: TokensConfig | None = None
    """Required if there is a robot source."""
    rl: RlSubset | None = None
    """The RL subset."""
    heldout: HeldoutConfig | None = None
    """What is held out, written as heldout.parquet."""
    evaluation: tuple[HoldoutConfig, ...] = ()
    """What training must exclude, by image and by episode."""
    near: NearConfig = NearConfig()
    grid: int | None = Field(None, ge=4, le=1000)
    """Cells per side of the image for single points of qa sources; by default as written there."""
    shard_size: int = Field(2_000, ge=1)
    """Samples per parquet file."""
    model: str | None = None
    """A Hugging Face folder; if given, tokenized lengths of the training samples are stored."""

    @field_validator("evaluation", mode="before")
    @classmethod
    def _paths(cls, value: Any) -> Any:
        return (
            [{"path": one} if isinstance(one, str) else one for one in value]
            if isinstance(value, list)
            else value
        )

    @model_validator(mode="after")
    def _consistent(self) -> "MixtureConfig":
        names = [source.name for source in self.sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources are called {twice[0]}")
        robots = [source.name for source in self.sources if source.robot is not None]
        if bool(robots) != (self.tokenizer is not None):
            raise ValueError(
                "a mixture with a robot source needs `tokenizer`"
                if robots
                else "`tokenizer` is for robot sources, and there is none"
            )
        weights = any(source.weight is not None for source in self.sources)
        if weights != (self.total is not None):
            raise ValueError(
                "sources with a weight need `total`"
                if weights
                else "every source has a count, which makes the total: leave out `total`"
            )
        counted = sum(source.count or 0 for source in self.sources)
        if self.total is not None and self.total <= counted:
            raise ValueError(
                f"total {self.total} leaves nothing to the weights: the counts make {counted}"
            )
        if self.rl and self.rl.source not in robots:
            raise ValueError(f"rl.source {self.rl.source!r} is none of the robot sources {robots}")
        if self.rl and self.rl.count > self.rl.at_most * (self.total or counted):
            raise ValueError(
                f"rl.count {self.rl.count} is above the share {self.rl.at_most} of "
                f"{self.total or counted} samples; set rl.at_most to allow more"
            )
        return self

    def asked(self) -> list[int]:
        """Return the samples of each source: its count, or its part of the rest of the total.

        Rounded by largest remainders (the earlier source first in a tie), so that they add up to
        `total`.
        """
        left = (self.total or 0) - sum(source.count or 0 for source in self.sources)
        whole = sum(source.weight or 0.0 for source in self.sources)
        exact = [left * (source.weight or 0.0) / whole if whole else 0.0 for source in self.sources]
        floors = [int(value) for value in exact]
        order = sorted(range(len(exact)), key=lambda i: floors[i] - exact[i])
        more = set(order[: left - sum(floors)] if whole else ())
        return [source.count or floors[i] + (i in more) for i, source in enumerate(self.sources)]


def load_mixture(
    path: str | Path, at: Mapping[str, str] | None = None
) -> tuple[MixtureConfig, dict[str, Any] | None]:
    """Read (settings, manifest or None) from a mixture file or the manifest.json of one to rebuild.

    `at` is what `_moved` takes, for paths that differ on this machine. Paths are relative to the
    current folder. Raises RoboAlignError that names the key and the fix.
    """
    path = Path(path)
    if not path.is_file():
        raise RoboAlignError("no such mixture file", where=str(path), fix=_START)
    manifest = None
    if path.suffix == ".json":
        fix = "give the manifest.json that `roboalign data mix` wrote"
        manifest = read_json(path, fix=fix)
        values = manifest.get("settings") if is_manifest(manifest) else None
    else:
        fix = _START
        values = read_yaml(path, fix=fix)
    if not isinstance(values, dict):
        raise RoboAlignError("there are no settings of a mixture in it", where=str(path), fix=fix)
    try:
        config = MixtureConfig.model_validate(values)
    except ValidationError as error:
        raise _explain(error, path) from None
    return _moved(config, at or {}), manifest


def is_manifest(value: Any) -> bool:
    """Return whether this contains what a rebuilt mixture is checked against."""
    listed = ("files", "shards", "lengths")
    if not isinstance(value, dict) or value.get("kind", "sources") != "sources":
        return False
    if not all(isinstance(value.get(name), dict) for name in listed):
        return False
    evaluation = value.get("evaluation")
    return evaluation is None or (isinstance(evaluation, dict) and "sha256" in evaluation)


def _moved(config: MixtureConfig, at: Mapping[str, str]) -> MixtureConfig:
    """Return the settings with some paths replaced.

    A source is given by its name, its images by `NAME.images`, its teacher's folder by
    `NAME.teacher`; the others are `tokenizer`, `model`
    and `evaluation.0`, `evaluation.1`, ..
    """
    values = config.model_dump(mode="json")
    slots: dict[str, tuple[Any, str]] = {
        f"evaluation.{i}": (entry, "path") for i, entry in enumerate(values["evaluation"])
    }
    if config.model:
        slots["model"] = (values, "model")
    if config.tokenizer and config.tokenizer.path:
        slots["tokenizer"] = (values["tokenizer"], "path")
    for source, entry in zip(config.sources, values["sources"]):
        slots[source.name] = (entry, "path" if source.preset else source.place)
        if source.qa:
            slots[f"{source.name}.images"] = (entry, "images")
        if source.pack and source.pack.teacher:
            slots[f"{source.name}.teacher"] = (entry["pack"], "teacher")
    for name, path in at.items():
        if name not in slots:
            raise RoboAlignError(
                "the mixture names no such path",
                where=f"--at {name}",
                fix=f"name one of {', '.join(slots)}",
            )
        holder, key = slots[name]
        if key == "robot" and holder["named"] is None:
            holder["named"] = holder["robot"]
        holder[key] = path
    return MixtureConfig.model_validate(values)


def pin_mixture(config: MixtureConfig) -> MixtureConfig:
    """Return the settings with Hub ids pinned to their current commits.

    The manifest thus identifies the data. Raises RoboAlignError if one cannot be fetched.
    """

    def robot(source: SourceConfig) -> SourceConfig:
        where = f"source {source.name}"
        held = source.robot and pinned(source.robot, "data set", where=where)
        return source.model_copy(update={"robot": held})

    tokenizer = config.tokenizer
    if tokenizer and tokenizer.path:
        path = pinned(tokenizer.path, "tokenizer", where="tokenizer.path")
        tokenizer = tokenizer.model_copy(update={"path": path})
    evaluation = tuple(
        one.model_copy(update={"path": pinned(one.path, "data set", where="evaluation")})
        for one in config.evaluation
    )
    model = config.model and pinned(config.model, "settings", where="model")
    parts = {"tokenizer": tokenizer, "evaluation": evaluation, "model": model}
    return config.model_copy(update={"sources": tuple(map(robot, config.sources)), **parts})


def _explain(error: ValidationError, path: Path) -> RoboAlignError:
    """Return the first validation error as one message, with the nearest known key."""
    fault = error.errors()[0]
    key = ".".join(str(part) for part in fault["loc"])
    more = (
        f" ({error.error_count() - 1} more faults after this one)"
        if error.error_count() > 1
        else ""
    )
    if fault["type"] == "extra_forbidden":
        known = list(getattr(settings_at(fault["loc"][:-1]), "model_fields", {}))
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        fix = f"did you mean `{near[0]}`?" if near else f"known keys here: {', '.join(known)}"
        return RoboAlignError(f"unknown key `{key}`{more}", where=str(path), fix=fix)
    message = fault["msg"].removeprefix("Value error, ")
    given = "" if isinstance(fault["input"], dict) else f", got {fault['input']!r}"
    subject = f"`{key}`: {message}{given}" if key else message
    return RoboAlignError(
        subject + more, where=str(path), fix=f"correct `{key}` there" if key else "correct it there"
    )


def settings_at(location: Sequence[int | str]) -> Any:
    """Return the settings class that a key of the file belongs to; None if there is none."""
    model: Any = MixtureConfig
    for part in location:
        if isinstance(part, str):
            field = getattr(model, "model_fields", {}).get(part)
            model = class_in(field.annotation) if field else None
    return model


def class_in(annotation: Any) -> Any:
    """Return the settings class inside `tuple[X, ...]` or `X | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := class_in(part))), None)
