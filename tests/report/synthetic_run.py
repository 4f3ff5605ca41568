"""A made-up run that fills every section of the page; its numbers are drawn at random, not measured."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from roboalign.evaluate.success import success_table
from roboalign.evaluate.token_metrics import compare_metrics, summarize
from roboalign.report.summary import ArmSummary, Curve, FrameSample, RunSummary, Video
from roboalign.run.arms import ARMS

TASKS = ("bin-picking-v3", "box-close-v3", "door-lock-v3")
SKILL = {
    "base": 0.45,
    "sft": 0.55,
    "roboalign": 0.62,
    "extra-sft": 0.56,
    "random": 0.35,
    "blind": 0.3,
}
PREFIX = {
    "base": 0.0,
    "sft": 0.05,
    "roboalign": 0.12,
    "extra-sft": 0.06,
    "random": 0.0,
    "blind": 0.0,
}
TINY_PNG = io.BytesIO()
Image.fromarray(np.full((8, 8, 3), (90, 140, 120), dtype=np.uint8)).save(TINY_PNG, format="PNG")


def answers(arm: str, n: int = 120) -> list[dict]:
    """Records as evaluate.tokens writes them."""
    rng = np.random.default_rng(sorted(SKILL).index(arm))
    records = []
    for i in range(n):
        sample = {"id": f"frame-{i}", "task": TASKS[i % 3], "run_seed": 0}
        for mode in ("direct", "think"):
            vqa = {
                **sample,
                "id": f"question-{mode}-{i}",
                "mode": mode,
                "kind": "embodied",
                "type": ("direction", "distance", "point")[i % 3],
                "answered": True,
                "chance": 0.25,
                "prior": i % 4 == 0,
                "text_prior": i % 3 == 0,
            }
            records.append({**vqa, "probe": "vqa", "score": float(rng.random() < SKILL[arm])})
            records.append({**vqa, "probe": "vqa-shuffled", "score": float(rng.random() < 0.27)})
            prefix = float(rng.random() < PREFIX[arm])
            formed = rng.random() < 0.8
            decoded = bool(formed and rng.random() < 0.9)
            records.append(
                {
                    **sample,
                    "probe": "action",
                    "mode": mode,
                    "well_formed": formed,
                    "has_action": formed,
                    "reasoned": mode == "think" and formed,
                    "decoded": decoded,
                    "length": int(rng.integers(3, 8)),
                    "target_length": 5,
                    "prefix": prefix * formed,
                    "reason": "" if formed else "no answer",
                    "l1": 0.3 * rng.random() if decoded else None,
                    "l1_mean_action": 0.5,
                    "l1_zero": 0.55,
                }
            )
        for probe, share in (("kept", 1.0), ("emptied", 0.6), ("swapped", 0.7)):
            hit = float(rng.random() < share * PREFIX[arm])
            records.append({**sample, "probe": probe, "mode": "think", "prefix": hit})
    return records


def episodes(arm: str) -> list[dict]:
    """Rollout records; one episode of the blind arm crashed."""
    rng = np.random.default_rng(7)
    luck = rng.random((2, len(TASKS), 12))
    return [
        {
            "task": task,
            "seed": seed,
            "run_seed": run,
            "steps": 60,
            "seconds": 1.2,
            "success": bool(luck[run, t, seed] < SKILL[arm]),
            "crash": "NaN in qacc" if (arm, run, t, seed) == ("blind", 0, 0, 3) else None,
        }
        for run in range(2)
        for t, task in enumerate(TASKS)
        for seed in range(12)
    ]


def curves() -> list[Curve]:
    """Logs of every stage."""
    steps = np.arange(1, 81)
    loss = [
        {"step": int(s), "loss": float(3 * np.exp(-s / 20) + 0.4), "grad_norm": 1.0} for s in steps
    ]
    rl = [
        {
            "step": int(s),
            "reward": 0.4 + 0.003 * s,
            "format": 0.7 + 0.003 * s,
            "kl": 0.001 * s,
            "entropy": 1.2 - 0.01 * s,
            "length_mean": 40.0,
            "undecoded": 3,
            "shorter": 9,
            "longer": 4,
            "no_signal": 0.2,
            "loss": 0.01,
        }
        for s in steps.tolist()
    ]
    return [
        Curve("base", "base", loss),
        Curve("sft", "seed 0", loss),
        Curve("sft", "seed 1", loss),
        Curve("head", "sft, seed 0", loss),
        Curve("head", "roboalign, seed 0", loss),
        Curve("rl", "seed 0", rl),
    ]


def synthetic_run(folder: Path, video: bytes) -> RunSummary:
    """A run with something in every section; `video` is written to `folder` as the rollout."""
    (folder / "rollout.mp4").write_bytes(video)
    records = {arm: answers(arm) for arm in SKILL}
    image = TINY_PNG.getvalue()
    titles = {
        "base": "Base",
        "sft": "SFT",
        "roboalign": "RoboAlign",
        "extra-sft": "Extra SFT",
        "random": "Random",
        "blind": "Blind",
    }
    arms = [
        ArmSummary(
            name,
            title,
            f"What {title} was trained on.",
            None if name == "blind" else summarize(records[name]),
            claim=ARMS[name].claim,
        )
        for name, title in titles.items()
    ]
    pairs = [
        ("sft", "roboalign"),
        ("base", "roboalign"),
        ("extra-sft", "roboalign"),
        ("random", "roboalign"),
        ("blind", "roboalign"),
    ]
    return RunSummary(
        name="synthetic",
        environment={
            "date": "2030-01-01",
            "commit": "0123abc",
            "machine": "2 cores",
            "model": "3.4M parameters",
        },
        arms=arms,
        success=success_table({arm: episodes(arm) for arm in SKILL}, pairs, resamples=500),
        mllm_pairs=[
            {"before": a, "after": b, **compare_metrics(records[a], records[b])}
            for a, b in pairs[:3]
        ],
        curves=curves(),
        manifest={
            "counts": {
                "train": {
                    "conversations": 5000,
                    "turns": 27000,
                    "mode": {"direct": 18000, "think": 9000},
                    "kind": {"general": 4000, "embodied": 9000, "reasoning": 9000, "action": 5000},
                },
                "rl": {
                    "conversations": 140,
                    "turns": 140,
                    "kind": {"action": 140},
                    "mode": {"think": 140},
                },
            }
        },
        samples=[
            FrameSample(
                "Task: close the box. What should the robot do next? "
                'Think first, then answer as "<ACTION_START>".',
                "<ACTION_START><FAST_3><FAST_9><ACTION_END>",
                {
                    "sft": "<think>The gripper is at 12 20.</think><answer><ACTION_START><FAST_8>"
                    "<ACTION_END></answer>",
                    "roboalign": "<think>The lid is right of the gripper.</think><answer><ACTION_START><FAST_3>"
                    "<FAST_9><ACTION_END></answer>",
                },
                {"sft": 0.0, "roboalign": 1.0},
                image,
                "box-close-v3, frame 31",
            )
        ],
        videos=[
            Video("roboalign", "box-close-v3", 5, "success", folder / "rollout.mp4"),
            Video("roboalign", "door-lock-v3", 6, "failure", folder / "rollout.mp4"),
        ],
        ledger=[
            {"stage": "collect", "seconds": 130.5, "episodes": 340},
            {"stage": "sft", "seconds": 420, "samples": 27000},
            {"stage": "rl", "seconds": 300.0, "rollouts": 10240, "generated_tokens": 512_000},
        ],
        recipe="name: synthetic\nseeds: [0, 1]\n",
        notes=["A simulated robot: nothing here was measured on a real one."],
    )
