"""The robot's control loop: executes chunks at the data's rate while the next one is computed.

Needs NumPy alone, beside the client. Time enters by `clock` and `inference`, so that a test can simulate both.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.serve.cadence import Cadence
from roboalign.serve.stitching import Stitch, Stitcher, TimedChunk, check_stitch

REMEMBERED = 10
"""Latencies of which the largest is expected of the next request."""


class Robot(Protocol):
    """What the loop drives."""

    def observe(self) -> Any:
        """What the policy is shown, now: `images`, `state` and `instruction`."""

    def send(self, action: np.ndarray) -> None:
        """Command one action float32 [A], raw units."""


class Clock:
    """Real time."""

    def now(self) -> float:
        """Seconds."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class ThreadInference:
    """One request at a time, in a thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._result: np.ndarray | Exception | None = None

    def start(self, work: Callable[[], np.ndarray]) -> None:
        """Begin; the last result was taken."""

        def run() -> None:
            try:
                self._result = work()
            except Exception as error:  # handed to the loop, which decides
                self._result = error

        self._result = None
        self._thread = threading.Thread(target=run, daemon=True, name="inference")
        self._thread.start()

    def take(self, wait: bool = False) -> np.ndarray | Exception | None:
        """The result, once; None where it is not there yet. `wait` until it is."""
        if self._thread is None or (self._thread.is_alive() and not wait):
            return None
        self._thread.join()
        self._thread = None
        return self._result


@dataclass(frozen=True)
class Limits:
    """What may be sent to the robot; in raw units, one number for each of the A, or None."""

    low: np.ndarray | None = None
    high: np.ndarray | None = None
    max_step: np.ndarray | None = None
    """Largest change from the action before. Of delta actions `low` and `high` limit the step, this how it changes."""
    stale: float | None = None
    """Seconds after which an observation is too old to act on."""
    give_up: float = 5.0
    """Seconds without an action to execute, after which `run` raises."""

    def apply(self, action: np.ndarray, last: np.ndarray | None) -> tuple[np.ndarray, bool, bool]:
        """The allowed action nearest to this one, and whether range and step changed it."""
        bounded = np.clip(action, self.low, self.high) if self._ranged else action
        stepped = bounded
        if self.max_step is not None and last is not None:
            stepped = np.clip(bounded, last - self.max_step, last + self.max_step)
        ranged, slowed = not np.array_equal(bounded, action), not np.array_equal(stepped, bounded)
        return stepped.astype(np.float32), ranged, slowed

    @property
    def _ranged(self) -> bool:
        return self.low is not None or self.high is not None


def hold_action(space: Mapping[str, Any], last: np.ndarray) -> np.ndarray:
    """The action that keeps the robot where it is, float32 [A]; `space` is the metadata's action space.

    An absolute target is repeated; a delta or a velocity becomes 0, and the gripper keeps its command.
    """
    if space.get("mode") == "absolute":
        return last.copy()
    held = np.zeros_like(last)
    if space.get("gripper", "none") != "none":
        held[-1] = last[-1]
    return held


class Executor:
    """Runs `policy.act` and `robot` together at `fps` control steps a second."""

    def __init__(
        self,
        policy: Any,
        robot: Robot,
        *,
        fps: float | None = None,
        stitch: Stitch = "latest",
        every: int = 1,
        limits: Limits | None = None,
        hold: Callable[[np.ndarray], np.ndarray] | None = None,
        clock: Clock | None = None,
        inference: Any = None,
    ) -> None:
        """`policy` has `act` and `metadata`, as RemotePolicy. `every`: control steps between two requests, at least.

        `fps` and `hold` are needed where the metadata does not say the rate or the action space: neither is guessed.
        Raises RoboAlignError where they are missing, or the actions cannot be stitched so.
        """
        metadata = policy.metadata
        check_stitch(stitch, metadata)
        self.fps = fps or metadata.get("fps")
        if not self.fps or self.fps <= 0:
            raise RoboAlignError(
                "the server does not know the rate of the actions",
                where="fps",
                fix="pass fps=, the frame rate of the data that the policy was trained on",
            )
        space = metadata.get("action", {}).get("space")
        if hold is None and not isinstance(space, Mapping):
            raise RoboAlignError(
                "the server does not know what the actions mean, so none is known that holds still",
                where="hold",
                fix="pass hold=, a function of the last action",
            )
        self.hold = hold or (lambda last: hold_action(space, last))
        self.policy, self.robot, self.every = policy, robot, every
        self.limits = limits or Limits()
        self.clock, self.inference = clock or Clock(), inference or ThreadInference()
        self.stitcher = Stitcher(stitch)
        self.cadence = Cadence(float(self.fps))

    def run(self, steps: int, noise_key: tuple[str | int, ...] | None = None) -> Cadence:
        """Execute `steps` control steps; the robot stands still until the first chunk is there.

        The noise of request n is drawn by `(*noise_key, step)`. Raises RoboAlignError where the first request fails,
        or where nothing could be executed for `limits.give_up` seconds.
        """
        self._noise_key, self._asked, self._pending = noise_key, 0, False
        self._last: np.ndarray | None = None
        self._failed: Exception | None = None
        self._ask(0)
        self._take(0, wait=True)
        if self._failed is not None:
            raise self._failed
        self.cadence.latencies.clear()  # the first is a warm-up, and nothing moved meanwhile
        began, step = self.clock.now(), 0
        moved = began
        while step < steps:
            self._take(step)
            if not self._pending and step - self._asked >= self.every:
                self._ask(step)
            now = self.clock.now()
            if self._execute(step):
                moved = now
            elif now - moved > self.limits.give_up:
                raise self._gave_up(now - moved)
            self.cadence.steps += 1
            step = self._wait(began, step)
        self.cadence.seconds = self.clock.now() - began
        return self.cadence

    def _wait(self, began: float, step: int) -> int:
        """Sleep until the next control step; the ones that have passed meanwhile are missed, and counted."""
        period, passed = 1 / float(self.fps or 1), self.clock.now() - began
        ahead = (step + 1) * period - passed
        if ahead >= 0:
            self.clock.sleep(ahead)
            return step + 1
        reached = max(step + 1, int(passed / period + 1e-9))
        self.cadence.missed += reached - step - 1
        self.cadence.overruns += 1
        return reached

    def _ask(self, step: int) -> None:
        began = self.clock.now()
        seen = self.robot.observe()
        self.cadence.observing.append(self.clock.now() - began)
        guide: dict[str, Any] = {}
        if self.stitcher.stitch == "rtc" and (rest := self.stitcher.rest(step)) is not None:
            guide = {"previous": rest, "delay": min(self._expected_delay(), len(rest))}
        key = None if self._noise_key is None else (*self._noise_key, step)
        self._asked, self._pending, self._began = step, True, began
        self.inference.start(lambda: self.policy.act(seen, key, **guide))

    def _expected_delay(self) -> int:
        """Control steps until the answer is used: the most of the last few."""
        recent = self.cadence.latencies[-REMEMBERED:]
        return int(np.ceil(max(recent) * float(self.fps or 1))) if recent else 0

    def _take(self, step: int, wait: bool = False) -> None:
        if not self._pending:
            return
        result = self.inference.take(wait)
        if result is None:
            return
        self._pending = False
        if isinstance(result, Exception):
            self._failed = result
            self.cadence.errors += 1
            return
        self._failed = None
        self.cadence.latencies.append(self.clock.now() - self._began)
        self.cadence.seams.append(self.cadence.steps)
        self.stitcher.add(TimedChunk(self._asked, result))

    def _execute(self, step: int) -> bool:
        """Send the step's action, or hold; whether there was one."""
        cadence, stale = self.cadence, self.limits.stale
        oldest = None if stale is None else step - int(stale * float(self.fps or 1))
        action = self.stitcher.action(step, oldest)
        found = action is not None
        if action is None:
            cadence.stale += self.stitcher.action(step) is not None
            cadence.late += self.stitcher.action(step) is None
            if self._last is None:
                return False
            action = self.hold(self._last)
        allowed, ranged, slowed = self.limits.apply(action, self._last)
        cadence.clipped += ranged
        cadence.slowed += slowed
        began = self.clock.now()
        self.robot.send(allowed)
        cadence.sending.append(self.clock.now() - began)
        cadence.actions.append(allowed)
        self._last = allowed
        return found

    def _gave_up(self, seconds: float) -> RoboAlignError:
        reason = f": {self._failed}" if self._failed else ""
        return RoboAlignError(
            f"no action for {seconds:.1f} s, the robot was held{reason}",
            where="executor",
            fix="look at the server and at the network",
        )
