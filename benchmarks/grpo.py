"""Seconds of one GRPO step (rollout and update): RoboAlign against an unmodified TRL GRPOTrainer.

Both train the same tiny model from the same folder on the same prompts, with as many samples, the same bound on the
answers' length, KL to a reference model, and a reward on token ids that costs next to nothing. They run in turn, a few
steps each, so that other load on the machine meets both.

    OMP_NUM_THREADS=1 python benchmarks/grpo.py --json grpo.json
    OMP_NUM_THREADS=1 python benchmarks/grpo.py --fast FOLDER --tokens 150 --prompts 8  (the published FAST+)
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
import trl
from PIL import Image
from transformers import TrainerCallback

from roboalign.actions.fast import FastTokenizer
from roboalign.actions.vocabulary import extend_model, extend_tokenizer
from roboalign.align.grpo.config import RlConfig
from roboalign.align.grpo.train import build_grpo_trainer
from roboalign.conversations.conversation import Conversation, Turn
from roboalign.conversations.styles.registry import STYLES
from roboalign.mllm.generate import suppressed_ids
from roboalign.mllm.load import load_mllm, save_mllm
from roboalign.mllm.tiny import TinyConfig, build_tiny

LABELLED = STYLES["labelled"]

TASKS = (
    "open the drawer",
    "push the red cube to the left",
    "reach the goal",
    "close the window with the handle",
)


class Clock(TrainerCallback):
    """Wall and CPU seconds of each update; the first, which also warms up, is left out by `steps`."""

    def __init__(self) -> None:
        self.ticks: list[tuple[float, float]] = []

    def on_step_begin(self, *arguments: Any, **named: Any) -> None:
        self.ticks.append((time.perf_counter(), time.process_time()))

    on_step_end = on_step_begin

    def steps(self) -> list[tuple[float, float]]:
        pairs = zip(self.ticks[2::2], self.ticks[3::2], strict=True)
        return [(end[0] - begin[0], end[1] - begin[1]) for begin, end in pairs]


def prompts(count: int, fast: FastTokenizer, chunks: np.ndarray) -> list[Conversation]:
    rng = np.random.default_rng(0)
    result = []
    for i in range(count):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "PNG")
        question = LABELLED.action_question(TASKS[i % len(TASKS)], "think")
        turn = Turn("action", "action", "think", question, "<answer></answer>", "")
        target = tuple(fast.encode(chunks[i % len(chunks)][None])[0])
        result.append(
            Conversation(
                f"rl-{i}", "episode", i, "task", (buffer.getvalue(),), (turn,), target=target
            )
        )
    return result


def ours(
    folder: Path, fast: FastTokenizer, asked: list[Conversation], args: argparse.Namespace
) -> dict[str, Any]:
    config = RlConfig(
        prompts_per_rollout=args.prompts,
        prompts_per_update=args.prompts,
        micro_batch_size=args.prompts,
        samples=args.samples,
        updates=args.steps + 1,
        max_new_tokens=args.tokens,
        save_every=1000,
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        order = list(range(args.prompts)) * (args.steps + 1)
        trainer = build_grpo_trainer(
            load_mllm(folder), fast, asked, (), config, Path(out), order, args.steps + 1, "ours"
        )
        trainer.add_callback(clock)
        totals = trainer.run()
    return {"steps": clock.steps(), "tokens": totals["generated_tokens"] / totals["answers"]}


def theirs(folder: Path, asked: list[Conversation], args: argparse.Namespace) -> dict[str, Any]:
    mllm = load_mllm(folder)
    rows = [
        {
            "prompt": [{"role": "user", "content": c.turns[0].question}],
            "image": Image.open(io.BytesIO(c.images[0])),
        }
        for c in asked
    ]
    lengths: list[int] = []

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.extend(len(ids) for ids in completion_ids)
        return [float(len(set(ids))) for ids in completion_ids]

    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        config = trl.GRPOConfig(
            output_dir=out,
            per_device_train_batch_size=args.prompts * args.samples,
            num_generations=args.samples,
            max_completion_length=args.tokens,
            max_steps=args.steps + 1,
            learning_rate=1e-6,
            beta=0.01,
            epsilon=0.2,
            epsilon_high=0.3,
            delta=3.0,
            loss_type="dapo",
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1,
            model_init_kwargs={"dtype": "float32"},
            generation_kwargs={"suppress_tokens": suppressed_ids(mllm)},
        )
        trainer = trl.GRPOTrainer(
            model=str(folder),
            reward_funcs=reward,
            args=config,
            processing_class=mllm.processor,
            train_dataset=datasets.Dataset.from_list(rows),
            callbacks=[clock],
        )
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        trainer.train()
    return {"steps": clock.steps(), "tokens": statistics.mean(lengths)}


def build(
    folder: Path, count: int, published: Path | None
) -> tuple[FastTokenizer, list[Conversation]]:
    rng = np.random.default_rng(0)
    if published:
        chunks = rng.uniform(-1, 1, (32, 16, 7)).astype(np.float32)
        fast = FastTokenizer.load(published, horizon=16, action_dim=7)
    else:
        chunks = rng.uniform(-1, 1, (32, 8, 4)).astype(np.float32)
        fast = FastTokenizer.fit(chunks, scale=2, vocab_size=128)
    asked = prompts(count, fast, chunks)
    mllm = build_tiny(TinyConfig(), [c.turns[0].question for c in asked])
    extend_model(mllm.model, mllm.tokenizer, extend_tokenizer(mllm.tokenizer, fast.vocab_size))
    save_mllm(mllm, folder)
    return fast, asked


def cost(run: dict[str, Any], index: int, per_token: bool) -> float:
    """Median seconds of a step, wall (0) or CPU (1); the two trainers end answers by slightly different rules."""
    return statistics.median(step[index] for step in run["steps"]) / (
        run["tokens"] if per_token else 1
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("prompts", 16),
        ("samples", 8),
        ("tokens", 50),
        ("steps", 3),
        ("rounds", 3),
        ("threads", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--fast", type=Path, help="a folder with the published FAST+ vocabulary")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    rounds = []
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        fast, asked = build(folder, args.prompts, args.fast)
        for _ in range(args.rounds):
            rounds.append(
                {"roboalign": ours(folder, fast, asked, args), "trl": theirs(folder, asked, args)}
            )
    report = {
        "vocabulary": "FAST+" if args.fast else "fitted",
        "settings": {k: v for k, v in vars(args).items() if k not in ("json", "fast")},
        "versions": {
            "trl": trl.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
        "rows": [],
        "ratio": {},
    }
    for name in ("roboalign", "trl"):
        steps = [step for r in rounds for step in r[name]["steps"]]
        report["rows"].append(
            {
                "name": name,
                "wall": statistics.median(w for w, _ in steps),
                "cpu": statistics.median(c for _, c in steps),
                "cpu_min": min(c for _, c in steps),
                "cpu_max": max(c for _, c in steps),
                "tokens": statistics.mean(r[name]["tokens"] for r in rounds),
                "steps": len(steps),
            }
        )
    for kind, index, per_token in (
        ("wall", 0, False),
        ("cpu", 1, False),
        ("cpu per generated token", 1, True),
    ):
        ratios = [
            cost(r["trl"], index, per_token) / cost(r["roboalign"], index, per_token)
            for r in rounds
        ]
        report["ratio"][kind] = {
            "median": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
        }
    print(
        f"One GRPO step, {args.prompts} prompts x {args.samples} answers, up to {args.tokens} tokens, "
        f"{args.threads} thread(s), {args.rounds} rounds of {args.steps} steps.\n"
    )
    print("| | wall s | CPU s | CPU s, min to max | tokens per answer |\n|---|---|---|---|---|")
    for row in report["rows"]:
        print(
            f"| {row['name']} | {row['wall']:.2f} | {row['cpu']:.2f} | {row['cpu_min']:.2f} to {row['cpu_max']:.2f} "
            f"| {row['tokens']:.1f} |"
        )
    for kind, ratio in report["ratio"].items():
        print(
            f"\nTRL / RoboAlign, {kind}: {ratio['median']:.2f} (rounds: {ratio['min']:.2f} to {ratio['max']:.2f})"
        )
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
