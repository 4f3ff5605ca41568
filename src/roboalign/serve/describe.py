"""Derive what a policy requires in a request from its folder and from the demonstrations that it
was trained on."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_tree, read_json
from roboalign.core.outcomes import Fault
from roboalign.episodes.episode import Episode
from roboalign.episodes.formats.lerobot import about_lerobot, iterate_lerobot
from roboalign.serve.contract import Contract
from roboalign.vla.policy import Policy

EXPORT_AGAIN = "export the policy again from its run"


def policy_facts(policy_folder: str | Path) -> dict[str, Any] | None:
    """What is known of the data that the head in this folder was trained on: by the policy itself, if it was exported,
    else by its run; None where neither says anything.

    `fps`, `action_space`, `action_names`, `state_names`, `state_dim`, `cameras` (name -> [height, width]), and of the
    user's own recordings `instructions`, `episodes` and `heldout`.
    """
    folder = Path(policy_folder).resolve()
    told = read_json(folder / "policy.json").get("facts")
    if told is not None:
        return dict(told)
    for parent in folder.parents:
        if (parent / "recipe.yaml").is_file():
            own, data = (parent / "collect" / name for name in ("downstream.json", "downstream"))
            if own.is_file():
                return dict(read_json(own))
            return _told_by(data) if (data / "meta" / "info.json").is_file() else None
    return None


def contract_of(
    policy: Policy,
    folder: str | Path,
    *,
    prompt: str | None = None,
    keys: Mapping[str, str] | None = None,
    needs_state: bool = False,
) -> Contract:
    """Return the contract of the policy in `folder`. Facts that its run does not contain stay
    unknown.

    `needs_state` requires the state even if the policy does not read it.

    Raises RoboAlignError if `keys` names a camera that the policy does not have or the same key
    twice, or if the shapes of the run's data differ from the policy's.
    """
    cameras = policy.cameras
    check_keys(keys or {}, cameras)
    fields: dict[str, Any] = {"cameras": dict.fromkeys(cameras)}
    facts = policy_facts(folder)
    if facts is not None:
        fields = _fields_of(facts, cameras, policy.action_dim, Path(folder))
    if policy.state_dim is not None:
        fields["state_dim"] = policy.state_dim
    return Contract(
        model=hash_tree(Path(folder))[:16],
        horizon=policy.horizon,
        action_dim=policy.action_dim,
        needs_state=policy.state_dim is not None or needs_state,
        guided=policy.guided,
        remembers=policy.remembers,
        policy=policy.metadata(),
        prompt=prompt,
        keys=dict(keys or {}),
        **fields,
    )


def check_keys(keys: Mapping[str, str], cameras: tuple[str, ...]) -> None:
    """Raise RoboAlignError if `keys` names an unknown camera, or if two cameras share a key."""
    for camera in keys:
        if camera not in cameras:
            near = difflib.get_close_matches(camera, cameras, 1)
            raise RoboAlignError(
                f"the policy has no camera {camera!r}",
                where="--key",
                fix=f"did you mean {near[0]}?" if near else f"it has {', '.join(cameras)}",
            )
    every = [keys.get(camera, f"observation/{camera}") for camera in cameras]
    if len(set(every)) < len(every):
        raise RoboAlignError("two cameras have one key", where="--key", fix="give each its own")


def first_episode(folder: Path) -> Episode:
    """Return the first episode of a LeRobot data set. Raises RoboAlignError if it is broken or
    missing."""
    item = next(iter(iterate_lerobot(folder)), None)
    if item is None:
        raise RoboAlignError("the data set has no episode", where=str(folder))
    if isinstance(item, Fault):
        raise RoboAlignError(item.problem, where=item.where, fix=item.fix)
    return item


def facts_of(episode: Episode) -> dict[str, Any]:
    """Return the fields of a contract that any episode of a data set determines."""
    space = episode.action_space
    return {
        "fps": float(episode.fps),
        "state_dim": episode.state.shape[1],
        "action_space": None if space is None else space.model_dump(mode="json"),
    }


def _fields_of(
    facts: dict[str, Any], cameras: tuple[str, ...], action_dim: int, where: Path
) -> dict[str, Any]:
    """The fields of a contract that the facts tell. Raises RoboAlignError where they are not of this policy."""
    try:
        fields = {
            "fps": float(facts["fps"]),
            "state_dim": int(facts["state_dim"]),
            "action_space": facts["action_space"],
            "action_names": tuple(facts["action_names"]),
            "state_names": tuple(facts["state_names"]),
        }
        sizes = {name: (int(size[0]), int(size[1])) for name, size in facts["cameras"].items()}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise RoboAlignError(
            f"what it says of its data is broken ({error})", where=str(where), fix=EXPORT_AGAIN
        ) from None
    missing = [camera for camera in cameras if camera not in sizes]
    names = fields["action_names"]
    if missing or len(names) not in (0, action_dim):
        raise RoboAlignError(
            f"it was trained on cameras {', '.join(sizes)} and {len(names)} actions, the policy has "
            f"{', '.join(cameras)} and {action_dim}",
            where=str(where),
            fix="copy the policy's folder out of this run, or restore the run",
        )
    return {**fields, "cameras": {camera: sizes[camera] for camera in cameras}}


def _told_by(data: Path) -> dict[str, Any]:
    """The facts of a LeRobot data set."""
    episode, about = first_episode(data), about_lerobot(data)
    return {
        **facts_of(episode),
        "cameras": {name: [c.height, c.width] for name, c in episode.cameras.items()},
        "action_names": list(about.action_names),
        "state_names": list(about.state_names),
    }
