"""A robot in simulated time, and a policy with two equally good ways: what stitching of chunks is measured on.

The policy is an exact flow: of two paths past an obstacle, left and right, mirror images of each other, it draws one by
its noise, and follows it up to a small spread. What it draws anew at each request is what makes seams jump.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from roboalign.serve.cadence import Cadence
from roboalign.serve.executor import Executor
from roboalign.vla.guidance import Guide, prefix_weights

HORIZON, SPREAD, FPS = 32, 0.05, 20.0
SPACE = {"control": "end-effector", "mode": "absolute", "rotation": "none", "gripper": "none"}
METADATA = {
    "fps": FPS,
    "horizon": HORIZON,
    "real_time_chunking": True,
    "action": {"shape": [HORIZON, 2], "space": SPACE},
}


def path(start: int, length: int = HORIZON) -> np.ndarray:
    """float32 [length, 2]: the right-hand way from control step `start` on; the left-hand one is its mirror image."""
    step = np.arange(start, start + length)
    return np.stack([0.5 + 0.2 * np.sin(step / 9), 0.3 * np.cos(step / 13)], axis=1).astype(
        np.float32
    )


class TwoWays:
    """`act` by Euler steps along the exact marginal velocity of the mixture of both paths."""

    def __init__(self, steps: int = 10, seed: int = 0) -> None:
        self.steps, self.metadata = steps, METADATA
        self.generator = torch.Generator().manual_seed(seed)

    def act(
        self,
        seen: Any,
        noise_key: object = None,
        *,
        previous: np.ndarray | None = None,
        delay: int = 0,
    ) -> np.ndarray:
        """float32 [HORIZON, 2] for the control step that `seen.state[0]` is."""
        ways = torch.from_numpy(
            np.stack([path(int(seen.state[0])) * sign for sign in ((1, 1), (-1, 1))])
        )
        guide = None
        if previous is not None:
            target = np.zeros((1, HORIZON, 2), np.float32)
            target[0, : len(previous)] = previous
            weights = prefix_weights(HORIZON, len(previous), delay)
            guide = Guide(torch.from_numpy(target), torch.from_numpy(weights)[None, :, None])
        actions = torch.randn((1, HORIZON, 2), generator=self.generator)
        for step in range(self.steps):
            velocity = mixture_velocity(actions, ways, step / self.steps)
            if guide is not None:
                velocity = velocity + guide.pull(actions, velocity, step, self.steps)
            actions = actions + velocity / self.steps
        return actions[0].numpy()


def mixture_velocity(actions: torch.Tensor, ways: torch.Tensor, time: float) -> torch.Tensor:
    """E[action - noise | x_t] for actions N(way, SPREAD^2), ways equally likely, x_t = (1 - t) noise + t action."""
    variance = (1 - time) ** 2 + (time * SPREAD) ** 2
    error = actions[:, None] - time * ways[None]
    share = torch.softmax(-(error**2).sum(dim=(2, 3)) / (2 * variance), dim=1)
    clean = ways[None] + time * SPREAD**2 / variance * error
    expected = (share[:, :, None, None] * clean).sum(dim=1)
    return (expected - actions) / (1 - time)


class SimulatedClock:
    """Time that passes where it is slept."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        """Seconds."""
        return self.time

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.time += seconds


class SimulatedInference:
    """A request whose answer is there after `seconds` of the clock."""

    def __init__(self, clock: SimulatedClock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds
        self.chunks: list[np.ndarray] = []
        self.result: np.ndarray | Exception | None = None

    def start(self, work: Any) -> None:
        """Compute now, deliver later."""
        self.due = self.clock.now() + self.seconds
        try:
            self.result = work()
        except Exception as error:
            self.result = error

    def take(self, wait: bool = False) -> np.ndarray | Exception | None:
        """The result once it is due."""
        if wait:
            self.clock.sleep(max(0.0, self.due - self.clock.now()))
        if self.result is None or self.clock.now() < self.due - 1e-9:
            return None
        result, self.result = self.result, None
        return result


class SimulatedRobot:
    """Shows the control step that it is at, and keeps what it is sent."""

    def __init__(self, clock: SimulatedClock) -> None:
        self.clock, self.began = clock, None
        self.sent: list[np.ndarray] = []

    def observe(self) -> Any:
        """The number of the control step as the state."""
        return SimpleNamespace(images={}, state=np.array([len(self.sent)]), instruction="pass")

    def send(self, action: np.ndarray) -> None:
        """Take an action."""
        self.sent.append(action)


def run(stitch: str, seconds: float, *, steps: int = 400, every: int = 8, seed: int = 0) -> Cadence:
    """`steps` control steps with inference that takes `seconds`."""
    clock = SimulatedClock()
    executor = Executor(
        TwoWays(seed=seed),
        SimulatedRobot(clock),
        stitch=stitch,
        every=every,
        clock=clock,
        inference=SimulatedInference(clock, seconds),
    )
    return executor.run(steps)
