"""Define question-answering sources by name: the paper's first stage, and installed packages.

The paper is arXiv 2603.21341. A field that no public page or code confirmed is None, and `notes`
says `unverified` about it. `count` is the paper's. A package adds a source by an entry point in the
group `roboalign.sources`, whose value is a `QaPreset` of the same name.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roboalign.conversations.qa.normal import QA_KINDS, QaSample
from roboalign.conversations.qa.read import LAYOUTS, Answers, QaColumns, read_qa
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.core.plugins import find_plugin, installed, load_plugin, package_of

GROUP = "roboalign.sources"


@dataclass(frozen=True)
class QaPreset:
    """One source: its name, its origin, and which files of its download contain records."""

    name: str
    hub: str | None
    """The data set on the Hugging Face Hub."""
    licence: str | None
    count: int
    """Samples that the paper used; for a package's source, the number it states."""
    kind: str
    """general, embodied or reasoning."""
    layout: str | None
    """A name of read.LAYOUTS."""
    notes: str
    columns: QaColumns | None = None
    answers: Answers | None = None
    """The coordinate style, and which answers are read into the normal form."""
    parts: tuple[tuple[str, str], ...] = ()
    """(pattern of files, folder of their images), both relative to the download folder."""
    also: tuple[str, ...] = ()
    """Patterns of files that not every download has; image paths are relative to their own folder."""
    prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """Changes a record before it is read; if it raises RoboAlignError, that is a `Fault`."""
    fetch: str = ""
    """Steps besides, or instead of, the Hub download; `{folder}` is replaced by its folder."""


EGOPLAN_ACTIONS = 4
"""Completed actions that are shown, the most recent ones: as many as EgoPlan's own reader takes."""


def egoplan_record(record: dict[str, Any]) -> dict[str, Any]:
    """Return an EgoPlan-IT record with the paths of its frames under `image`, in time order.

    They are the last frame of each of the EGOPLAN_ACTIONS actions completed most recently, then the
    current observation; none is later than that. All are frames of EPIC-KITCHENS-100. Raises
    RoboAlignError for records about Ego4D, whose frames are in videos.
    """
    source, video, current = (
        record.get(key) for key in ("video_source", "video_id", "current_observation_frame")
    )
    if not isinstance(video, str) or type(current) is not int or current < 0:
        raise RoboAlignError(
            f"video {video!r} and frame {current!r}", where="current_observation_frame"
        )
    if source != "EpicKitchens":
        fix = "extract that frame and write the record in the layout pairs, with the frame's path under image"
        raise RoboAlignError(
            f"frame {current} is in video {video!r} of {source!r}", where="video_source", fix=fix
        )
    folder = f"EPIC-KITCHENS/{video.split('_')[0]}/rgb_frames/{video}"
    frames = [*_last_frames(record.get("task_progress_metadata"), current), current]
    paths = [f"{folder}/frame_{frame:010d}.jpg" for frame in dict.fromkeys(frames)]
    return record | {"image": paths}


def _last_frames(progress: Any, current: int) -> list[int]:
    """Return the last frame of each recent action that was completed by the frame `current`.

    An action that overlaps the next one ends where that one begins, as in EgoPlan's own reader.
    """
    if not isinstance(progress, list) or any(
        not isinstance(action, dict)
        or any(type(action.get(key)) is not int for key in ("start_frame", "stop_frame"))
        for action in progress
    ):
        raise RoboAlignError(
            "the actions so far have no start_frame and stop_frame", where="task_progress_metadata"
        )
    recent = [one for one in progress if one["stop_frame"] <= current][-EGOPLAN_ACTIONS:]
    next_starts = [*(one["start_frame"] for one in recent[1:]), current]
    return [min(one["stop_frame"], start) for one, start in zip(recent, next_starts)]


REFSPATIAL = (
    ("2D/choice_qa.json", "2D/image"),
    ("2D/reasoning_template_qa.json", "2D/image"),
    ("3D/choice_qa.json", "3D/image"),
    ("3D/multi_view_qa.json", "3D/image_multi_view"),
    ("3D/reasoning_template_qa.json", "3D/image"),
    ("3D/vacant_qa.json", "3D/image"),
    ("3D/visual_choice_qa.json", "3D/image_visual_choice"),
    ("Simulator/metadata.json", "Simulator/image"),
)
UNPUBLISHED = (
    "Made by the authors and not published. unverified: hub, licence, layout, coordinate style."
)

