"""Train a policy by its success in the simulator: rollouts, an update from them, and so on."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from roboalign.core.files import atomic_path, read_jsonl, write_text
from roboalign.core.progress import Progress, say
from roboalign.core.trackers import record_metrics
from roboalign.online.config import OnlineConfig
from roboalign.online.groups import Counts, Groups, Roll, roll_groups
from roboalign.vla.checkpoint import read_checkpoint

WEIGHTS = "rollout.safetensors"
"""The weights that explore, in the folder of the training; what runs next to the simulators reads
them."""


class Learner(Protocol):
    """What learns from rollouts: a flow head (improve.py), or the MLLM's tokens (tokens.py)."""

    @property
    def device(self) -> torch.device: ...

    def judge(self, rewards: Float[Tensor, " rollouts"]) -> Float[Tensor, " rollouts"]:
        """Return the advantages of a group's rollouts, if no critic gives them."""

    def weights(self) -> Mapping[str, Tensor]:
        """Return what is trained, by name."""

    def parts(self) -> dict[str, Any]:
        """Return what a checkpoint holds; each has `state_dict` and `load_state_dict`."""

    def settings(self) -> list[Any]:
        """Return what else must be the same when a killed training resumes, as JSON."""

    def learn(self, groups: Groups, generator: torch.Generator) -> dict[str, float]:
        """Update the weights from the groups, and return what was measured."""

    def save(self, folder: Path) -> None:
        """Write the policy."""


def train_online(
    learner: Learner,
    roll: Roll,
    tasks: Sequence[str],
    config: OnlineConfig,
    out_dir: str | Path,
    *,
    seed: int,
) -> dict[str, Any]:
    """Train in place, save the policy in `out_dir`/policy, and return the ledger record.

    `roll` runs episodes of a policy that explores with the weights in `out_dir`/WEIGHTS, on the
    benchmark that `repeated` makes. metrics.jsonl has a record for each update. After each,
    everything is saved: a killed training does its last update again, and ends with the same
    weights.

    Raises RoboAlignError if a loss is not finite, if all rollouts crash, or if the checkpoint is of
    other settings.
    """
    out_dir = Path(out_dir)
    settings = _fingerprint(learner, tasks, config, seed)
    start, seconds, counts = _resume(out_dir, learner, settings)
    began = time.monotonic() - seconds
    with Progress("online", config.updates, start) as progress:
        for update in range(start, config.updates):
            publish(learner, out_dir)
            earlier = Counts(**asdict(counts))
            groups = roll_groups(
                roll,
                tasks,
                config,
                counts,
                lambda note: progress.advance(0, note=note),
                learner.judge,
            )
            rolled, learned = time.monotonic(), {}
            if groups.found:
                generator = torch.Generator().manual_seed(_number(seed, update))
                learned = learner.learn(groups, generator)
            now = time.monotonic()
            record = {
                "step": update + 1,
                "seconds": now - began,
                "learning_seconds": now - rolled,
                **_outcome(earlier, counts),
                "groups": groups.found,
                **learned,
            }
            record_metrics(out_dir / "metrics.jsonl", record)
            _save(out_dir, learner, settings, update + 1, now - began, counts)
            progress.advance(note=f"success {record['success']:.2f}, {groups.found} groups learned")
    if not counts.mixed:
        say(
            f"no group of {counts.drawn} had both a success and a failure: the policy is as it was",
            "online",
        )
    learner.save(out_dir / "policy")
    (out_dir / WEIGHTS).unlink(missing_ok=True)
    return {"updates": config.updates, **asdict(counts), "train_seconds": time.monotonic() - began}


def _outcome(earlier: Counts, counts: Counts) -> dict[str, Any]:
    """Return what the rollouts of one update came to. The success is that of the policy that
    explores, over all groups, those that taught nothing included."""
    new = {name: value - asdict(earlier)[name] for name, value in asdict(counts).items()}
    return {
        "episodes": counts.episodes,
        "rollouts": new["episodes"],
        "crashes": new["crashes"],
        "success": new["successes"] / (new["episodes"] - new["crashes"]),
        "drawn_groups": new["drawn"],
        "mixed_share": new["mixed"] / new["drawn"],
    }


def publish(learner: Learner, out_dir: Path) -> None:
    """Write the weights for the simulators' side; their name changes only when they are whole."""
    weights = {name: one.detach().contiguous().cpu() for name, one in learner.weights().items()}
    with atomic_path(out_dir / WEIGHTS) as temporary:
        save_file(weights, temporary)


def _save(
    out_dir: Path, learner: Learner, settings: str, step: int, seconds: float, counts: Counts
) -> None:
    with atomic_path(out_dir / "checkpoint.pt") as temporary:
        saved = {"settings": settings, "step": step, "seconds": seconds, "counts": asdict(counts)}
        parts = {name: part.state_dict() for name, part in learner.parts().items()}
        torch.save(saved | parts, temporary)


def _resume(out_dir: Path, learner: Learner, settings: str) -> tuple[int, float, Counts]:
    """Load the checkpoint into `learner`; return its update, seconds and counts. Records of later
    updates are removed: these run again."""
    metrics, checkpoint = out_dir / "metrics.jsonl", out_dir / "checkpoint.pt"
    if not checkpoint.exists():
        metrics.unlink(missing_ok=True)
        return 0, 0.0, Counts()
    saved = read_checkpoint(checkpoint, settings, learner.device)
    for name, part in learner.parts().items():
        part.load_state_dict(saved[name])
    kept = [record for record in read_jsonl(metrics) if record["step"] <= saved["step"]]
    write_text(metrics, "".join(json.dumps(record) + "\n" for record in kept))
    return saved["step"], saved["seconds"], Counts(**saved["counts"])


def _fingerprint(learner: Learner, tasks: Sequence[str], config: OnlineConfig, seed: int) -> str:
    """Return what must be the same when a killed training resumes: the weights that it starts from
    included."""
    digest = hashlib.sha256()
    for name, value in sorted(learner.weights().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    parts = [config.model_dump(mode="json"), list(tasks), seed]
    return json.dumps([*parts, *learner.settings(), digest.hexdigest()])


def _number(*of: int) -> int:
    return int(np.random.SeedSequence(of).generate_state(1)[0])
