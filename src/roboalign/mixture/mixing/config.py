"""What a mixture file says: the sources and how many samples of each, and what must not be in training."""

import difflib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from roboalign.actions.normalize import Method
from roboalign.conversations.qa.normal import Style
from roboalign.core.config import Config, Seed
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json
from roboalign.core.hub import pinned
from roboalign.core.yaml import read_yaml

PLACES = ("robot", "preset", "qa", "conversations")
FIELDS_OF = {
    "robot": {"robot", "named", "format", "read", "space", "camera"},
    "preset": {"preset", "path"},
    "qa": {"qa", "layout", "images", "links", "answers"},
    "conversations": {"conversations"},
}
_START = "start from recipes/mixtures/bridge-tiny.yaml"
KIND_OF = {"robot": ("action",), "qa": ("general", "embodied", "reasoning")}


class AnswersConfig(Config):
    """Which answers of a question-answering file are read into the normal form."""

    kinds: tuple[Literal["points", "boxes", "choice"], ...] = ()
    """What the answers hold besides free text."""
    style: Style | None = None
    """In what points and boxes are written; pixels are of the image as stored."""


class SourceConfig(Config):
    """One source: exactly one of `robot`, `preset`, `qa` and `conversations`, and one of `count` and `weight`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """What the source is called; it stands before the ids of its samples and decides which are drawn."""
    robot: str | None = None
    """Robot data of any format: each of its frames is an action sample."""
    named: str | None = None
    """Of robot data: the path in the mixture file, noted where `--at` gives another. Ids that hold the name of a folder
    hold that of this path, so that they are the same wherever the data lies."""
    preset: str | None = None
    """A source of the paper (qa/presets.py) or of an installed package; `path` is the folder of its download."""
    qa: str | None = None
    """A .json, .jsonl or .parquet file of questions and answers."""
    conversations: str | None = None
    """A folder of conversation shards (train-*.parquet): a mixture, generated questions, distilled reasoning."""
    count: int | None = Field(None, ge=1)
    """Samples of it; a sample is one record, conversation or action."""
    weight: float | None = Field(None, gt=0, le=1e12)
    """Share of what `total` leaves to the sources without a count, relative to their weights."""
    repeat: bool = False
    """Whether a source with fewer samples than asked is gone through again until they are reached."""
    kind: Literal["general", "embodied", "reasoning", "action"] | None = None
    """Of a qa file: general (as where it is not given), embodied or reasoning. A robot source is action."""
    path: str | None = None
    """Of a preset: the folder of its download."""
    layout: str = "llava"
    """Of a qa file: messages, llava, sharegpt or pairs."""
    images: str | None = None
    """Of a qa file: the folder, .zip or .tar of its images; the file's own folder where it is not given."""
    links: bool = False
    """Of a qa file: whether an image may be a link that leads out of the image folder."""
    answers: AnswersConfig = AnswersConfig()
    """Of a qa file: how its answers are written."""
    format: str | None = None
    """Of robot data: its format, where the files do not tell."""
    read: dict[str, Any] = Field(default_factory=dict)
    """Of robot data: options of the format's reader, for example {fps: 5}."""
    space: str | None = None
    """Of robot data: what its actions mean, by name."""
    camera: str | None = None
    """Of robot data: the camera; needed where there are several."""

    @property
    def place(self) -> str:
        """Which of PLACES the source is."""
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
        if self.kind is not None and self.kind not in KIND_OF.get(given[0], ()):
            raise ValueError(f"source {self.name}: kind {self.kind} does not go with `{given[0]}`")
        return self


class TokensConfig(Config):
    """The FAST tokenizer of the action samples: one that is there, or one fitted on them."""

    path: str | None = None
    """A FAST folder, or the tokenizer/ folder of a mixture or a run, whose action statistics are then used too."""
    fit: bool = False
    """Fit one on the drawn samples."""
    horizon: int = Field(16, ge=1, le=10_000)
    """Action steps a chunk."""
    scale: float = Field(10.0, ge=1e-6, le=1e6)
    """Factor before rounding a DCT coefficient, of a fitted one."""
    vocab_size: int = Field(1024, ge=8, le=1_000_000)
    """Entries of the fitted byte-pair vocabulary."""
    chunks: int = Field(100_000, ge=1)
    """Most chunks on which the statistics and the tokenizer are fitted: the first that are drawn."""
    mixed: bool = False
    """Whether sources whose dimensions have other names, or other rates, may share statistics without a `space`."""
    statistics: Method = "quantiles"
    """Which values normalize to -1 and 1: quantiles (1% and 99%), min_max, or mean_std (mean minus and plus std)."""
    clip: bool = True
    """Cut normalized actions at -1 and 1, as OpenVLA does; openpi does not. Without effect on mean_std."""

    @model_validator(mode="after")
    def _consistent(self) -> "TokensConfig":
        if self.fit == (self.path is not None):
            raise ValueError("give the `path` of a FAST tokenizer, or `fit: true`")
        return self


