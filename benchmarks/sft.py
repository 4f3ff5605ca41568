"""Conversations per second of SFT: `train_sft` against a bare loop over the same batches.

The bare loop is what one would write by hand: Hugging Face's own loss over all positions, backward, clipping, fused
AdamW; batches are tokenised and collated by the same functions in both. They run in turn, so that other load on the
machine meets both. CPU seconds of the process are the steadier measure on a shared machine.

    OMP_NUM_THREADS=1 python benchmarks/sft.py --json sft.json
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from roboalign.align.dataset import Conversations, sample_order
from roboalign.align.sft import SftConfig, train_sft
from roboalign.conversations.conversation import Conversation, Turn
from roboalign.mllm.encode import collate
from roboalign.mllm.load import Mllm
from roboalign.mllm.tiny import TinyConfig, build_tiny

WORDS = (
    "gripper",
    "is",
    "left",
    "right",
    "drawer",
    "handle",
    "up",
    "down",
    "forward",
    "and",
    "move",
    "open",
    "close",
)


def conversations(count: int, turns: int, words: int) -> list[Conversation]:
    rng = np.random.default_rng(0)

    def turn() -> Turn:
        answer = " ".join(rng.choice(WORDS, rng.integers(2, words)))
        question = " ".join(rng.choice(WORDS, words))
        return Turn(
            "general",
            "words",
            "direct",
            f"{question}? Answer directly.",
            f"<answer>{answer}</answer>",
            answer,
        )

    result = []
    for i in range(count):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "PNG")
        asked = tuple(turn() for _ in range(turns))
        result.append(Conversation(f"talk-{i}", "episode", i, "task", (buffer.getvalue(),), asked))
    return result


def bare(mllm: Mllm, data: list[Conversation], config: SftConfig, updates: int) -> None:
    items = Conversations(mllm, data)
    lengths = [sum(len(turn.question) + len(turn.answer) for turn in c.turns) for c in data]
    order = sample_order(lengths, config.batch_size, updates, config.seed)
    model = mllm.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, fused=True)
    for start in range(0, len(order), config.batch_size):
        batch = collate(mllm, [items[i] for i in order[start : start + config.batch_size]])
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()


def ours(mllm: Mllm, data: list[Conversation], config: SftConfig, updates: int) -> None:
    with tempfile.TemporaryDirectory() as out:
        train_sft(mllm, data, config, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("updates", 6),
        ("batch", 32),
        ("rounds", 3),
        ("turns", 4),
        ("words", 14),
        ("threads", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = conversations(args.batch * 10, args.turns, args.words)
    texts = [text for c in data[:40] for turn in c.turns for text in (turn.question, turn.answer)]
    config = SftConfig(
        learning_rate=1e-3,
        max_steps=args.updates,
        batch_size=args.batch,
        micro_batch_size=args.batch,
        freeze_vision=False,
        bf16=args.bf16,
        save_every=10_000,
    )
    times: dict[str, list[tuple[float, float]]] = {"bare loop": [], "train_sft": []}
    for _ in range(args.rounds):
        for name, run in (("bare loop", bare), ("train_sft", ours)):
            mllm = build_tiny(TinyConfig(), texts)
            wall, cpu = time.perf_counter(), time.process_time()
            run(mllm, data, config, args.updates)
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    items = Conversations(mllm, data)
    tokens = statistics.mean(len(items[i].input_ids) for i in range(len(data)))
    trained = args.updates * args.batch
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "per_wall_second": trained / statistics.median(w for w, _ in runs),
            "per_cpu_second": trained / statistics.median(c for _, c in runs),
        }
        for name, runs in times.items()
    ]
    ratios = [o[1] / b[1] for b, o in zip(times["bare loop"], times["train_sft"])]
    ratio = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    parameters = sum(p.numel() for p in mllm.model.parameters())
    print(
        f"SFT, {parameters / 1e6:.2f}M parameters, {tokens:.0f} tokens per conversation, batch {args.batch}, "
        f"{args.threads} thread(s), {'bf16' if args.bf16 else 'float32'}, {args.rounds} rounds.\n"
    )
    print("| | conversations per wall second | per CPU second |\n|---|---|---|")
    for row in rows:
        print(f"| {row['name']} | {row['per_wall_second']:.1f} | {row['per_cpu_second']:.1f} |")
    print(
        f"\nCPU seconds, train_sft / bare loop: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
    )
    if args.json:
        report = {
            "settings": {**vars(args), "json": None},
            "tokens": tokens,
            "parameters": parameters,
            "rows": rows,
            "ratio": ratio,
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
