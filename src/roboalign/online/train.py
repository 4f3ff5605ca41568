"""Train the flow head of a policy by its success in the simulator; the MLLM is frozen."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from roboalign.core.files import atomic_path, read_jsonl, write_text
from roboalign.core.progress import Progress, say
from roboalign.core.trackers import record_metrics
from roboalign.online.config import OnlineConfig
from roboalign.online.decisions import Decisions
from roboalign.online.groups import Counts, Roll, roll_groups
from roboalign.online.improve import Learner, improve
from roboalign.vla.checkpoint import read_checkpoint
from roboalign.vla.head_policy import HeadPolicy

WEIGHTS = "rollout.safetensors"
"""The head that explores, in the folder of the training; `Explorer` reads it."""


def train_online(
    policy: HeadPolicy,
    roll: Roll,
    tasks: Sequence[str],
    config: OnlineConfig,
    out_dir: str | Path,
    *,
    seed: int,
) -> dict[str, Any]:
    """Train `policy.head` in place, save the policy in `out_dir`/policy, and return the ledger
    record.

    `roll` runs episodes of `Explorer` with the weights in `out_dir`/WEIGHTS, on the benchmark that
    `Repeated` makes. metrics.jsonl has a record for each update. After each, everything is saved:
    a killed training does its last update again, and ends with the same weights.

    Raises RoboAlignError if a loss is not finite, if all rollouts crash, or if the checkpoint is of
    other settings.
    """
    out_dir = Path(out_dir)
    torch.manual_seed(seed)  # the critic's first weights
    learner = Learner.of(policy.head, config)
    settings = _fingerprint(policy, tasks, config, seed)
    start, seconds, counts = _resume(out_dir, learner, settings)
    began = time.monotonic() - seconds
    with Progress("online", config.updates, start) as progress:
        for update in range(start, config.updates):
            publish(policy, out_dir)
            earlier = Counts(**asdict(counts))
            groups = roll_groups(
                roll,
                tasks,
                config,
                counts,
                lambda note: progress.advance(0, note=note),
            )
            rolled, learned = time.monotonic(), {}
            if groups.found:
                decisions = Decisions(groups.trajectories, policy.mllm.device)
                learned = improve(
                    learner,
                    decisions,
                    groups.of_decisions() if config.algorithm == "rloo" else None,
                    config,
                    steps=policy.sampling_steps,
                    generator=torch.Generator().manual_seed(_number(seed, update)),
                )
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
            f"no group of {counts.drawn} had both a success and a failure: the head is as it was",
            "online",
        )
    policy.save(out_dir / "policy")
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


def publish(policy: HeadPolicy, out_dir: Path) -> None:
    """Write the weights for the simulators' side; their name changes only when they are whole."""
    weights = {name: one.contiguous().cpu() for name, one in policy.head.state_dict().items()}
    with atomic_path(out_dir / WEIGHTS) as temporary:
        save_file(weights, temporary)


def _save(
    out_dir: Path, learner: Learner, settings: str, step: int, seconds: float, counts: Counts
) -> None:
    parts = _parts(learner)
    with atomic_path(out_dir / "checkpoint.pt") as temporary:
        saved = {"settings": settings, "step": step, "seconds": seconds, "counts": asdict(counts)}
        torch.save(saved | {name: part.state_dict() for name, part in parts.items()}, temporary)


def _resume(out_dir: Path, learner: Learner, settings: str) -> tuple[int, float, Counts]:
    """Load the checkpoint into `learner`; return its update, seconds and counts. Records of later
    updates are removed: these run again."""
    metrics, checkpoint = out_dir / "metrics.jsonl", out_dir / "checkpoint.pt"
    if not checkpoint.exists():
        metrics.unlink(missing_ok=True)
        return 0, 0.0, Counts()
    saved = read_checkpoint(checkpoint, settings, next(learner.head.parameters()).device)
    for name, part in _parts(learner).items():
        part.load_state_dict(saved[name])
    kept = [record for record in read_jsonl(metrics) if record["step"] <= saved["step"]]
    write_text(metrics, "".join(json.dumps(record) + "\n" for record in kept))
    return saved["step"], saved["seconds"], Counts(**saved["counts"])


def _parts(learner: Learner) -> dict[str, Any]:
    parts = {"head": learner.head, "optimizer": learner.optimizer}
    return parts if learner.critic is None else parts | {"critic": learner.critic}


def _fingerprint(policy: HeadPolicy, tasks: Sequence[str], config: OnlineConfig, seed: int) -> str:
    """Return what must be the same when a killed training resumes: the head that it starts from
    included."""
    digest = hashlib.sha256()
    for name, value in sorted(policy.head.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    parts = [config.model_dump(mode="json"), list(tasks), seed]
    return json.dumps([*parts, policy.sampling_steps, digest.hexdigest()])


def _number(*of: int) -> int:
    return int(np.random.SeedSequence(of).generate_state(1)[0])
