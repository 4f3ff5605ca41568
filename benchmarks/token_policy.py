"""Seconds of one decision: a head's policy against the model's own action tokens, direct and after a reasoning.

All policies are of one run and one backbone, and decide about the same frames of its alignment demonstrations, one
observation at a time and in turns, so that other load on the machine meets each. The run needs the arms BACKBONE,
BACKBONE-tokens-direct and BACKBONE-tokens-think.

    OMP_NUM_THREADS=1 python benchmarks/token_policy.py runs/quickstart --backbone roboalign --json tokens.json
"""

import argparse
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from roboalign.episodes.formats.lerobot import iterate_lerobot
from roboalign.run.folder import policy_folder
from roboalign.vla.policy import Policy


def observations(run: Path, camera: str, count: int) -> list[SimpleNamespace]:
    """The first frames of as many alignment episodes, over the data set."""
    found = []
    for episode in iterate_lerobot(run / "collect" / "align"):
        images = {camera: episode.frame(camera, len(episode) // 2)}
        state, instruction = episode.state[len(episode) // 2], episode.instruction
        found.append(SimpleNamespace(images=images, state=state, instruction=instruction))
        if len(found) == count:
            break
    return found


def measure(run: Path, backbone: str, seed: int, count: int) -> dict[str, dict[str, Any]]:
    """p50 and p95 seconds of a decision, and p50 over the head's, by arm."""
    arms = [backbone, f"{backbone}-tokens-direct", f"{backbone}-tokens-think"]
    policies = {arm: Policy.load(policy_folder(run, seed, arm)) for arm in arms}
    seen = observations(run, policies[backbone].cameras[0], count)
    for policy in policies.values():
        policy.act(seen[0], ("warm up", 0))
    before = {arm: policy.counts.get("tokens", 0) for arm, policy in policies.items()}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for number, one in enumerate(seen):
        for arm, policy in policies.items():
            began = time.perf_counter()
            policy.act(one, ("benchmark", number, 0))
            seconds[arm].append(time.perf_counter() - began)
    middle = {arm: float(np.median(times)) for arm, times in seconds.items()}
    return {
        arm: {
            "decisions": len(times),
            "p50": middle[arm],
            "p95": float(np.quantile(times, 0.95)),
            "times the head's p50": middle[arm] / middle[backbone],
            "tokens a decision": (policies[arm].counts.get("tokens", 0) - before[arm]) / len(times),
        }
        for arm, times in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run's folder")
    parser.add_argument("--backbone", default="roboalign")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decisions", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(options.run, options.backbone, options.seed, options.decisions)
    for arm, row in rows.items():
        print(f"{arm:28s}" + "  ".join(f"{name} {value:.3g}" for name, value in row.items()))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