class RlSubset(Config):
    """The action samples that RL is trained on; they stay in the SFT samples too."""

    source: str
    """A robot source of the mixture."""
    count: int = Field(ge=1)
    """How many of its samples; the paper has 12,800."""
    at_most: float = Field(0.01, gt=0, le=1)
    """Largest share of the SFT samples; the paper has 0.0056."""


class HeldoutConfig(Config):
    """What is kept out of training by its image, or by its episode where it has one."""

    share: float = Field(0.01, gt=0, lt=0.5)
    """Share of the images or episodes."""


class HoldoutConfig(Config):
    """What will be evaluated on; written as its path alone where the rest is not needed."""

    path: str
    """A folder of conversations (heldout.parquet, else every shard), or robot data (every frame of every camera)."""
    format: str | None = None
    """Of robot data: its format, where the files do not tell."""
    read: dict[str, Any] = Field(default_factory=dict)
    """Of robot data: options of the format's reader. Images are compared as they are read: {flip: true} for LIBERO."""


class NearConfig(Config):
    """When two images count as the same picture, re-encoded or rescaled (looks.py)."""

    distance: int = Field(7, ge=0, le=7)
    """Bits of 64 by which their perceptual hashes may differ: a first sieve."""
    difference: int = Field(12, ge=0, le=255)
    """Gray levels of 255 by which any cell of the 16 x 16 thumbnails may differ: what decides."""


class MixtureConfig(Config):
    """A mixture file."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    """The mixture's name."""
    seed: Seed = 0
    """Fixes every draw."""
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    """Where the samples come from."""
    total: int | None = Field(None, ge=1)
    """Samples in all, needed where a source has a weight; without weights the counts say it."""
    tokenizer: TokensConfig | None = None
    """Needed where there is a robot source."""
    rl: RlSubset | None = None
    """The RL subset."""
    heldout: HeldoutConfig | None = None
    """What is held out, written as heldout.parquet."""
    evaluation: tuple[HoldoutConfig, ...] = ()
    """What must not be in training, by image and by episode."""
    near: NearConfig = NearConfig()
    grid: int | None = Field(None, ge=4, le=1000)
    """Cells a side of the image in which single points of qa sources are answered; as the source writes them without
    it."""
    shard_size: int = Field(2_000, ge=1)
    """Samples in one parquet file."""
    model: str | None = None
    """A Hugging Face folder: with it the tokenised length of every training sample is written beside its shard."""

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
        """Samples of each source: its count, or its part of what is left of the total.

        Rounded by largest remainders (the earlier source first where two are equal), so that they add up to `total`.
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
    """(settings, manifest or None) of a mixture file, or of the manifest.json of a mixture to be built again.

    `at`: what `_moved` takes, for what lies elsewhere on this machine. Paths are relative to the current folder. Raises
    RoboAlignError that names the key and the fix.
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
    """Whether this has what a mixture is checked against when it is built again."""
    listed = ("files", "shards", "lengths")
    if not isinstance(value, dict) or not all(isinstance(value.get(name), dict) for name in listed):
        return False
    evaluation = value.get("evaluation")
    return evaluation is None or (isinstance(evaluation, dict) and "sha256" in evaluation)


def _moved(config: MixtureConfig, at: Mapping[str, str]) -> MixtureConfig:
    """The settings with some paths replaced: of a source by its name, of its images by `NAME.images`, and those called
    `tokenizer`, `model` and `evaluation.0`, `evaluation.1`, .."""
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
    """The settings with Hub ids at the commits that they now name, so that the manifest says which data it was.

    Raises RoboAlignError where one cannot be fetched.
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
    """The first fault of a validation as one message, with the nearest known key for an unknown one."""
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
    """The settings class that a key of the file belongs to; None where it is none."""
    model: Any = MixtureConfig
    for part in location:
        if isinstance(part, str):
            field = getattr(model, "model_fields", {}).get(part)
            model = class_in(field.annotation) if field else None
    return model


def class_in(annotation: Any) -> Any:
    """The settings class inside `tuple[X, ...]` or `X | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := class_in(part))), None)
