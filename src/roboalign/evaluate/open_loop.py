"""Compare a policy's chunks with recorded ones along held-out episodes: open loop, without a
simulator.

The policy sees each recorded observation, and its chunks are laid end to end. Errors are a share of
each dimension's spread and are compared with two baselines that see no image. None of this predicts
success: on the robot, each error moves the next observation.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from roboalign.actions.spaces import GRIPPER_VALUES, ActionSpace
from roboalign.core.errors import RoboAlignError
from roboalign.core.progress import Progress
from roboalign.episodes.episode import Episode
from roboalign.evaluate.statistics import mean_interval
from roboalign.sim.base import Observation

MOST_REPLAYED = 20
"""Held-out episodes that are compared, unless said otherwise."""
SHOWN = 3
"""Episodes of which the traces are kept for figures."""
SHOWN_STEPS = 600
METHODS = ("policy", "mean", "hold")
"""The policy; the mean action of the other episodes; the last recorded action, held."""
CAVEAT = (
    "Open loop: the policy was shown recorded observations, and its actions were compared with the "
    "recorded ones. That checks units, signs, cameras and training; it does not predict success on the "
    "robot, where each action changes what is seen next."
)

ChunkActs = Callable[[list[Observation], list[tuple[str | int, ...]]], np.ndarray]
"""Observations and noise keys -> chunks [B, H, A], raw units: a policy, here or behind a server."""


@dataclass(frozen=True)
class Replayed:
    """One episode: what was recorded, and what each method says at every chunk's start."""

    episode: Episode
    horizon: int
    chunks: dict[str, np.ndarray]
    """Method -> float64 [N, H, A], of the chunks that start at 0, H, 2H, ..."""
    seconds: list[float]
    """Of each call of the policy."""

    @property
    def recorded(self) -> np.ndarray:
        return self.episode.actions.astype(np.float64)

    def trace(self, method: str) -> np.ndarray:
        """Return float64 [T, A]: the chunks end to end."""
        whole = self.chunks[method].reshape(-1, self.recorded.shape[1])
        return whole[: len(self.recorded)]


def choose_held_out(episodes: Sequence[Episode], most: int = MOST_REPLAYED) -> list[Episode]:
    """Return at most `most` episodes, evenly spaced."""
    picks = np.linspace(0, len(episodes) - 1, min(most, len(episodes))).round().astype(int)
    return [episodes[i] for i in picks]


