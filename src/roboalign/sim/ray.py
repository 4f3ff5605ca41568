"""Run rollout workers on the machines of a Ray cluster, which share one queue (`sim.parallel`) and
one caller.

Ray ends a program that has lost its cluster, without an exception. Therefore a separate process
talks to Ray and sends the results through a pipe. If that process dies, the caller reports an error
and keeps what was measured.
"""

import contextlib
import fcntl
import functools
import importlib.metadata
import importlib.util
import math
import multiprocessing
import os
import pickle
import platform
import socket
import tempfile
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

import roboalign
from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_tree
from roboalign.core.processes import die_with_parent
from roboalign.core.progress import Progress
from roboalign.sim.base import Benchmark
from roboalign.sim.parallel import EpisodeKey, Message, Site, WorkerDied, result_of, run_queue, work
from roboalign.sim.registry import sections
from roboalign.sim.rollout import Act, EpisodeResult, RolloutConfig

_WHERE = "hardware.ray"
PIECE = 256 * 2**20  # bytes of a file in one object of the object store
_LOOK_EVERY = (
    10.0  # seconds of silence after which the cluster is asked whether any machine is left
)
Load = Callable[[Path], Act]
"""Load the policy from the folder that holds its files."""


class ClusterConfig(Config):
    """A Ray cluster (extra `cluster`) whose machines run the episodes of an evaluation, as many workers as fit."""

    address: str = Field("auto", pattern=r"^[^/\s]+$")
    """The cluster's head as `host:port`; `auto`: the cluster that `ray start` joined this machine
    to."""
    cpus: int = Field(1, ge=1, le=4096)
    """Cores per worker, and threads of its policy."""
    gpus: float = Field(0.0, ge=0, le=1)
    """GPUs per worker, 0.5 for two workers per GPU; with 0 its policy is on the CPU
    (`hardware.device` is ignored)."""


def evaluate_on_cluster(
    load: Load,
    cargo: Mapping[str, Path],
    benchmark: Benchmark,
    episodes: Sequence[EpisodeKey],
    config: RolloutConfig,
    cluster: ClusterConfig,
    *,
    on_result: Callable[[EpisodeResult], None],
) -> None:
    """`evaluate_parallel` with workers on the machines of a Ray cluster, this one among them.

    `cargo` maps each path below the folder that `load` is given to a file of the policy. The files go through Ray's
    object store, once to each machine, so that no disk has to be shared. The package itself must be installed on each.
    Raises RoboAlignError, besides what `evaluate_parallel` raises, if Ray is not installed, if no cluster is found or
    the cluster is lost, and if a machine has another version of what an episode depends on.
    """
    if importlib.util.find_spec("ray") is None:
        raise RoboAlignError(
            "Ray is not installed",
            where=_WHERE,
            fix="pip install 'roboalign[cluster]', or leave it out",
        )
    if not episodes:
        return
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, load, dict(cargo), benchmark, list(episodes), config, cluster)
    process = context.Process(target=_drive, args=arguments, daemon=True)
    process.start()
    theirs.close()
    try:
        with Progress("rollouts", total=len(episodes)) as progress:
            for _ in episodes:
                result = result_of(ours.recv())
                on_result(result)
                progress.advance(note=result.task)
    except EOFError:
        raise _lost(cluster, "its connection ended") from None
    finally:
        ours.close()
        process.terminate()
        process.join(10)
        process.kill()


def _lost(cluster: ClusterConfig, what: str) -> RoboAlignError:
    fix = "start Ray again (`ray start`) and run the same command: what was measured stays and does not run again"
    return RoboAlignError(
        f"the Ray cluster `{cluster.address}` was lost: {what}", where=_WHERE, fix=fix
    )


def _drive(
    pipe: Connection,
    load: Load,
    cargo: Mapping[str, Path],
    benchmark: Benchmark,
    episodes: Sequence[EpisodeKey],
    config: RolloutConfig,
    cluster: ClusterConfig,
) -> None:
    """Talk to Ray in a separate process: send every result through the pipe, and an error if there
    is one."""
    die_with_parent()
    # Ray's own output is in its logs; the command shows only one message.
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    import ray

    try:
        _connect(cluster)
        try:
            start = functools.partial(
                _RayWorker, cluster, pickle.dumps((load, benchmark, config)), _stow(cargo)
            )
            site = Site(_room(cluster), start, functools.partial(_wait, cluster))
            run_queue(site, episodes, config.batch_size, pipe.send)
        except ray.exceptions.RayTaskError as error:
            pipe.send(str(error))
        except ray.exceptions.RayError as error:
            pipe.send(_lost(cluster, _line(error)))
    except RoboAlignError as error:
        pipe.send(error)
    except Exception:
        pipe.send(traceback.format_exc())


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _connect(cluster: ClusterConfig) -> None:
    import ray

    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise RoboAlignError(
            f"no Ray cluster can be used at `{cluster.address}` ({_line(error)})",
            where=_WHERE,
            fix="start one: `ray start --head` here, `ray start --address=HOST:6379` on the others",
        ) from None


