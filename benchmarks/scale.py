"""Speed and memory at the shapes of published models, with random weights, through the product's own code: one command.

    python benchmarks/scale.py [--shape qwen2_5_vl_7b] [--parts sft rollout head act] [--out runs/scale]

The parts: SFT in tokens a second, and what share of the device's measured matrix rate its necessary operations are;
the rollout, scoring and updates of GRPO for 512 prompts; steps of the head with kept and with recomputed hidden states;
`Policy.act`, truncated against all layers, eager against compiled. Nothing is fetched. Without a GPU the shape is the
tiny model's, in float32 and eager unless --compile is given, and the table says so. A part that runs out of memory, or
fails, is one line of the table; the others go on. Writes OUT/scale-SHAPE.md and .json.
"""

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from scale_measure import Row, Setting, begin, matrix_rate
from scale_model import SHAPES, Shape
from scale_policy import act_part, head_part
from scale_training import rollout_part, sft_part

from roboalign.core.files import write_json, write_text

PARTS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "sft": sft_part,
    "rollout": rollout_part,
    "head": head_part,
    "act": act_part,
}
SHARE_ASSUMED = 0.2  # of the matrix rate, for the estimate of time alone
STEP_SECONDS = {"cuda": 0.06, "cpu": 0.03}  # a decoding step of a rollout, for that estimate


def context(device: torch.device) -> dict[str, Any]:
    """What the numbers belong to."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    hardware = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{len(os.sched_getaffinity(0))} CPU cores ({platform.machine()}), no GPU"
    )
    return {
        "commit": told.stdout.strip() or "unknown",
        "date": datetime.date.today().isoformat(),
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
    }


def estimate(setting: Setting, parts: list[str], parameters: float) -> float:
    """Minutes that the parts will take, roughly: operations at a fifth of the matrix rate, and building the models."""
    shape, per_token = setting.shape, 2 * parameters / (SHARE_ASSUMED * setting.rate)
    ways = (2 if setting.compile else 1) * (2 if setting.on_gpu else 1)
    compiling = 120.0 if setting.compile else 0.0
    rounds = 1 + max(2, setting.steps // 4)
    answers = shape.prompts * 5 * (shape.tokens // 2 + shape.answer)
    seconds = {
        "sft": ways
        * (4 * per_token * shape.tokens * shape.batch * (setting.steps + 2) + compiling / 2),
        "rollout": rounds
        * (5 * per_token * answers + shape.answer * STEP_SECONDS[setting.device.type]),
        "head": 2 * per_token * 32 * shape.tokens / 2 * (setting.steps + 2),
        "act": 8 * setting.steps * (per_token * shape.tokens / 2 + 0.05) + compiling,
    }
    return sum(seconds[part] + 4 * parameters / 1e9 for part in parts) / 60


def measure(setting: Setting, parts: list[str]) -> tuple[list[Row], bool]:
    """The rows of these parts, each printed when it is there; and whether a part failed otherwise than for memory."""
    rows, failed = [], False
    for part in parts:
        try:
            for row in PARTS[part](setting):
                rows.append(row)
                print(line(row), flush=True)
        except Exception as error:  # hours of a rented GPU must not be lost with one part
            traceback.print_exc()
            rows.append(
                Row(part, part, "", [], None, f"failed: {type(error).__name__}, see the traceback")
            )
            failed = True
        begin(setting.device)
    return rows, failed


def line(row: Row) -> str:
    """A row of the Markdown table."""
    digits = 0 if row.values and statistics.median(row.values) >= 100 else 2
    told = "–"
    if row.values:
        low, middle, high = (
            f"{value:,.{digits}f}"
            for value in (min(row.values), statistics.median(row.values), max(row.values))
        )
        told = f"{middle} {row.unit} ({low} to {high})"
    peak = "–" if row.peak is None else f"{row.peak / 2**30:.1f}"
    return f"| {row.part} | {row.what} | {told} | {len(row.values)} | {peak} | {row.note} |"


def page(about: dict[str, Any], shape: str, sizes: dict[int, float], rows: list[Row]) -> str:
    """The whole result as Markdown."""
    told = ", ".join(f"{name} {value}" for name, value in about.items() if value is not None)
    squares = ", ".join(f"{rate / 1e12:.3g} at {size}" for size, rate in sizes.items())
    tiny = "" if about["cuda_used"] else "No GPU: float32 on a CPU. It says nothing about a GPU.\n"
    head = "| part | what | median (least to greatest) | n | peak GPU memory, GiB | |\n|---|---|---|---|---|---|"
    return (
        f"# Shape {shape}\n\n{told}.\n{tiny}Products of square matrices, 10^12 operations a second: {squares}.\n\n"
        f"{head}\n" + "\n".join(map(line, rows)) + "\n"
    )


def parameters_of(shape: Shape) -> float:
    """Parameters of the model, for the estimate."""
    from roboalign.mllm.presets import MODEL_PRESETS

    return MODEL_PRESETS[shape.preset].published or 0 if shape.preset else 2.5e6


def main() -> int:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen2_5_vl_7b" if gpu else "tiny")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument(
        "--steps",
        type=int,
        default=10,
        help="measured steps, or calls; a quarter of them, rollouts",
    )
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=gpu)
    parser.add_argument("--out", type=Path, default=Path("runs/scale"))
    options = parser.parse_args()
    if options.shape.startswith("qwen") and not gpu:
        parser.error(
            f"{options.shape} needs a GPU, and there is none; without --shape the tiny model's shape is used"
        )
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = torch.device("cuda" if gpu else "cpu")
    rate, sizes = matrix_rate(device, torch.bfloat16 if gpu else torch.float32)
    workers = min(8, len(os.sched_getaffinity(0)) - 1) if gpu else 0
    setting = Setting(SHAPES[options.shape], device, rate, options.steps, options.compile, workers)
    minutes = estimate(setting, options.parts, parameters_of(setting.shape))
    print(
        f"{options.shape}, parts {' '.join(options.parts)}: about {max(1, round(minutes))} minutes",
        flush=True,
    )
    about, began = {**context(device), "cuda_used": gpu}, time.monotonic()
    rows, failed = measure(setting, options.parts)
    about["minutes"] = round((time.monotonic() - began) / 60, 1)
    text = page(about, options.shape, sizes, rows)
    print("\n" + text)
    found = {
        "context": about,
        "shape": vars(setting.shape),
        "matrix_rate": sizes,
        "rows": [r.as_json() for r in rows],
    }
    write_json(options.out / f"scale-{options.shape}.json", found)
    write_text(options.out / f"scale-{options.shape}.md", text)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