_ALL = (
    QaPreset(
        "llava-onevision",
        "lmms-lab/LLaVA-OneVision-Data",
        "apache-2.0",
        100_000,
        "general",
        "llava",
        "Licence: the Hub's tag of the whole; its subsets carry their own. Columns id, image (none in text-only "
        "subsets), conversations, data_source, one folder of parquet files a subset. ureader_kg, ureader_qa and "
        "cambrian(filtered) are a JSON file and .tar.gz archives of its images. Records of several images are not in "
        "it but in lmms-lab/M4-Instruct-Data (cc-by-4.0; its images are lists), read too where downloaded into a "
        "folder of this one. unverified: which 100K the paper drew; coordinate style.",
        parts=(("*/*.parquet", "."),),
        also=("*/*.json",),
        fetch="unpack the archives of its JSON subsets, each in its own folder; for several images also "
        "huggingface-cli download lmms-lab/M4-Instruct-Data --repo-type dataset --local-dir {folder}/M4-Instruct-Data "
        "and unzip its archives there",
    ),
    QaPreset(
        "refspatial",
        "JingkunAn/RefSpatial",
        "apache-2.0",
        300_000,
        "embodied",
        "llava",
        "The folders of each file are those of RoboRefer's README, the fields those that public readers use: image, a "
        "list of file names, depth, another one (left out), and conversations of several turns. Point answers are "
        "tuples of fractions, choices `(B)` or `(B) text`. The Hub's preview has a list `thinking` (question_type, "
        "thinking); how it belongs to the turns is not documented, so it is left out. unverified: which 300K the paper "
        "drew; how the choice files write their options; whether every turn repeats the marks of its images "
        "(a record with another number of marks than images is a Fault).",
        answers=Answers(("points", "choice"), "fraction"),
        parts=REFSPATIAL,
        fetch="unpack its archives with bash unzip_dataset.sh in that folder",
    ),
    QaPreset(
        "robopoint",
        "wentao-yuan/robopoint-data",
        "apache-2.0",
        200_000,
        "embodied",
        "llava",
        "Its card and README show the record: id, image, conversations; points as a list of tuples between 0 and 1. "
        "unverified: which 200K the paper drew; what the four numbers of its LVIS boxes are, so they stay text.",
        answers=Answers(("points",), "fraction"),
        parts=(("robopoint_1432k.json", "images"),),
        fetch="join the .part files of images/ with cat, and unpack its archives there with tar xzf",
    ),
    QaPreset(
        "egoplan-it",
        None,
        None,
        50_000,
        "embodied",
        "pairs",
        "EgoPlan_IT.json (50K) is on Google Drive, not on the Hub: github.com/ChenYi99/EgoPlan, whose README shows "
        "the record and the folder of EPIC-KITCHENS frames. Read as question, answer and up to 5 frames: the last ones "
        "of the 4 actions before (as many as its own reader takes), then the current one. Ego4D records are Faults. "
        "unverified: hub, licence; how many frames the paper showed.",
        columns=QaColumns(images=("image",), id="sample_id"),
        parts=(("EgoPlan_IT.json", "."),),
        prepare=egoplan_record,
        fetch="download EgoPlan_IT.json (the link is in github.com/ChenYi99/EgoPlan) and the RGB frames of "
        "EPIC-KITCHENS-100 as {folder}/EPIC-KITCHENS/P01/rgb_frames/P01_01/frame_0000000001.jpg",
    ),
    QaPreset(
        "multi-view",
        None,
        None,
        500_000,
        "embodied",
        None,
        UNPUBLISHED + " Multi-view instructions.",
    ),
    QaPreset(
        "sharerobot",
        "BAAI/ShareRobot",
        None,
        100_000,
        "embodied",
        "llava",
        "The planning questions of the train folder: id (the episode's path, the same for all its questions), task, "
        "selected_step, image (a list: up to all 30 frames of the episode), conversations with `<image> <image> ..` "
        "before the question. Its affordance and trajectory files are of another layout and not read. unverified: "
        "licence (the benchmark made from it is apache-2.0); which 100K of 1,027,990 the paper drew; whether image "
        "paths are relative: what comes before rt_frames_success is cut off.",
        columns=QaColumns("conversations", anchor="rt_frames_success"),
        parts=(("planning/train/*.json", "planning"),),
        fetch="unpack the frames: cat planning/images/rt_frames_success.tar.gz.part.* | "
        "tar xz --strip-components=6 -C planning",
    ),
    QaPreset(
        "robotvqa",
        None,
        None,
        100_000,
        "embodied",
        None,
        "unverified: everything but the count. No data set of this very name for MLLM training was found; RoboVQA "
        "(829,502 video and text pairs, robovqa.github.io) has a similar one, and which was meant is not said.",
    ),
    QaPreset(
        "roboalign-vqa",
        None,
        None,
        150_000,
        "embodied",
        None,
        UNPUBLISHED + " Generated with Gemini.",
    ),
    QaPreset(
        "robot-qa",
        None,
        None,
        300_000,
        "embodied",
        None,
        UNPUBLISHED + " Questions on BridgeV2 and DROID.",
    ),
    QaPreset(
        "reasoning",
        None,
        None,
        76_000,
        "reasoning",
        None,
        UNPUBLISHED
        + " 50K multiple choice and 50K spatial questions, of which 76K were kept, answered by a model "
        "trained with GRPO.",
    ),
)
QA_PRESETS = {preset.name: preset for preset in _ALL}
"""The paper's sources. `find_preset` also knows those of installed packages."""


