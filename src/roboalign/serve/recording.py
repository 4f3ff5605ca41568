"""Record a server's requests and answers as a LeRobot data set: one frame per request, one episode
per rollout.

The protocol does not say where an episode ends. It ends with its connection, a `reset`, a different
instruction, or SILENCE seconds without a request. If noise keys are sent, all parts but the last
identify the episode. The action of a frame is the first of its chunk; `answers.jsonl` has the
complete chunks and the times. A killed server loses its open episodes.
"""

import io
import queue
import statistics
import threading
import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from roboalign.actions.spaces import ActionSpace
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import append_jsonl, as_message, check_output, read_json
from roboalign.core.progress import say
from roboalign.episodes.episode import Camera, encode_png
from roboalign.episodes.formats.lerobot_writer import LeRobotWriter
from roboalign.episodes.pictures import rgb_of_file
from roboalign.serve.contract import Contract, Query

ANSWERS = "answers.jsonl"
SILENCE = 60.0
MOST = 4096
"""Maximum requests in an episode; a longer one continues as a new episode."""
UNKNOWN_FPS = 1.0
"""Requests per second of a recording whose first episode has a single request."""


@dataclass
class _Open:
    instruction: str
    connection: object
    pictures: dict[str, list[bytes]] = field(default_factory=dict)
    states: list[np.ndarray] = field(default_factory=list)
    chunks: list[np.ndarray] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    noise_keys: list[Any] = field(default_factory=list)


class DatasetRecorder:
    """A `Recorder` that writes in its own thread, so that the data set on disk is readable after
    each episode.

    The fps of the data set is the rate of requests, measured in its first episode: a robot asks
    once per chunk, not once per step. If a write fails, recording stops with a message and the
    robot continues; `close` raises the error.
    """

    def __init__(self, folder: str | Path, contract: Contract, *, silence: float = SILENCE) -> None:
        """Open a recording. Raises RoboAlignError if the folder contains anything else, or if
        LeRobot cannot store the shapes."""
        self.folder, self.contract, self.silence = Path(folder), contract, silence
        check_output(folder, marks=("data/chunk-000/file-000.parquet", ANSWERS))
        if contract.action_dim < 2 or (contract.state_dim or 2) < 2:
            raise RoboAlignError(
                "LeRobot keeps no states or actions of one number", where=str(folder)
            )
        self.episodes = 0
        self.fault: RoboAlignError | None = None
        self._said = False
        self._writer: LeRobotWriter | None = None
        self._open: dict[Hashable, _Open] = {}
        self._todo: queue.Queue[tuple[Any, ...] | None] = queue.Queue(maxsize=512)
        self._thread = threading.Thread(target=self._work, daemon=True, name="recording")
        self._thread.start()

    def keep(self, connection: object, query: Query, answer: np.ndarray, seconds: float) -> None:
        """Record one observation and its chunk, float32 [H, A]; waits if the disk is slower than
        the robot."""
        self._todo.put((connection, query, answer, seconds, time.time()))

    def end(self, connection: object) -> None:
        """End the episodes of a connection."""
        self._todo.put((connection,))

    def close(self) -> None:
        """Write the open episodes. Raises the RoboAlignError that stopped the recording."""
        self._todo.put(None)
        self._thread.join()
        if self.fault is not None:
            raise self.fault

    def _work(self) -> None:
        while (task := self._todo.get()) is not None:
            self._guarded(task)
        self._guarded(None)

    def _guarded(self, task: tuple[Any, ...] | None) -> None:
        if self.fault is not None:
            return
        try:
            if task is None or len(task) == 1:
                for key, one in list(self._open.items()):
                    if task is None or one.connection is task[0]:
                        self._finish(key)
            else:
                self._add(*task)
        except (RoboAlignError, OSError) as error:
            self.fault = error if isinstance(error, RoboAlignError) else as_message(error)
            say(f"recording stopped: {self.fault}", "serve")

    def _add(
        self, connection: object, query: Query, chunk: np.ndarray, seconds: float, now: float
    ) -> None:
        key: Hashable = (id(connection), (query.noise_key or ())[:-1])
        for other, one in list(self._open.items()):
            other_task = other == key and one.instruction != query.instruction
            full = other == key and len(one.times) >= MOST
            if other_task or full or now - one.times[-1] > self.silence:
                self._finish(other)
        episode = self._open.setdefault(key, _Open(query.instruction, connection))
        for camera, picture in query.images.items():
            episode.pictures.setdefault(camera, []).append(encode_png(picture))
        episode.states.append(query.state)
        episode.chunks.append(chunk)
        episode.times.append(now)
        episode.seconds.append(seconds)
        episode.noise_keys.append(query.noise_key)

    def _finish(self, key: Hashable) -> None:
        """Write an episode, and the metadata of all episodes so far."""
        episode = self._open.pop(key)
        rate = 1 / statistics.median(np.diff(episode.times)) if len(episode.times) > 1 else None
        writer = self._writer = self._writer or self._start(episode, rate)
        if not self._said and rate is not None and not 0.8 < rate / writer.fps < 1.25:
            self._said = True
            say(
                f"an episode of {rate:.3g} requests a second is kept at {writer.fps:g}; {ANSWERS} has the times",
                "serve",
            )
        name = f"served/{time.strftime('%Y%m%d-%H%M%S', time.gmtime(episode.times[0]))}-{len(writer.records)}"
        append_jsonl(
            self.folder / ANSWERS,
            {
                "episode_id": name,
                "model": self.contract.model,
                "times": episode.times,
                "seconds": episode.seconds,
                "noise_keys": episode.noise_keys,
                "chunks": [chunk.tolist() for chunk in episode.chunks],
            },
        )
        writer.add(
            episode_id=name,
            task=episode.instruction,
            instruction=episode.instruction,
            actions=np.stack([chunk[0] for chunk in episode.chunks]),
            state=np.stack(episode.states),
            frames={
                camera: (rgb_of_file(one) for one in files)
                for camera, files in episode.pictures.items()
            },
            cameras={name: Camera(name, *size) for name, size in writer.cameras.items()},
        )
        writer.finalize()
        self.episodes += 1

    def _start(self, episode: _Open, rate: float | None) -> LeRobotWriter:
        """Return the writer for the shapes of the first episode; an existing data set keeps its
        rate."""
        from PIL import Image

        contract, info = self.contract, self.folder / "meta" / "info.json"
        fps = float(read_json(info)["fps"]) if info.is_file() else None
        space, width = contract.action_space, len(episode.states[0])
        return LeRobotWriter(
            self.folder,
            fps=fps or (UNKNOWN_FPS if rate is None else float(f"{rate:.3g}")),
            cameras={
                camera: Image.open(io.BytesIO(files[0])).size
                for camera, files in episode.pictures.items()
            },
            action_names=contract.action_names
            or [f"action_{number}" for number in range(contract.action_dim)],
            state_names=contract.state_names or [f"state_{number}" for number in range(width)],
            action_space=None if space is None else ActionSpace.model_validate(dict(space)),
            episodes_per_file=1,
            source={"name": "roboalign serve --record", "first_episode": contract.model},
        )