def replay_episodes(
    act: ChunkActs,
    horizon: int,
    episodes: Sequence[Episode],
    cameras: Sequence[str],
    mean_action: np.ndarray,
) -> list[Replayed]:
    """Ask the policy at every `horizon`-th step of each episode.

    `mean_action` [A] is the first baseline. The flow's noise is keyed by episode and step, so that
    the numbers do not depend on where the policy runs. Raises RoboAlignError if a chunk has another
    shape than recorded actions.
    """
    total = sum(-(-len(episode) // horizon) for episode in episodes)
    found = []
    with Progress("replay", total) as progress:
        for episode in episodes:
            chunks: dict[str, list[np.ndarray]] = {method: [] for method in METHODS}
            seconds = []
            for t in range(0, len(episode), horizon):
                seen = Observation(
                    {camera: episode.frame(camera, t) for camera in cameras},
                    episode.state[t],
                    episode.instruction,
                )
                began = time.perf_counter()
                chunk = act([seen], [(episode.episode_id, t)])[0]
                seconds.append(time.perf_counter() - began)
                _check_chunk(chunk, horizon, episode)
                chunks["policy"].append(chunk)
                last = episode.actions[t - 1] if t else mean_action
                chunks["mean"].append(np.tile(mean_action, (horizon, 1)))
                chunks["hold"].append(np.tile(last, (horizon, 1)))
                progress.advance()
            stacked = {name: np.stack(parts).astype(np.float64) for name, parts in chunks.items()}
            found.append(Replayed(episode, horizon, stacked, seconds))
    return found


def _check_chunk(chunk: np.ndarray, horizon: int, episode: Episode) -> None:
    wanted = (horizon, episode.actions.shape[1])
    if chunk.shape != wanted:
        raise RoboAlignError(
            f"the policy answers {list(chunk.shape)}, recorded are {list(wanted)}: other actions",
            where=f"episode {episode.episode_id}",
            fix="compare with data of the robot that the policy was trained on",
        )


def spread_of(episodes: Sequence[Episode]) -> tuple[np.ndarray, np.ndarray]:
    """Return (mean, standard deviation) [A] of the recorded actions of all these episodes."""
    actions = np.concatenate([episode.actions for episode in episodes]).astype(np.float64)
    return actions.mean(axis=0), actions.std(axis=0)


def measure_open_loop(
    replayed: Sequence[Replayed],
    spread: np.ndarray,
    space: ActionSpace | None,
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the numbers of `replayed`, ready for JSON.

    `spread` [A] scales the errors. A dimension that hardly moves (less than a thousandth of the
    widest) has no share and counts in no mean: dividing by its spread would amplify noise.
    """
    width = len(spread)
    moving = spread > max(spread.max(initial=0.0) / 1000, 1e-9)
    scale = np.where(moving, spread, np.nan)
    names = tuple(names) if len(names) == width else action_labels(space, width)
    errors = {m: [np.abs(_difference(r, r.trace(m), space)) for r in replayed] for m in METHODS}
    raw = {m: np.concatenate(parts) for m, parts in errors.items()}
    shares = {
        m: [np.nanmean(part / scale, axis=1) for part in parts] for m, parts in errors.items()
    }
    fps = float(replayed[0].episode.fps)
    return {
        "caveat": CAVEAT,
        "episodes": len(replayed),
        "steps": len(raw["policy"]),
        "chunks": sum(len(r.seconds) for r in replayed),
        "horizon": replayed[0].horizon,
        "fps": fps,
        "overall": {m: _overall(parts) for m, parts in shares.items()},
        "dimensions": [
            {
                "name": names[d],
                "unit": unit_of(space, d),
                "spread": float(spread[d]),
                "moves": bool(moving[d]),
                "error": {m: float(raw[m][:, d].mean()) for m in METHODS},
            }
            for d in range(width)
        ],
        "by_step": {m: _by_step(replayed, m, scale, space) for m in METHODS},
        "gripper": gripper_agreement(replayed, space),
        "latency_ms": _latency(replayed),
        "by_episode": [
            {
                "episode": r.episode.episode_id,
                "instruction": r.episode.instruction,
                **{m: float(np.mean(shares[m][i])) for m in METHODS},
            }
            for i, r in enumerate(replayed)
        ],
        "traces": [_trace(r) for r in replayed[:SHOWN]],
    }


def _overall(shares: list[np.ndarray]) -> dict[str, Any]:
    """Return the mean share with its interval over episodes; steps of an episode are not
    independent."""
    clusters = [i for i, part in enumerate(shares) for _ in range(len(part))]
    found = mean_interval(np.concatenate(shares), clusters=clusters)
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}


def _difference(one: Replayed, said: np.ndarray, space: ActionSpace | None) -> np.ndarray:
    return signed_difference(said, one.recorded, space)


def signed_difference(
    said: np.ndarray, recorded: np.ndarray, space: ActionSpace | None
) -> np.ndarray:
    """Return said - recorded [T, A]; Euler angles of an absolute pose by the shorter way around."""
    difference = said - recorded
    if space is not None and space.mode == "absolute" and space.rotation == "euler_xyz":
        part, turn = space.rotation_part, 2 * np.pi / space.rotation_scale
        difference[:, part] = (difference[:, part] + turn / 2) % turn - turn / 2
    return difference


def _by_step(
    replayed: Sequence[Replayed], method: str, scale: np.ndarray, space: ActionSpace | None
) -> list[float]:
    """Return the mean share [H] at each step of the chunk; steps past an episode's end do not
    count."""
    sums, counts = np.zeros(replayed[0].horizon), np.zeros(replayed[0].horizon)
    for one in replayed:
        difference = np.abs(_difference(one, one.trace(method), space))
        share = np.nanmean(difference / scale, axis=1)
        step = np.arange(len(share)) % one.horizon
        sums += np.bincount(step, weights=share, minlength=one.horizon)
        counts += np.bincount(step, minlength=one.horizon)
    return [float(s / n) if n else float("nan") for s, n in zip(sums, counts)]


def _latency(replayed: Sequence[Replayed]) -> dict[str, float]:
    """Return milliseconds of a call of the policy; the first one warms up and does not count."""
    calls = [seconds for one in replayed for seconds in one.seconds]
    values = 1000 * np.array(calls[1:] or calls)
    return {
        "median": float(np.median(values)),
        "p95": float(np.quantile(values, 0.95)),
        "max": float(values.max()),
        "calls": len(values),
    }


def _trace(one: Replayed) -> dict[str, Any]:
    def rounded(values: np.ndarray) -> list[list[float]]:
        return np.round(values[:SHOWN_STEPS], 5).tolist()

    return {
        "episode": one.episode.episode_id,
        "instruction": one.episode.instruction,
        "steps": len(one.recorded),
        "recorded": rounded(one.recorded),
        "predicted": rounded(one.trace("policy")),
    }


# Names and units ------------------------------------------------------------------------------------------------------


def action_labels(space: ActionSpace | None, width: int) -> tuple[str, ...]:
    """Return the names of the action's dimensions; numbers if nothing names them."""
    if space is not None and space.dim == width:
        return space.names
    return tuple(f"action {d}" for d in range(width))


def unit_of(space: ActionSpace | None, dimension: int) -> str:
    """Return the unit of a dimension: `m`, `rad`, `0.05 m`, `rad/s`; "" if it has none or it is
    not known."""
    if space is None:
        return ""
    if dimension in range(*space.position.indices(space.dim)):
        unit, scale = "m", space.position_scale
    elif dimension in range(*space.rotation_part.indices(space.dim)) and (
        space.control == "joint"
        or space.rotation not in ("quaternion_xyzw", "quaternion_wxyz", "rot6d")
    ):
        unit, scale = "rad", space.rotation_scale
    else:
        return ""
    unit += "/s" if space.mode == "velocity" else ""
    return unit if scale == 1.0 else f"{scale:g} {unit}"


# The gripper ----------------------------------------------------------------------------------------------------------


def gripper_agreement(
    replayed: Sequence[Replayed], space: ActionSpace | None
) -> dict[str, Any] | None:
    """Return how often the gripper is on the recorded side, and how far its switches are off.

    Each recorded switch is paired with the nearest predicted one of its direction within a chunk's
    length. None if the action space names no gripper.
    """
    if space is None or space.gripper == "none":
        return None
    closed, opened = GRIPPER_VALUES[space.gripper]
    middle, column = (closed + opened) / 2, space.gripper_part.start
    same, closing, lags = [], [], list[int]()
    switches = missed = extra = 0
    for one in replayed:
        towards = np.sign(closed - opened)
        recorded = (one.recorded[:, column] - middle) * towards > 0
        said = (one.trace("policy")[:, column] - middle) * towards > 0
        same.append(recorded == said)
        closing.append(recorded)
        paired, lost, more = match_switches(recorded, said, one.horizon)
        lags += paired
        switches += len(paired) + lost
        missed += lost
        extra += more
    share = float(np.concatenate(closing).mean())
    fps = float(replayed[0].episode.fps)
    return {
        "agreement": float(np.concatenate(same).mean()),
        "constant": max(share, 1 - share),
        "switches": switches,
        "missed": missed,
        "extra": extra,
        "lag_steps": float(np.median(lags)) if lags else None,
        "lag_seconds": float(np.median(lags)) / fps if lags else None,
        "lag_worst_steps": max((abs(lag) for lag in lags), default=None),
    }


def match_switches(
    recorded: np.ndarray, said: np.ndarray, reach: int
) -> tuple[list[int], int, int]:
    """Return (steps by which each paired switch is late, missed ones, extra ones).

    `recorded` and `said` are bool [T], whether the gripper is to be closed.
    """
    lags, used = [], set[int]()
    wanted, found = _switches(recorded), _switches(said)
    for step, closes in wanted:
        near = [
            (abs(other - step), other)
            for other, way in found
            if way == closes and other not in used and abs(other - step) <= reach
        ]
        if near:
            _, other = min(near)
            used.add(other)
            lags.append(other - step)
    return lags, len(wanted) - len(lags), len(found) - len(used)


def _switches(closed: np.ndarray) -> list[tuple[int, bool]]:
    """Return (step, whether it closes) of each change."""
    return [(int(t) + 1, bool(closed[t + 1])) for t in np.flatnonzero(closed[1:] != closed[:-1])]
