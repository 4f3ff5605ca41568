"""Run a robot's control loop: execute chunks at the data's rate while the next chunk is computed.

Needs only NumPy and the client. Time enters through `clock` and `inference`, so a test can simulate
both.
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
"""Number of recent latencies; the largest is the expected latency of the next request."""


class Robot(Protocol):
    """What the loop controls."""

    def observe(self) -> Any:
        """Return what the policy sees now: `images`, `state` and `instruction`."""

    def send(self, action: np.ndarray) -> None:
        """Command one action, float32 [A] in raw units."""


class Clock:
    """Real time."""

    def now(self) -> float:
        """Return a monotonic time in seconds."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class ThreadInference:
    """Run one request at a time, in a thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._result: np.ndarray | Exception | None = None

    def start(self, work: Callable[[], np.ndarray]) -> None:
        """Start the next request. The result of the last one must have been taken."""

        def run() -> None:
            try:
                self._result = work()
            except Exception as error:  # the loop decides what to do about it
                self._result = error

        self._result = None
        self._thread = threading.Thread(target=run, daemon=True, name="inference")
        self._thread.start()

    def take(self, wait: bool = False) -> np.ndarray | Exception | None:
        """Return the result once, or None if it is not ready; `wait` blocks until it is."""
        if self._thread is None or (self._thread.is_alive() and not wait):
            return None
        self._thread.join()
        self._thread = None
        return self._result


@dataclass(frozen=True)
class Limits:
    """Limits on the actions sent to the robot, in raw units: arrays [A], or None for no limit."""

    low: np.ndarray | None = None
    high: np.ndarray | None = None
    max_step: np.ndarray | None = None
    """Largest change from the previous action. For delta actions, `low` and `high` limit the motion
    and this limits how the motion changes."""
    stale: float | None = None
    """Seconds after which an observation is too old to act on."""
    give_up: float = 5.0
    """Seconds without an action to execute after which `run` raises."""

    def apply(self, action: np.ndarray, last: np.ndarray | None) -> tuple[np.ndarray, bool, bool]:
        """Return the nearest allowed action, and whether the range and the step changed it."""
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
    """Return the action that keeps the robot in place; `space` is the metadata's action space.

    An absolute target is repeated. A delta or velocity becomes 0, except for the gripper, which
    keeps its command.
    """
    if space.get("mode") == "absolute":
        return last.copy()
    held = np.zeros_like(last)
    if space.get("gripper", "none") != "none":
        held[-1] = last[-1]
    return held


class Executor:
    """Run `policy.act` and `robot` concurrently at `fps` control steps per second."""

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
        """Connect `policy`, which has `act` and `metadata` as RemotePolicy does, to `robot`.

        `every` is the minimum number of control steps between two requests. `fps` and `hold` are
        required if the metadata lacks the rate or the action space, since a guess could be wrong.

        Raises RoboAlignError if they are missing or if `stitch` does not suit the actions.
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
        """Execute `steps` control steps; the robot does not move until the first chunk has arrived.

        The request at a step draws its noise by `(*noise_key, step)`. Raises RoboAlignError if the
        first request fails, or if nothing could be executed for `limits.give_up` seconds; the
        report up to then is in `cadence`.
        """
        self._noise_key, self._asked, self._pending = noise_key, 0, False
        self._last: np.ndarray | None = None
        self._failed: Exception | None = None
        self._ask(0)
        self._take(0, wait=True)
        if self._failed is not None:
            raise self._failed
        # the first request includes the warm-up, and nothing moved during it
        self.cadence.latencies.clear()
        began, step = self.clock.now(), 0
        moved = began
        try:
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
        finally:
            self.cadence.seconds = self.clock.now() - began
        return self.cadence

    def _wait(self, began: float, step: int) -> int:
        """Sleep until the next control step and return its number; steps already past are skipped
        and counted as missed."""
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
        """Return the control steps until the answer is used: the most of the recent requests."""
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
            self.cadence.fail(result)
            return
        self._failed = None
        self.cadence.latencies.append(self.clock.now() - self._began)
        self.cadence.seams.append(self.cadence.steps)
        self.stitcher.add(TimedChunk(self._asked, result))

    def _execute(self, step: int) -> bool:
        """Send the action of this step, or hold; return whether there was an action."""
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
        """Return the error, with the reason and the fix of the last request that failed."""
        failed, reason = self._failed, ""
        fix = "look at the server and at the network"
        if failed is not None:
            reason = f": {failed}"
        if isinstance(failed, RoboAlignError):
            reason, fix = f": {failed.where}: {failed.problem}", failed.fix or fix
        return RoboAlignError(
            f"no action for {seconds:.1f} s, the robot was held{reason}", where="executor", fix=fix
        )
