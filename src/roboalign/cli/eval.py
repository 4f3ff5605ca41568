"""The verb `eval`: score any policy server on a benchmark."""

import argparse
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from roboalign.cli.options import add_settings, benchmark_settings
from roboalign.cli.serve import api_key, camera_keys
from roboalign.core.config import validated
from roboalign.core.errors import RoboAlignError
from roboalign.core.machine import cores
from roboalign.harness.settings import METAWORLD, ClientConfig, ServerKind, resolved, world_defaults
from roboalign.sim.registry import BenchmarkSpec, find_benchmark
from roboalign.sim.rollout import RolloutConfig

EXTRA_OF = {"websockets": "serve", "msgpack": "serve", "zmq": "groot"}
"""Package that a server's protocol needs -> extra that installs it."""
PEERS_STEPS = 500
"""Meta-WorldShape's own step limit, which other harnesses use."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for server, benchmark, protocol and client."""
    add = parser.add_argument
    add(
        "address",
        metavar="ADDRESS",
        help="the server: ws://host:port, or tcp://host:port for groot",
    )
    add("--benchmark", required=True, metavar="NAME", help="for example libero_object or metaworld")
    add("--out", required=True, metavar="FOLDER", help="where the episodes' records go")
    add("--preset", default="openpi", choices=get_args(ServerKind), help=_help("preset"))
    add("--tasks", nargs="+", metavar="TASK", help="these tasks only, or the name of a set of them")
    add("--episodes", type=int, default=50, metavar="N", help="episodes per task, at most")
    add("--workers", type=int, default=0, metavar="N", help="processes; 0 takes one per core")
    add("--replan-every", type=int, metavar="N", help="actions of a chunk that are executed")
    add("--max-steps", type=int, metavar="N", help="steps after which an episode is a failure")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the benchmark, for example image_size=256; may be repeated",
    )
    add(
        "--key",
        action="append",
        default=[],
        metavar="CAMERA=KEY",
        help="the request's key of a camera, of `state` or of `prompt`; may be repeated",
    )
    add_settings(parser, ClientConfig, "image_size", "gripper", "send_state", "unnorm_key")
    add_settings(parser, ClientConfig, "state_rotation", "flat", "timeout")
    add("--api-key-env", metavar="NAME", help="send the key that this environment variable holds")
    add("--retry-crashes", action="store_true", help="run episodes that crashed again")


def main(options: argparse.Namespace) -> int:
    """Score the server and print the table."""
    _check_address(options.address, options.preset)
    from roboalign.cli.eval_text import format_scores
    from roboalign.harness.score import known_server, score_server
    from roboalign.harness.server import Server

    spec, folder = find_benchmark(options.benchmark), Path(options.out)
    client = resolved(_client(options), spec.section)
    server = Server(options.address, api_key(options.api_key_env), client)
    metadata = known_server(folder)
    if metadata is None:
        wire = server.connect()
        metadata = wire.metadata
        wire.close()
    measured = _measured(options, spec, client, metadata)
    rows = score_server(
        server,
        measured,
        folder,
        workers=options.workers or cores(),
        retry_crashes=options.retry_crashes,
    )
    print(format_scores(measured, client, rows, folder))
    return 0


def _client(options: argparse.Namespace) -> ClientConfig:
    names = [name for name in ClientConfig.model_fields if name != "keys"]
    values = {name: getattr(options, name) for name in names}
    values["keys"] = camera_keys(options.key)
    config: ClientConfig = validated(ClientConfig, values, where="roboalign eval")
    return config


def _measured(
    options: argparse.Namespace,
    spec: BenchmarkSpec,
    client: ClientConfig,
    metadata: Mapping[str, Any],
) -> Any:
    """Return the `Measurement` that the options describe. Raises RoboAlignError naming a wrong
    one."""
    from roboalign.harness.score import Measurement

    given = benchmark_settings(options.set)
    assumed = world_defaults(client, spec.section, spec.config.model_fields, metadata)
    settings = validated(
        spec.config, {**assumed, **given}, where=f"--set of {spec.name}", fix="correct --set {key}"
    )
    return Measurement(
        spec,
        settings,
        _rollout(options, spec, client, settings),
        _tasks(options.tasks, spec),
        _episodes(options.episodes, spec),
    )


def _rollout(
    options: argparse.Namespace, spec: BenchmarkSpec, client: ClientConfig, settings: Any
) -> RolloutConfig:
    """Return how the policy is run: the benchmark's own protocol, or what was asked for."""
    asked: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("replan_every", "max_steps")
        if getattr(options, name) is not None
    }
    values = {"batch_size": 1, **asked}
    if spec.section == METAWORLD and client.preset != "roboalign":
        values.setdefault("max_steps", PEERS_STEPS)
    rollout = spec.rollout(settings, validated(RolloutConfig, values, where="roboalign eval"))
    for name, value in asked.items():
        if getattr(rollout, name) != value:
            raise RoboAlignError(
                f"{spec.name} has its own protocol, whose {name} is {getattr(rollout, name)}",
                where=f"--{name.replace('_', '-')} {value}",
                fix=f"pass --set {name}=...",
            )
    return rollout


def _tasks(given: list[str] | None, spec: BenchmarkSpec) -> tuple[str, ...]:
    sets = spec.task_sets()
    names = spec.default_downstream if given is None else tuple(given)
    if isinstance(names, tuple) and len(names) == 1 and names[0] in sets:
        names = names[0]
    tasks = sets[names] if isinstance(names, str) else names or spec.task_names()
    known = spec.task_names()
    for number, task in enumerate(tasks):
        if task not in known:
            raise RoboAlignError(
                f"{spec.name} has no task {task!r}",
                where="--tasks",
                fix=f"its tasks are called like {known[0]}; its sets are {', '.join(sets)}",
            )
        if task in tasks[:number]:
            raise RoboAlignError(f"{task!r} is given twice", where="--tasks", fix="give it once")
    return spec.measured_tasks(tuple(tasks))


def _episodes(given: int, spec: BenchmarkSpec) -> int:
    if given < 1:
        raise RoboAlignError(f"{given} episodes", where="--episodes", fix="give 1 or more")
    return min(given, len(spec.evaluation_seeds))


def _check_address(address: str, preset: str) -> None:
    """Raise RoboAlignError if it is no address of the preset's protocol, or a package that speaks
    it is missing."""
    zmq = preset == "groot"
    schemes = ("tcp://",) if zmq else ("ws://", "wss://")
    if not address.startswith(schemes):
        raise RoboAlignError(
            f"{address!r} is no address of a server of preset {preset}",
            where="roboalign eval",
            fix=f"give {schemes[0]}host:port; a recipe's own evaluation is: "
            "roboalign run RECIPE --until eval",
        )
    for package in ("zmq", "msgpack") if zmq else ("websockets", "msgpack"):
        if importlib.util.find_spec(package) is None:
            raise RoboAlignError(
                f"the package {package} is missing",
                where="roboalign eval",
                fix=f"pip install 'roboalign[{EXTRA_OF[package]}]'",
            )


def _help(field: str) -> str:
    text = " ".join((ClientConfig.model_fields[field].description or "").split())
    return (text[:1].lower() + text[1:]).removesuffix(".").replace("%", "%%")
