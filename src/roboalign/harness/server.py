"""Connect to a server with its preset, and act on an observation as the policy behind it does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.harness.presets import (
    OpenpiPreset,
    OwnPreset,
    Preset,
    StarVlaPreset,
    checked_chunk,
    openpi_keys,
)
from roboalign.harness.settings import ClientConfig, WorldShape, read_gripper
from roboalign.harness.wires import WebsocketWire, Wire
from roboalign.sim.base import Benchmark, EnvironmentCrash, Observation
from roboalign.sim.registry import BenchmarkSpec
from roboalign.sim.rollout import Act, Key

REFUSALS = 3
"""Episodes in a row whose first request gets no usable answer, after which the command stops."""


@dataclass(frozen=True)
class Server:
    """Where the server is and how it is spoken to."""

    address: str
    api_key: str | None
    client: ClientConfig
    """Resolved settings."""

    def connect(
        self, expected: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Wire:
        """Open a connection. Raises RoboAlignError if it cannot be reached or is another server
        than the `expected` metadata says."""
        timeout = timeout or self.client.timeout
        if self.client.preset == "groot":
            from roboalign.harness.groot import ZmqWire

            return ZmqWire(self.address, timeout=timeout, api_key=self.api_key, expected=expected)
        return WebsocketWire(self.address, timeout=timeout, api_key=self.api_key, expected=expected)


def make_preset(config: ClientConfig, world: WorldShape, metadata: Mapping[str, Any]) -> Preset:
    """Return the preset of resolved settings. Raises RoboAlignError if it does not fit the
    benchmark or the server."""
    if config.preset == "groot":
        from roboalign.harness.groot import GrootPreset

        return GrootPreset(config, world)
    if config.preset == "roboalign":
        return OwnPreset(config, world, metadata)
    if config.preset == "starvla":
        return StarVlaPreset(config, world, metadata)
    return OpenpiPreset(config, openpi_keys(config.keys, world))


class Actor:
    """The policy behind a connection, as rollouts call it: one observation at a time."""

    def __init__(
        self, wire: Wire, preset: Preset, client: ClientConfig, action_dim: int, replan_every: int
    ) -> None:
        self.wire, self.preset, self.client = wire, preset, client
        self.action_dim, self.replan_every = action_dim, replan_every
        self.refused = 0

    def answer(self, observation: Observation, key: Key) -> np.ndarray:
        """Return the server's chunk, float32 [H, A], before the gripper is read. Raises
        EnvironmentCrash if the answer is unusable."""
        if key[2] == 0:
            self.wire.begin_episode()
        reply = self.wire.ask(self.preset.request(observation, key))
        return checked_chunk(self.preset.actions(reply), self.action_dim, self.replan_every)

    def __call__(self, observations: list[Observation], keys: list[Key]) -> np.ndarray:
        try:
            chunks = [self.answer(*pair) for pair in zip(observations, keys, strict=True)]
        except EnvironmentCrash as crash:
            if any(step == 0 for _, _, step in keys):
                self._count_refusal(crash)
            raise
        self.refused = 0
        return read_gripper(np.stack(chunks), self.client.gripper or "as-is")

    def _count_refusal(self, crash: EnvironmentCrash) -> None:
        self.refused += 1
        if self.refused >= REFUSALS:
            raise RoboAlignError(
                f"{self.refused} episodes in a row got no answer to their first request; the last: {crash}",
                where="eval",
                fix="look at the server; then the same command with --retry-crashes runs them again",
            )


def world_of(spec: BenchmarkSpec, benchmark: Benchmark) -> WorldShape:
    """Return what a client has to know about a benchmark."""
    cameras = tuple(benchmark.cameras)
    return WorldShape(spec.section, cameras, benchmark.action_dim, benchmark.state_dim)


def load_actor(
    server: Server, world: WorldShape, replan_every: int, expected: Mapping[str, Any]
) -> Act:
    """Connect in a worker process. Raises RoboAlignError if it is not the `expected` server."""
    wire = server.connect(expected)
    preset = make_preset(server.client, world, wire.metadata)
    return Actor(wire, preset, server.client, world.action_dim, replan_every)
