"""Read what a user says on the command line about recorded data, and choose what was left out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roboalign.core.errors import RoboAlignError

if TYPE_CHECKING:
    from roboalign.actions.spaces import ActionSpace
    from roboalign.episodes.episode import Episode
    from roboalign.episodes.own_data import DataSetConfig, OwnEpisodes
    from roboalign.episodes.survey.statistics import Survey


def parse_space(text: str) -> "tuple[ActionSpace, str]":
    """Return the space of a known name, or of `control=joint,mode=absolute,joints=7,...`, and its
    known name. Raises RoboAlignError that names the field."""
    from roboalign.actions.known_spaces import known_space
    from roboalign.actions.spaces import ActionSpace
    from roboalign.core.config import validated

    where = f"--action-space {text}"
    if "=" not in text:
        return known_space(text), text
    pairs = [part.partition("=")[::2] for part in text.split(",")]
    values: Mapping[str, Any] = {key.strip(): value.strip() for key, value in pairs}
    return validated(ActionSpace, values, where=where, fix="correct {key} there"), ""


def chosen_cameras(given: Sequence[str], survey: "Survey") -> tuple[dict[str, str], dict[str, str]]:
    """Return (name -> camera of the data, camera -> why it is left out).

    Without a choice, all cameras of the first one's height that show something. Raises
    RoboAlignError on another form, an unknown camera, or if none is left.
    """
    known = {camera.name: camera for camera in survey.cameras}
    if given:
        pairs = camera_pairs(given)
        for name, chosen in pairs.items():
            if chosen not in known:
                raise RoboAlignError(
                    f"there is no camera {chosen!r}; the data has {', '.join(known)}",
                    where=f"--camera {name}={chosen}",
                    fix="pass --camera NAME=CAMERA with one of these",
                )
        return pairs, {one: "not chosen" for one in known if one not in pairs.values()}
    cameras: dict[str, str] = {}
    left_out: dict[str, str] = {}
    height = ""
    for camera in survey.cameras:
        size = camera.sizes[0] if len(camera.sizes) == 1 else ""
        if camera.black + camera.flat >= camera.frames:
            left_out[camera.name] = "black or of one color in every frame looked at"
        elif camera.episodes < survey.episodes:
            left_out[camera.name] = "missing in some episodes"
        elif not size:
            left_out[camera.name] = "frames of several sizes"
        elif height and size.split(" x ")[1] != height:
            left_out[camera.name] = f"{size} pixels, of another height than the first camera"
        else:
            height = size.split(" x ")[1]
            cameras[camera.name.rsplit(".", 1)[-1]] = camera.name
    if not cameras:
        raise RoboAlignError(
            f"no camera shows anything that a policy can use: {left_out or 'there is none'}",
            where=survey.name,
            fix="give one of them: --camera NAME=CAMERA",
        )
    return cameras, left_out


def camera_pairs(given: Sequence[str]) -> dict[str, str]:
    """Return `NAME=CAMERA` texts as a map. Raises RoboAlignError on another form or a name that is
    given twice."""
    pairs: dict[str, str] = {}
    for text in given:
        name, equals, camera = text.partition("=")
        if not (name and equals and camera) or name in pairs:
            raise RoboAlignError(
                "a camera is NAME=CAMERA, each name once",
                where=f"--camera {text}",
                fix="for example --camera front=observation.images.top",
            )
        pairs[name] = camera
    return pairs


def backbone_size(source: str) -> tuple[float, int, int]:
    """Return (parameters, the layer that the head reads, the number of text layers).

    The layer is the paper's for a known model, else at its relative depth, 18 of 28. Raises
    RoboAlignError if there is neither such a folder nor a model of that name.
    """
    from transformers import AutoConfig

    from roboalign.mllm.presets import MODEL_PRESETS, meta_model, preset_config
    from roboalign.plan.model import backbone_numbers, existing_folder, named_preset

    if source == "train":
        raise RoboAlignError(
            "a new model learns to see in the simulator, and there is none of your robot",
            where="--backbone train",
            fix="give `builtin`, a folder or a Hub id",
        )
    preset = named_preset(source)
    if preset is not None:
        config = preset_config(next(n for n, one in MODEL_PRESETS.items() if one is preset))
    else:
        config = AutoConfig.from_pretrained(existing_folder(source), local_files_only=True)
    numbers = backbone_numbers(meta_model(config))
    layer = preset.layer if preset is not None else max(1, round(numbers.layers * 18 / 28))
    return numbers.parameters, layer, numbers.layers


def held_out_of(
    own: "OwnEpisodes", trained: frozenset[str] | None
) -> "tuple[list[Episode], list[Episode]]":
    """Return (the episodes to compare, the others): those not trained on, else all."""
    if trained is None:
        return own.episodes, []
    held = [e for e in own.episodes if own.content[e.episode_id] not in trained]
    if not held:
        return own.episodes, []
    return held, [e for e in own.episodes if own.content[e.episode_id] in trained]


def head_sets_of(folder: Path) -> "tuple[DataSetConfig, ...]":
    """Return the head's data sets in the recipe of the run that the policy is in; () if none."""
    from roboalign.run.load import load_recipe

    for parent in folder.resolve().parents:
        if (parent / "recipe.yaml").is_file():
            return load_recipe(parent / "recipe.yaml").demos.of("downstream")
    return ()
