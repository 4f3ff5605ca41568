"""Measure how a control loop kept its time, and report it."""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Cadence:
    """Counts and times of a run. Times are in seconds, actions in raw units."""

    fps: float
    """Requested control steps per second."""
    steps: int = 0
    seconds: float = 0.0
    overruns: int = 0
    """Control steps that took longer than their period."""
    missed: int = 0
    """Control steps skipped because an earlier step took too long."""
    late: int = 0
    """Steps that no chunk covered: the robot was held."""
    stale: int = 0
    """Steps that only chunks of outdated observations covered: the robot was held."""
    clipped: int = 0
    """Actions changed by the limits on the range."""
    slowed: int = 0
    """Actions changed by the limit on the step."""
    errors: int = 0
    """Requests that failed."""
    faults: dict[str, int] = field(default_factory=dict)
    """Why they failed, and how often."""
    latencies: list[float] = field(default_factory=list)
    """Seconds from observation to chunk, without the first request: the robot waits for that
    one."""
    observing: list[float] = field(default_factory=list)
    sending: list[float] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    """Actions that were sent."""
    seams: list[int] = field(default_factory=list)
    """Control steps, counted from 0, before which a chunk arrived."""

    def fail(self, error: Exception) -> None:
        """Count a request that failed."""
        self.errors += 1
        self.faults[str(error)] = self.faults.get(str(error), 0) + 1

    def seam_jumps(self) -> np.ndarray:
        """Return float [n]: the largest change in any dimension of the action at each seam."""
        sent = np.array(self.actions)
        places = [seam for seam in sorted(set(self.seams)) if 0 < seam < len(sent)]
        return np.array([np.abs(sent[place] - sent[place - 1]).max() for place in places])

    def text(self) -> str:
        """Return the report, one fact per line."""
        rate = self.steps / self.seconds if self.seconds else 0.0
        lines = [
            f"{self.steps} control steps, {rate:.1f} a second of {self.fps:g}; {self.overruns} overran, "
            f"{self.missed} missed",
            f"held: {self.late} without a chunk, {self.stale} with stale chunks; {self.errors} requests failed",
            f"limited: {self.clipped} by range, {self.slowed} by step",
        ]
        lines += [f"failed {count} x: {why}" for why, count in self.faults.items()]
        for name, times in (
            ("request", self.latencies),
            ("observe", self.observing),
            ("send", self.sending),
        ):
            if times:
                p50, p95, worst = 1000 * np.quantile(times, [0.5, 0.95, 1.0])
                lines.append(f"{name}: p50 {p50:.1f} ms, p95 {p95:.1f} ms, worst {worst:.1f} ms")
        if len(jumps := self.seam_jumps()):
            lines.append(
                f"jump at {len(jumps)} seams: median {np.median(jumps):.3g}, largest {jumps.max():.3g}"
            )
        return "\n".join(lines)
