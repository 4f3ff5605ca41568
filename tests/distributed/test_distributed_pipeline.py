"""`roboalign rl` under torchrun, in two processes (gloo): who does what, and how a failure ends both."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from two_ranks import two_ranks

from roboalign.cli.main import main
from roboalign.core.distributed import join_team
from roboalign.core.files import locked, read_json, read_jsonl
from roboalign.run.graph import plan_stages
from roboalign.run.load import load_recipe
from roboalign.run.scheduler import Run

IMITATIONS = ("ecot", "extra-sft")
HEAD = "head/roboalign"
RECIPE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
SHRUNK = (
    "collect.align_tasks=[reach-v3]",
    "collect.align.episodes_per_task=2",
    "collect.downstream.episodes_per_task=2",
    "mix.heldout_episode_share=0.5",
    "sft.micro_batch_size=4",
    "backbone.pretrain.micro_batch_size=4",
    "rl.micro_batch_size=1",
    "parallel=1",
    "arms=[roboalign, ecot, extra-sft]",
)


def arguments(folder: Path, *settings: str) -> list[str]:
    given = [part for setting in (*SHRUNK, *settings) for part in ("--set", setting)]
    return ["rl", str(RECIPE), "--out", str(folder), *given]


def imitations(folder: Path) -> int:
    """`extra-sft`, `ecot` and a head of a run whose SFT and RL are done, with their team if there is one."""
    torch.set_num_threads(1)
    recipe = load_recipe(RECIPE, SHRUNK)
    team = join_team()
    with team.guarded() if team else nullcontext():
        run = Run(recipe, folder, plan_stages(recipe), team=team)
        run.execute([f"seed-0/{name}" for name in (*IMITATIONS, HEAD)])
    return 0


def test_a_run_to_the_end_of_rl_and_its_imitations(tmp_path: Path) -> None:
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "roboalign",
    ]
    done = subprocess.run(
        [*torchrun, *arguments(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    started = [line.split()[0] for line in done.stdout.splitlines() if "started at" in line]
    names = ["collect", "tokenizer", "mix", "base", "seed-0/sft", "seed-0/rl"]
    assert started == [f"[{name}]" for name in names]  # once each: the first process alone speaks
    rows = {name: read_json(tmp_path / name / "stage.json") for name in names}
    assert (
        rows["seed-0/sft"]["samples"]
        == rows["base"]["samples"]
        == rows["base"]["vision_samples"]
        == 24
    )  # 3 x 8
    assert (
        rows["seed-0/rl"]["prompts"] == 4 and rows["seed-0/rl"]["answers"] == 8
    )  # 2 rollouts of 2
    assert len(read_jsonl(tmp_path / "seed-0" / "rl" / "metrics.jsonl")) == 2
    sft, rl = (
        load_file(tmp_path / "seed-0" / name / "model" / "model.safetensors")
        for name in ("sft", "rl")
    )
    assert sft.keys() == rl.keys() and any((sft[name] != rl[name]).any() for name in sft)
    before = (tmp_path / "seed-0" / "rl" / "stage.json").stat().st_mtime_ns
    again = two_ranks(main, arguments(tmp_path), logs=tmp_path / "logs")
    assert [one.status for one in again] == [0, 0], again
    assert (
        again[0].stdout.count("done before, nothing to do") == len(names) and again[1].stdout == ""
    )
    assert (tmp_path / "seed-0" / "rl" / "stage.json").stat().st_mtime_ns == before
    ended = two_ranks(imitations, tmp_path, logs=tmp_path / "logs")
    assert [one.status for one in ended] == [0, 0], ended
    (tmp_path / "head").mkdir()
    for name in (*IMITATIONS, HEAD):
        (tmp_path / "seed-0" / name).rename(tmp_path / name)
    for name in IMITATIONS:
        assert (
            read_json(tmp_path / name / "stage.json")["samples"] == 8
        )  # 2 updates of 2 prompts and 2 replayed
    imitations(tmp_path)
    for name in IMITATIONS:
        folders = (tmp_path / name, tmp_path / "seed-0" / name)
        two, one = (load_file(folder / "model" / "model.safetensors") for folder in folders)
        moved = max(float((one[key] - sft[key]).abs().max()) for key in sft)
        apart = max(float((one[key] - two[key]).abs().max()) for key in sft)
        assert moved > 1e-4 and apart < 0.01 * moved, (name, moved, apart)
    stages = {stage.name: stage for stage in plan_stages(load_recipe(RECIPE, SHRUNK))}
    assert stages[f"seed-0/{HEAD}"].together
    heads = [read_json(folder / HEAD / "stage.json") for folder in (tmp_path, tmp_path / "seed-0")]
    for name in ("samples", "feature_bytes", "train_frames"):
        assert heads[0][name] == heads[1][name] > 0
    for name in ("train_loss", "heldout_loss", "heldout_l1"):
        assert heads[0][name] == pytest.approx(heads[1][name], rel=1e-3)


def test_a_fault_of_the_leader_ends_both_with_its_message(tmp_path: Path) -> None:
    with locked(tmp_path):
        ended = two_ranks(main, arguments(tmp_path), logs=tmp_path / "logs")
    assert [one.status for one in ended] == [2, 2]
    (line,) = [line for one in ended for line in one.errors]
    assert "another command is at work in this folder" in line


def test_a_fault_of_all_is_told_once(tmp_path: Path) -> None:
    ended = two_ranks(main, arguments(tmp_path, "sft.learning_rate=-1"), logs=tmp_path / "logs")
    assert [one.status for one in ended] == [2, 2]
    (line,) = [line for one in ended for line in one.errors]
    assert "sft.learning_rate" in line
