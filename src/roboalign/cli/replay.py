"""`roboalign replay`: a policy's chunks beside the recorded ones, here or through a server."""

import argparse
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roboalign.core.errors import RoboAlignError
from roboalign.core.progress import say
from roboalign.plan.data_choices import camera_pairs, head_sets_of, held_out_of, parse_space

if TYPE_CHECKING:
    from roboalign.actions.spaces import ActionSpace
    from roboalign.episodes.own_data import DataSetConfig, OwnEpisodes
    from roboalign.evaluate.open_loop import ChunkActs


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the policy, the data, and what the two do not say."""
    add = parser.add_argument
    add("policy", metavar="RUN_OR_POLICY", help="a run's folder, or a policy's")
    add(
        "data",
        nargs="?",
        metavar="DATA",
        help="recorded episodes; without it those that the run learned from",
    )
    add("--server", metavar="URL", help="ask the server at ws://HOST:PORT for the actions")
    add("--arm", help="of a run: this arm; without it roboalign")
    add("--seed", type=int, metavar="N", help="of a run: this training seed; without it the first")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where the policy runs")
    add("--episodes", type=int, default=20, metavar="N", help="at most so many episodes")
    add(
        "--camera",
        action="append",
        default=[],
        metavar="NAME=CAMERA",
        help="the policy's name of a camera of the data, where the two differ; may be repeated",
    )
    add(
        "--action-space", metavar="SPACE", help="what the data's actions mean, as in roboalign init"
    )
    add("--instruction", default="", metavar="TEXT", help="instruction of episodes without one")
    add("--format", help="lerobot, rlds, robomimic or calvin, where the files do not tell")
    add(
        "--read",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the format's reader, for example fps=5; may be repeated",
    )
    add("--out", default="replay.html", metavar="PAGE", help="the page to write")
    add("--json", metavar="FILE", help="also write the numbers as JSON")


def main(options: argparse.Namespace) -> int:
    """Compare, write the page, and print the table."""
    from roboalign.core.files import write_json
    from roboalign.report.open_loop import replay_text, write_replay_page

    if Path(options.out).suffix != ".html":
        raise RoboAlignError("the page is one HTML file", where=options.out, fix="--out page.html")
    asked = _asked(options)
    found = compare_replay(asked, options.episodes)
    facts = {
        "policy": f"{asked.folder}" + (f" at {options.server}" if options.server else ""),
        "data": asked.config.robot,
        "actions": str(asked.own.episodes[0].action_space),
    }
    write_replay_page(found, options.out, title=asked.config.name, facts=facts)
    if options.json:
        write_json(options.json, found)
    print(replay_text(found))
    print(f"page: {Path(options.out).resolve()}")
    return 0


@dataclass(frozen=True)
class ReplayInputs:
    """A policy and the episodes to compare it with."""

    folder: Path
    act: "ChunkActs"
    horizon: int
    cameras: tuple[str, ...]
    trained: frozenset[str] | None
    """Contents of the episodes that the policy was trained on; None if it does not say."""
    config: "DataSetConfig"
    own: "OwnEpisodes"
    action_names: tuple[str, ...]


def compare_replay(asked: ReplayInputs, most: int) -> dict[str, Any]:
    """Return the numbers of `measure_open_loop`, and whether the episodes were held out.

    Episodes that the policy was trained on are compared only if there are no others.
    """
    from roboalign.evaluate.open_loop import (
        choose_held_out,
        measure_open_loop,
        replay_episodes,
        spread_of,
    )

    if most < 1:
        raise RoboAlignError("compare one episode or more", where="--episodes", fix="--episodes 20")
    held, others = held_out_of(asked.own, asked.trained)
    mean_action = spread_of(others or held)[0]
    spread = spread_of(asked.own.episodes)[1]
    replayed = replay_episodes(
        asked.act, asked.horizon, choose_held_out(held, most), asked.cameras, mean_action
    )
    space = asked.own.episodes[0].action_space
    found = measure_open_loop(replayed, spread, space, asked.action_names)
    known = None if asked.trained is None else bool(others) or held_out_only(asked)
    return {**found, "held_out": known}


def held_out_only(asked: ReplayInputs) -> bool:
    """Return whether none of the data was trained on."""
    assert asked.trained is not None
    return not any(content in asked.trained for content in asked.own.content.values())


def _asked(options: argparse.Namespace) -> ReplayInputs:
    from roboalign.cli.push import chosen_upload
    from roboalign.core.machine import cores, device_of
    from roboalign.episodes.own_data import read_own
    from roboalign.run.stage import limit_threads
    from roboalign.serve.describe import contract_of, policy_facts
    from roboalign.vla.policy import Policy

    folder = chosen_upload(options.policy, None, options.arm, options.seed).folder
    facts = policy_facts(folder) or {}
    space = _space_of(options, facts)
    config = _data_config(options, folder, facts, space)
    limit_threads(cores())
    say(f"reading {config.robot}", "replay")
    own = read_own(config, _policy_space(facts) or config.space)
    _check_rate(own, facts)
    if options.server:
        act, horizon, cameras = _remote(options.server)
    else:
        say(f"loading {folder}", "replay")
        policy = Policy.load(folder, str(device_of(options.device)))
        contract_of(policy, folder)  # raises if facts and policy differ
        act, horizon, cameras = policy.act_batch, policy.horizon, policy.cameras
    if missing := sorted({*cameras} - {*config.cameras}):
        raise RoboAlignError(
            f"the policy sees a camera {missing[0]!r}, and none of the data is given for it",
            where=config.robot,
            fix=f"pass --camera {missing[0]}=CAMERA, CAMERA as the data calls it",
        )
    names = tuple(facts.get("action_names", ()))
    return ReplayInputs(folder, act, horizon, cameras, _trained(facts), config, own, names)


def _policy_space(facts: dict[str, Any]) -> "ActionSpace | None":
    from roboalign.actions.spaces import ActionSpace

    told = facts.get("action_space")
    return ActionSpace.model_validate(told) if told else None


def _space_of(options: argparse.Namespace, facts: dict[str, Any]) -> "ActionSpace | None":
    """Return what the data's actions mean: as said, else as the policy's."""
    if options.action_space:
        return parse_space(options.action_space)[0]
    return _policy_space(facts)


def _data_config(
    options: argparse.Namespace, folder: Path, facts: dict[str, Any], space: "ActionSpace | None"
) -> "DataSetConfig":
    """Return how the data is read: as the run's recipe says if it is one of its sets, else as the
    options say."""
    from roboalign.cli.robot_data import reader_options
    from roboalign.episodes.own_data import DataSetConfig
    from roboalign.run.starter import starter_name

    said = any((options.camera, options.action_space, options.read, options.instruction))
    for one in head_sets_of(folder):
        same = options.data is None or _same(one.robot, options.data)
        if same and not said:
            return one
    if options.data is None:
        raise RoboAlignError(
            "no recorded data is known of this policy",
            where=options.policy,
            fix="name some: roboalign replay POLICY DATA",
        )
    if space is None:
        raise RoboAlignError(
            "neither the policy nor the options say what the data's actions mean",
            where=options.data,
            fix="pass --action-space, as roboalign init suggests it",
        )
    cameras = camera_pairs(options.camera) or {name: name for name in facts.get("cameras", {})}
    return DataSetConfig(
        name=starter_name(options.data),
        robot=options.data,
        format=options.format,
        read=reader_options(options.read),
        space=space,
        cameras=cameras,
        instruction=options.instruction,
    )


def _same(one: str, other: str) -> bool:
    return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def _check_rate(own: "OwnEpisodes", facts: dict[str, Any]) -> None:
    rate = facts.get("fps")
    for episode in own.episodes:
        if rate is not None and episode.fps != rate:
            raise RoboAlignError(
                f"the data has {episode.fps:g} actions a second, the policy answers at {rate:g}",
                where=f"episode {episode.episode_id}",
                fix="compare with data of the policy's rate",
            )


def _trained(facts: dict[str, Any]) -> frozenset[str] | None:
    """Return the contents of the episodes that the head was trained on; None if not known."""
    if "trained" in facts:
        return frozenset(facts["trained"]) or None
    if "content" not in facts:
        return None
    held = set(facts["heldout"])
    return frozenset(c for name, c in facts["content"].items() if name not in held)


def _remote(url: str) -> "tuple[ChunkActs, int, tuple[str, ...]]":
    """Connect to a server. Raises RoboAlignError if there is none."""
    if importlib.util.find_spec("websockets") is None:
        raise RoboAlignError(
            "the package websockets is missing",
            where=f"--server {url}",
            fix="pip install 'roboalign[serve]'",
        )
    from roboalign.serve.client import RemotePolicy

    remote = RemotePolicy(url, None, timeout=600.0)
    wanted = remote.metadata["observation"].values()
    cameras = tuple(entry["camera"] for entry in wanted if "camera" in entry)
    return remote.act_batch, remote.horizon, cameras
