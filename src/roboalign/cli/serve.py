"""The verb `serve`: serve a policy, or recorded actions, over openpi's websocket protocol."""

import argparse
import contextlib
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roboalign.core.errors import RoboAlignError
from roboalign.core.progress import say

if TYPE_CHECKING:
    from roboalign.serve.contract import Contract

SHORTEST_KEY = 8


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for what is served, where, and what is recorded."""
    add = parser.add_argument
    add("policy", nargs="?", metavar="RUN_OR_POLICY", help="a run's folder, or a policy's")
    add("--arm", help="of a run: this arm; without it roboalign")
    add("--seed", type=int, metavar="N", help="of a run: this training seed; without it the first")
    add("--host", default="127.0.0.1", help="address to listen on; beyond loopback with a key only")
    add("--port", type=int, default=8000, metavar="N", help="port to listen on; 0 takes a free one")
    add(
        "--api-key-env",
        metavar="NAME",
        help="ask clients for the key that this environment variable holds",
    )
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where the policy runs")
    add("--prompt", metavar="TEXT", help="the instruction of requests that have none")
    add(
        "--key",
        action="append",
        default=[],
        metavar="CAMERA=KEY",
        help="the request's key of a camera, where it is not observation/CAMERA; may be repeated",
    )
    add("--record", metavar="FOLDER", help="keep requests and answers as a LeRobot data set")
    add("--replay", metavar="DATA", help="answer with a data set's actions, without a model")
    add(
        "--horizon",
        type=int,
        default=16,
        metavar="N",
        help="with --replay: actions of a chunk",
    )


def main(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    require_serving("roboalign serve")
    from roboalign.core.files import locked
    from roboalign.serve.recording import DatasetRecorder
    from roboalign.serve.server import check_reach

    key = api_key(options.api_key_env)
    check_reach(options.host, key)
    if (options.policy is None) == (options.replay is None):
        raise RoboAlignError(
            "give a run or a policy, or --replay DATA", where="roboalign serve", fix="give one"
        )
    policy, contract = _replayed(options) if options.replay else _loaded(options)
    with contextlib.ExitStack() as stack:
        recorder = None
        if options.record:
            recorder = DatasetRecorder(options.record, contract)
            stack.enter_context(locked(options.record))
        where = {"host": options.host, "port": options.port, "api_key": key}
        serve_policy(policy, contract, recorder=recorder, **where)
        if recorder:
            say(f"{recorder.episodes} episodes recorded", "serve")
    return 0


def serve_policy(policy: Any, contract: "Contract", **settings: Any) -> None:
    """Serve a policy that is loaded, with PolicyServer's `settings`, and say what happens."""
    from roboalign.serve.server import PolicyServer, serve_until_stopped
    from roboalign.serve.watch import Watch

    server = PolicyServer(policy, contract, watch=Watch(), **settings)
    say("warming up", "serve")
    serve_until_stopped(server, lambda port: _say_ready(contract, server.host, port))
    said = f"{server.requests} requests, {server.faults} refused, {server.passes} passes"
    counts = getattr(policy, "counts", {})
    if "holds" in counts:
        said += f"; {counts['holds']} of {counts['decisions']} decisions held the robot still"
    say(said, "serve")


def require_serving(command: str) -> None:
    """Raise RoboAlignError if a package of the websocket protocol is missing."""
    for package in ("websockets", "msgpack"):
        if importlib.util.find_spec(package) is None:
            raise RoboAlignError(
                f"the package {package} is missing",
                where=command,
                fix="pip install 'roboalign[serve]'",
            )


def api_key(name: str | None) -> str | None:
    """Return the key in the environment variable `name`. Raises RoboAlignError if it is missing or
    short."""
    if name is None:
        return None
    key = os.environ.get(name, "")
    if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or key != key.strip():
        raise RoboAlignError(
            f"the variable holds no key of {SHORTEST_KEY} printable ASCII characters or more",
            where=f"--api-key-env {name}",
            fix=f"export {name}=$(openssl rand -hex 16)",
        )
    return key


def camera_keys(given: list[str]) -> dict[str, str]:
    """Return `CAMERA=KEY` options as a map. Raises RoboAlignError on one that has another form or
    is duplicated."""
    keys: dict[str, str] = {}
    for option in given:
        camera, equals, key = option.partition("=")
        if not camera or not equals or not key or camera in keys:
            raise RoboAlignError(
                "a key is CAMERA=KEY, one for each camera",
                where=f"--key {option}",
                fix="for example --key front=observation/image",
            )
        keys[camera] = key
    return keys


def _loaded(options: argparse.Namespace) -> "tuple[Any, Contract]":
    from roboalign.cli.push import chosen_upload
    from roboalign.core.machine import cores, device_of
    from roboalign.run.stage import limit_threads
    from roboalign.serve.describe import contract_of
    from roboalign.vla.policy import Policy

    folder = chosen_upload(options.policy, None, options.arm, options.seed).folder
    say(f"loading {folder}", "serve")
    limit_threads(cores())
    policy = Policy.load(folder, str(device_of(options.device)))
    contract = contract_of(
        policy,
        folder,
        prompt=options.prompt,
        keys=camera_keys(options.key),
        needs_state=options.record is not None,
    )
    return policy, contract


def _replayed(options: argparse.Namespace) -> "tuple[Any, Contract]":
    from dataclasses import replace

    from roboalign.episodes.open import open_robot_data
    from roboalign.serve.describe import check_keys
    from roboalign.serve.replay import Replay

    if options.horizon < 1:
        raise RoboAlignError("a chunk has at least one action", where="--horizon", fix="give 1")
    say(f"reading {options.replay}", "serve")
    policy = Replay(open_robot_data(Path(options.replay), strict=True), options.horizon)
    keys = camera_keys(options.key)
    check_keys(keys, tuple(policy.contract.cameras))
    return policy, replace(policy.contract, keys=keys, prompt=options.prompt)


def _say_ready(contract: "Contract", host: str, port: int) -> None:
    """Print where it listens and what it expects, one item per line."""
    say(f"listening on ws://{f'[{host}]' if ':' in host else host}:{port}", "serve")
    for key, wanted in contract.metadata()["observation"].items():
        shape = ["?" if size is None else size for size in wanted.get("shape", ())]
        size = f" {shape}" if shape else ""
        must = "" if wanted["required"] else ", not needed"
        say(f"  {key}: {wanted['dtype']}{size}{must}", "serve")
    rate = "an unknown rate" if contract.fps is None else f"{contract.fps:g} a second"
    say(f"  answers {contract.horizon} actions of {contract.action_dim} numbers, {rate}", "serve")
