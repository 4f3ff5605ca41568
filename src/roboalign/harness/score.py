"""Score a policy server on a benchmark: check its first answer, then run every episode once.

The folder holds protocol.json (what affects a success rate besides the policy), client.json (what
the server says of itself, the client's settings, versions, the first answer), frames/ (the images
of the first request) and episodes.jsonl (one record per episode).
"""

import functools
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roboalign import __version__
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import (
    append_jsonl,
    check_output,
    locked,
    read_json,
    write_json,
    write_text,
)
from roboalign.core.progress import say
from roboalign.core.state import State, read_records, read_state
from roboalign.evaluate.success import EpisodeState, read_episodes
from roboalign.harness.first import describe_first, first_answer
from roboalign.harness.server import Actor, Server, load_actor, make_preset, world_of
from roboalign.harness.wires import as_json_values, describe
from roboalign.sim.parallel import evaluate_parallel
from roboalign.sim.registry import BenchmarkSpec, measured_protocol
from roboalign.sim.rollout import EpisodeResult, RolloutConfig

CLIENT, PROTOCOL, EPISODES = "client.json", "protocol.json", "episodes.jsonl"
FIRST_SECONDS = 300.0
"""Seconds to wait for the first answer: many servers compile their model then."""


class ClientState(State):
    """client.json: what a later command relies on."""

    server: dict[str, Any]
    settings: dict[str, Any]
    tasks: list[str]
    versions: dict[str, str]


@dataclass(frozen=True)
class Measurement:
    """What is measured."""

    spec: BenchmarkSpec
    settings: Any
    """Instance of `spec.config`."""
    rollout: RolloutConfig
    tasks: tuple[str, ...]
    episodes: int
    """Per task."""

    @property
    def keys(self) -> list[tuple[str, int]]:
        """Return (task, seed) of every episode."""
        seeds = self.spec.evaluation_seeds[: self.episodes]
        return [(task, seed) for task in self.tasks for seed in seeds]

    def protocol(self) -> dict[str, Any]:
        """Return protocol.json."""
        cameras = self.spec.cameras(self.settings)
        return measured_protocol(self.spec, self.settings, self.rollout, self.episodes, cameras)


def known_server(folder: Path) -> dict[str, Any] | None:
    """Return the metadata of the server whose scores the folder holds; None if there are none."""
    if not (folder / CLIENT).is_file():
        return None
    state: dict[str, Any] = read_state(folder / CLIENT, ClientState, fix=_another_folder())[
        "server"
    ]
    return state


def score_server(
    server: Server,
    measured: Measurement,
    folder: Path,
    *,
    workers: int,
    retry_crashes: bool = False,
) -> list[dict[str, Any]]:
    """Run the episodes that `folder` lacks, and return the records of all.

    Raises RoboAlignError if the folder holds another server's episodes or other settings', if the
    first answer cannot be used, or if the server is lost; the same call then continues.
    """
    check_output(folder, marks=[CLIENT, PROTOCOL])
    with locked(folder):
        mine = {
            "settings": server.client.model_dump(mode="json"),
            "tasks": list(measured.tasks),
            "versions": _versions(measured.spec),
        }
        expected = _require_same(folder, mine, measured.protocol())
        path = folder / EPISODES
        if retry_crashes:
            _forget_crashes(path)
        done = {(row["task"], row["seed"]) for row in read_records(path, EpisodeState)}
        missing = [key for key in measured.keys if key not in done]
        if missing:
            _run(server, measured, folder, missing, mine, expected, workers)
        return read_episodes(path, measured.keys)


def _run(
    server: Server,
    measured: Measurement,
    folder: Path,
    missing: list[tuple[str, int]],
    mine: dict[str, Any],
    expected: Mapping[str, Any] | None,
    workers: int,
) -> None:
    benchmark = measured.spec.make(measured.settings)
    write_json(folder / PROTOCOL, measured.protocol())  # marks the folder as this command's
    world, replan = world_of(measured.spec, benchmark), measured.rollout.replan_every
    wire = server.connect(expected, timeout=max(server.client.timeout, FIRST_SECONDS))
    try:
        say(f"the server at {server.address} says:", "eval")
        for line in describe(wire.metadata) or ["nothing"]:
            say(f"  {line}", "eval")
        preset = make_preset(server.client, world, wire.metadata)
        actor = Actor(wire, preset, server.client, world.action_dim, replan)
        # The same episode whenever the command continues, so that frames/ stays what it was.
        first = first_answer(actor, benchmark, measured.keys[0], folder / "frames")
        for line in describe_first(first, replan):
            say(line, "eval")
    finally:
        wire.close()
    said = as_json_values(wire.metadata)
    record = {"address": server.address, "server": said, **mine, "first_answer": first}
    write_json(folder / CLIENT, record)

    def keep(result: EpisodeResult) -> None:
        append_jsonl(folder / EPISODES, result.record())

    load = functools.partial(load_actor, server, world, replan, said)
    evaluate_parallel(load, benchmark, missing, measured.rollout, workers=workers, on_result=keep)


def _require_same(
    folder: Path, mine: Mapping[str, Any], protocol: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the metadata of the folder's server, None if it is new. Raises RoboAlignError if its
    episodes were measured under other settings."""
    if not (folder / CLIENT).is_file():
        if (folder / EPISODES).is_file():
            raise RoboAlignError(
                "it holds episodes of another command", where=str(folder), fix=_another_folder()
            )
        return None
    state = read_state(folder / CLIENT, ClientState, fix=_another_folder())
    before = {**{key: state[key] for key in mine}, "protocol": read_json(folder / PROTOCOL)}
    now = as_json_values({**mine, "protocol": protocol})
    for section, values in now.items():
        if before[section] != values:
            raise RoboAlignError(
                f"its episodes were measured under other {section}: {_difference(before[section], values)}",
                where=str(folder),
                fix=_another_folder(),
            )
    server: dict[str, Any] = state["server"]
    return server


def _difference(before: Any, now: Any) -> str:
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        return f"{before} then, {now} now"
    differ = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return "; ".join(f"`{key}` {before.get(key)} then, {now.get(key)} now" for key in differ)


def _forget_crashes(path: Path) -> None:
    """Move the records of crashed episodes to crashes.jsonl, so that these run again."""
    rows = read_records(path, EpisodeState)
    crashed = [row for row in rows if row["crash"] is not None]
    if not crashed:
        return
    for row in crashed:
        append_jsonl(path.with_name("crashes.jsonl"), row)
    kept = [row for row in rows if row["crash"] is None]
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
    say(f"{len(crashed)} crashed episodes run again; their records: crashes.jsonl", "eval")


def _versions(spec: BenchmarkSpec) -> dict[str, str]:
    """Return the versions that may change an episode."""
    found = {"roboalign": __version__}
    for name in spec.packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _another_folder() -> str:
    return "pass --out with another folder"
