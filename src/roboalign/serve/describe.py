"""Derive what a policy requires in a request from its folder and from the demonstrations that it
was trained on."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_tree
from roboalign.core.outcomes import Fault
from roboalign.episodes.episode import Episode
from roboalign.episodes.formats.lerobot import about_lerobot, iterate_lerobot
from roboalign.serve.contract import Contract
from roboalign.vla.policy import Policy


def demonstrations_of(policy_folder: str | Path) -> Path | None:
    """Return the run's data of the measured robot if the policy is still inside its run, else
    None."""
    for parent in Path(policy_folder).resolve().parents:
        if (parent / "recipe.yaml").is_file():
            data = parent / "collect" / "downstream"
            return data if (data / "meta" / "info.json").is_file() else None
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
    data = demonstrations_of(folder)
    if data is not None:
        fields = _told_by(data, cameras, policy.action_dim)
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


def _told_by(data: Path, cameras: tuple[str, ...], action_dim: int) -> dict[str, Any]:
    episode, about = first_episode(data), about_lerobot(data)
    missing = [camera for camera in cameras if camera not in episode.cameras]
    if missing or episode.actions.shape[1] != action_dim:
        raise RoboAlignError(
            f"it has cameras {', '.join(episode.cameras)} and {episode.actions.shape[1]} actions, the policy "
            f"{', '.join(cameras)} and {action_dim}",
            where=str(data),
            fix="copy the policy's folder out of this run, or restore the run",
        )
    return {
        **facts_of(episode),
        "cameras": {c: (episode.cameras[c].height, episode.cameras[c].width) for c in cameras},
        "action_names": about.action_names,
        "state_names": about.state_names,
    }