def preset_names() -> tuple[str, ...]:
    """Return the names of all sources, without importing any.

    The paper's come first, then those of installed packages.
    """
    return tuple(dict.fromkeys((*QA_PRESETS, *sorted(installed(GROUP)))))


def find_preset(name: str) -> QaPreset:
    """Return the source of this name; the paper's own take precedence.

    Raises RoboAlignError listing the names if there is none, or naming the package if its entry
    point is wrong.
    """
    if name in QA_PRESETS:
        return QA_PRESETS[name]
    point = find_plugin(GROUP, name)
    if point is None:
        raise RoboAlignError(
            f"unknown source {name!r}", fix=f"use one of {', '.join(preset_names())}"
        )
    return _checked(load_plugin(point), name, package_of(point))


def _checked(preset: Any, name: str, where: str) -> QaPreset:
    """Check the source of a package. Raises RoboAlignError if it contradicts itself."""
    problem = ""
    if not isinstance(preset, QaPreset):
        problem = f"{preset!r} is no roboalign.conversations.qa.presets.QaPreset"
    elif preset.name != name:
        problem = f"its source is called `{preset.name}`, its entry point `{name}`"
    elif preset.layout not in LAYOUTS:
        problem = f"layout {preset.layout!r} is none of {', '.join(LAYOUTS)}"
    elif preset.kind not in QA_KINDS:
        problem = f"kind {preset.kind!r} is none of {', '.join(QA_KINDS)}"
    elif not preset.parts:
        problem = "it has no parts: no file would be read"
    if problem:
        raise RoboAlignError(problem, where=where, fix="correct or uninstall the package")
    return preset


def read_preset(name: str, folder: str | Path) -> Iterator[QaSample | Fault]:
    """Yield every record of the source `name` in `folder`, as downloaded and unpacked.

    A missing part or an invalid record is a `Fault`. Raises RoboAlignError on an unknown name, on a
    source that is unavailable, and if nothing of it is in the folder; the error says what to
    download, and where to.
    """
    preset, folder = find_preset(name), Path(folder)
    if not preset.parts:
        fix = f"read your own files with read_qa(path, layout); layouts: {', '.join(LAYOUTS)}"
        raise RoboAlignError(
            f"the source {name} cannot be downloaded. {preset.notes}", where=str(folder), fix=fix
        )
    files, missing = preset_files(preset, folder)
    if not files:
        problem = f"none of {', '.join(pattern for pattern, _ in preset.parts)} is in this folder"
        raise RoboAlignError(problem, where=str(folder), fix=how_to_get(preset, folder))
    return _read_files(preset, files, missing)


def preset_files(
    preset: QaPreset, folder: Path
) -> tuple[list[tuple[Path, Path]], list[tuple[str, Fault]]]:
    """Return (file, folder of its images) in the order of reading, and each missing part.

    A missing part is (its pattern, a Fault that says how to get it).
    """
    files: list[tuple[Path, Path]] = []
    missing = []
    for pattern, images in preset.parts:
        found = sorted(folder.glob(pattern))
        files += [(file, folder / images) for file in found]
        if not found:
            fault = Fault(
                str(folder / pattern),
                "this part of the source is missing",
                how_to_get(preset, folder),
            )
            missing.append((pattern, fault))
    for pattern in preset.also:
        files += [(file, file.parent) for file in sorted(folder.glob(pattern))]
    return files, missing


def how_to_get(preset: QaPreset, folder: Path) -> str:
    """Return the commands that put the source into `folder`."""
    steps = (
        [f"huggingface-cli download {preset.hub} --repo-type dataset --local-dir {folder}"]
        if preset.hub
        else []
    )
    return ", then ".join(
        [*steps, *([preset.fetch.replace("{folder}", str(folder))] if preset.fetch else [])]
    )


def _read_files(
    preset: QaPreset, files: list[tuple[Path, Path]], missing: list[tuple[str, Fault]]
) -> Iterator[QaSample | Fault]:
    assert preset.layout is not None
    yield from (fault for _, fault in missing)
    for file, images in files:
        yield from read_qa(
            file,
            preset.layout,
            columns=preset.columns,
            images=images,
            source=preset.name,
            kind=preset.kind,
            answers=preset.answers,
            prepare=preset.prepare,
        )
