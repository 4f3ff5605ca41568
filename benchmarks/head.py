"""Steps per second of the head's training: hidden states kept on disk against computing them anew at every step.

The other side is what code does that trains a head behind a frozen model in one graph: images are decoded and encoded
and the backbone's lower layers run for each batch; the step of the head is the same function in both. They run in turn,
on the tiny MLLM that ships with the package, so that other load on the machine meets both.

    OMP_NUM_THREADS=1 python benchmarks/head.py --json head.json
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from roboalign.actions.normalize import ActionStats
from roboalign.episodes.episode import Camera, Episode, encode_png
from roboalign.mllm.load import Mllm, load_mllm
from roboalign.mllm.shipped import builtin_folder
from roboalign.vla import train
from roboalign.vla.checkpoint import Trained
from roboalign.vla.features import View, compute_features
from roboalign.vla.frames import Frames, make_frames
from roboalign.vla.head import FlowMatchingHead, HeadConfig, HeadShape
from roboalign.vla.parallel import loss_module
from roboalign.vla.train import HeadTrainConfig, make_optimizer

HORIZON, CAMERA = 8, "workspace"


def episodes(count: int, length: int) -> list[Episode]:
    rng = np.random.default_rng(0)
    size = 64
    return [
        Episode(
            episode_id=f"{number}",
            task="task",
            instruction="open the drawer",
            fps=10.0,
            actions=rng.normal(size=(length, 4)).astype(np.float32),
            state=np.zeros((length, 1), np.float32),
            images={
                CAMERA: [
                    encode_png(rng.integers(0, 256, (size, size, 3), np.uint8))
                    for _ in range(length)
                ]
            },
            cameras={CAMERA: Camera(CAMERA, size, size)},
        )
        for number in range(count)
    ]


@dataclass(frozen=True)
class Anew(Frames):
    """Frames whose hidden states are computed when they are asked for."""

    mllm: Mllm
    view: View
    where: Sequence[tuple[Episode, int]]

    def batch(
        self, frames: np.ndarray, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        chosen = [self.where[frame] for frame in frames]
        prompts = [
            self.view.prompt({CAMERA: episode.frame(CAMERA, t)}, episode.instruction)
            for episode, t in chosen
        ]
        states, mask = self.view.encode(self.mllm, prompts)
        return states.float(), mask, None, self.actions[torch.from_numpy(frames)]


def timed(frames: Frames, width: int, config: HeadTrainConfig, steps: int) -> tuple[float, float]:
    """(wall, CPU) seconds of `steps` steps; one more before them is not counted."""
    torch.manual_seed(0)
    head = FlowMatchingHead(
        HeadConfig(), HeadShape(vlm_width=width, action_dim=4, state_dim=1, horizon=HORIZON)
    )
    loss_of, trained = (
        loss_module(head, compiled=False),
        Trained(head, make_optimizer(head, config), None),
    )
    for step in range(steps + 1):
        if step == 1:
            wall, cpu = time.perf_counter(), time.process_time()
        train.train_step(loss_of, trained, frames, config, step, 0)
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("steps", 20),
        ("rounds", 5),
        ("episodes", 8),
        ("length", 64),
        ("threads", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = HeadTrainConfig(steps=args.steps + 1)
    data, mllm = episodes(args.episodes, args.length), load_mllm(builtin_folder())
    stats = ActionStats.fit(np.concatenate([episode.actions for episode in data]))
    where = [(episode, t) for episode in data for t in range(len(episode))]
    times: dict[str, list[tuple[float, float]]] = {}
    once = {}
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[str, Frames] = {}
        for dtype in ("float16", "float8"):
            view, began = View(layer=2, cameras=(CAMERA,), dtype=dtype), time.perf_counter()
            store = compute_features(mllm, data, view, config.features, Path(folder) / dtype)
            once[dtype] = time.perf_counter() - began
            kept = make_frames(store, data, stats, None, HORIZON, config.features)
            if not sides:
                sides["anew at every step"] = Anew(store, kept.actions, None, mllm, view, where)
            sides[f"kept as {dtype}"] = kept
        first, *others = sides.values()
        a, b = (side.batch(np.arange(4), mllm.device)[0] for side in (first, others[0]))
        torch.testing.assert_close(
            a, b, rtol=1e-2, atol=1e-2
        )  # the same states but for the batch's rounding
        for _ in range(args.rounds):
            for name, frames in sides.items():
                times.setdefault(name, []).append(timed(frames, store.width, config, args.steps))
    report(args, times, once, len(where), int(store.lengths[0]), config.batch_size)


def report(
    args: argparse.Namespace,
    times: dict[str, list[tuple[float, float]]],
    once: dict[str, float],
    frames: int,
    tokens: int,
    batch: int,
) -> None:
    base = times["anew at every step"]
    rows: list[dict[str, Any]] = []
    for name, runs in times.items():
        ratios = [b[1] / r[1] for b, r in zip(base, runs)]
        rows.append(
            {
                "name": name,
                "per_wall_second": args.steps / statistics.median(w for w, _ in runs),
                "per_cpu_second": args.steps / statistics.median(c for _, c in runs),
                "ratio": {
                    "median": statistics.median(ratios),
                    "min": min(ratios),
                    "max": max(ratios),
                },
            }
        )
    print(
        f"Head `tiny`, batch {batch} of {tokens} tokens, {args.threads} thread(s), {args.rounds} rounds of "
        f"{args.steps} steps; {frames} frames computed once in {once['float16']:.1f} s as float16, "
        f"{once['float8']:.1f} s as float8.\n"
    )
    print("| | steps per wall second | per CPU second | ratio (CPU) |\n|---|---|---|---|")
    for row in rows:
        ratio = row["ratio"]
        print(
            f"| {row['name']} | {row['per_wall_second']:.1f} | {row['per_cpu_second']:.1f} | "
            f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) |"
        )
    if args.json:
        settings = {**vars(args), "json": None}
        args.json.write_text(
            json.dumps({"settings": settings, "once": once, "rows": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