def _room(cluster: ClusterConfig) -> int:
    """Return how many workers fit on the machines now in the cluster. Raises RoboAlignError if none
    does."""
    import ray

    count = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            held = has.get("CPU", 0) // cluster.cpus
            count += int(min(held, has.get("GPU", 0) // cluster.gpus) if cluster.gpus else held)
    if not count:
        needs = f"{cluster.cpus} cores" + (
            f" and {cluster.gpus:g} of a GPU" if cluster.gpus else ""
        )
        raise RoboAlignError(
            f"no machine of the cluster holds a worker, which needs {needs}",
            where=_WHERE,
            fix="lower hardware.ray.cpus or hardware.ray.gpus, or add machines with `ray start`",
        )
    return count


def _stow(cargo: Mapping[str, Path]) -> dict[str, list[Any]]:
    """Put the files into Ray's object store, in pieces. A machine fetches each once, for all its workers."""
    import ray

    stowed: dict[str, list[Any]] = {}
    for name, path in cargo.items():
        pieces = range(max(1, math.ceil(path.stat().st_size / PIECE)))
        stowed[name] = [
            ray.put(np.fromfile(path, np.uint8, PIECE, offset=number * PIECE)) for number in pieces
        ]
    return stowed


def _loaded(load: Load, cargo: Mapping[str, Sequence[Any]]) -> Act:
    """Load the policy from files that are on this machine's disk only during loading, for one
    worker at a time."""
    import ray

    with _one_at_a_time(), tempfile.TemporaryDirectory(prefix="roboalign-policy-") as name:
        folder = Path(name)
        for relative, pieces in cargo.items():
            path = folder / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for piece in pieces:
                    ray.get(piece).tofile(file)
        return load(folder)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    with (Path(tempfile.gettempdir()) / f"roboalign-policy-{os.getuid()}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@functools.cache
def _installed() -> dict[str, str]:
    """Return the versions on this machine of what an episode depends on, apart from its policy."""
    folder = Path(roboalign.__file__).parent
    found = {
        "Python": platform.python_version(),
        "roboalign": hash_tree(folder, lambda path: path.suffix == ".py"),
    }
    simulators = {name for spec in sections().values() for name in spec.packages}
    for name in ("numpy", "torch", "transformers", *sorted(simulators)):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def queue_messages(
    installed: Mapping[str, str],
    sent: bytes,
    cargo: Mapping[str, Sequence[Any]],
    batches: Iterator[list[EpisodeKey]],
) -> Iterator[Message]:
    """Do the work of a worker on its machine: compare what is installed there, then run the batches
    as a local worker does."""
    here = _installed()
    other = [name for name in {**installed, **here} if installed.get(name) != here.get(name)]
    if other:
        problem = f"machine {socket.gethostname()} has another {', '.join(other)} than the one that runs the command"
        yield RoboAlignError(
            problem, where=_WHERE, fix="install the same there, then run the same command"
        )
        return
    load, benchmark, config = pickle.loads(sent)
    yield from work(functools.partial(_loaded, load, cargo), benchmark, config, batches)


@functools.cache
def _actor() -> Any:
    """Return the class that Ray makes a worker of. It is local, so Ray sends it by value, and a
    failed import becomes a message."""
    import ray

    class RolloutWorker:
        def __init__(self, installed: Any, sent: bytes, cargo: Any) -> None:
            self.arguments = installed, sent, cargo
            self.inbox: deque[Any] = deque()
            self.messages: Any = None

        def ready(self) -> None:
            pass

        def run(self, batch: list[Any]) -> Iterator[Any]:
            self.inbox.append(batch)
            if self.messages is None:
                try:
                    from roboalign.sim.ray import queue_messages
                except ImportError as error:
                    yield socket.gethostname(), str(error)
                    return
                self.messages = queue_messages(*self.arguments, iter(self.inbox.popleft, None))
            # Not `yield from`: Ray sends into the generator, and this may be an iterator.
            for _ in batch:
                message = next(self.messages, None)
                if message is None:  # the last one was an error
                    return
                yield message

    return ray.remote(RolloutWorker)


def _message(sent: Any) -> Message:
    if isinstance(sent, tuple):
        problem = f"machine {sent[0]} lacks a package ({sent[1]})"
        return RoboAlignError(
            problem, where=_WHERE, fix="install the same there, then run the same command"
        )
    return sent  # type: ignore[no-any-return]


class _RayWorker:
    """A worker on a machine that Ray chooses because it has room."""

    def __init__(
        self, cluster: ClusterConfig, sent: bytes, cargo: Mapping[str, Sequence[Any]]
    ) -> None:
        self.open: list[EpisodeKey] = []
        self.ready = False
        self.cluster = cluster
        options = {"num_cpus": cluster.cpus, "num_gpus": cluster.gpus, "max_restarts": 0}
        self.actor = _actor().options(**options).remote(_installed(), sent, cargo)
        self.next: Any = self.actor.ready.remote()
        """The source of the next message: a reference, or the stream of a batch; None while
        idle."""

    def give(self, batch: list[EpisodeKey]) -> None:
        self.next = self.actor.run.options(num_returns="streaming").remote(batch)

    def take(self) -> Iterator[Message]:
        import ray

        died = (
            ray.exceptions.RayActorError,
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.ObjectLostError,
        )
        try:
            while self.next is not None and ray.wait([self.next], timeout=0)[0]:
                if not self.ready:
                    ray.get(self.next)
                    self.ready, self.next = True, None
                    return
                reference = next(self.next, None)
                if reference is None:
                    self.next = None
                    return
                yield _message(ray.get(reference))
        except died as error:
            # It had no episode that could run again, and another worker would end the same way.
            if not self.ready:
                raise _lost(self.cluster, _line(error)) from None
            raise WorkerDied(_line(error)) from None

    def stop(self) -> None:
        import ray

        ray.kill(self.actor)


def _wait(cluster: ClusterConfig, crew: Sequence[_RayWorker]) -> None:
    import ray

    awaited = [worker.next for worker in crew if worker.next is not None]
    while awaited and not ray.wait(awaited, timeout=_LOOK_EVERY)[0]:
        _room(cluster)
