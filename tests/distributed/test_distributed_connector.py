"""A connector trained first (`backbone.connector`) in two processes (gloo), with whole models and with a split one: the
weights and records of one process; killed in two, it goes on in one."""

import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stage_run import do, recipe, write_episodes
from torch.distributed.fsdp import FSDPModule
from two_ranks import split_model, two_ranks

from roboalign.align.sft import SftTrainer
from roboalign.core.distributed import join_team
from roboalign.core.files import read_json, read_jsonl
from roboalign.mllm.load import save_mllm
from roboalign.mllm.tiny_classes import build_class
from roboalign.run.graph import plan_stages
from roboalign.run.recipe import Recipe
from roboalign.run.scheduler import Run

CONNECTOR = {
    "max_steps": 6,
    "batch_size": 4,
    "micro_batch_size": 1,
    "save_every": 2,
    "log_every": 1,
}


def settings(folder: Path) -> Recipe:
    backbone = {"source": str(folder / "llava"), "layer": 1, "connector": CONNECTOR}
    return recipe(backbone=backbone, hardware={"device": "cpu"}, parallel=1)


def connect(shared: Path, run: Path, stop_at: int = -1, split: bool = False) -> int:
    """Stage `base`, with the team if there is one; in update `stop_at` of the connector it ends as a kill would."""
    torch.set_num_threads(1)
    if split:
        split_model()
    team, inner = join_team(), SftTrainer.training_step

    def step(self: SftTrainer, model: torch.nn.Module, *arguments: object) -> torch.Tensor:
        assert (
            self.args.world_size == (team.size if team else 1)
            and isinstance(model, FSDPModule) == split
        )
        assert isinstance(model, torch.nn.parallel.DistributedDataParallel) == (
            team is not None and not split
        )
        if self.state.global_step == stop_at:
            os._exit(9)
        return inner(self, model, *arguments)

    with pytest.MonkeyPatch.context() as patch, team.guarded() if team else nullcontext():
        patch.setattr(SftTrainer, "training_step", step)
        recipe = settings(shared)
        Run(recipe, run, plan_stages(recipe), team=team).execute(["base"])
    return 0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture, a LLaVA, and `alone`, the run of one process."""
    folder = tmp_path_factory.mktemp("connector")
    for part, seeds in (("align", range(6)), ("downstream", range(10, 13))):
        write_episodes(folder / "collect" / part, seeds)
    save_mllm(build_class("llava", ["Where is the puck? Answer directly."] * 20), folder / "llava")
    stages = {stage.name: stage for stage in plan_stages(settings(folder))}
    for name in ("tokenizer", "mix"):
        do(stages, folder, name, settings(folder))
    connect(folder, run_in(folder, folder / "alone"))
    return folder


def run_in(shared: Path, run: Path) -> Path:
    run.mkdir()
    for name in ("collect", "tokenizer", "mix"):
        (run / name).symlink_to(shared / name)
    return run


def assert_same(shared: Path, run: Path) -> None:
    start = load_file(shared / "llava" / "model.safetensors")
    for part in ("connector/model", "model"):
        ours, theirs = (
            load_file(one / "base" / part / "model.safetensors") for one in (run, shared / "alone")
        )
        assert ours.keys() == theirs.keys() == start.keys()
        changed = {
            name
            for name in start
            if ours[name].shape == start[name].shape and (ours[name] != start[name]).any()
        }
        assert len(changed) == 4 and all("multi_modal_projector" in name for name in changed)
        moved = max(float((theirs[name] - start[name]).abs().max()) for name in changed)
        apart = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
        assert moved > 1e-3 and apart < 0.01 * moved, (part, moved, apart)
    records = [
        read_jsonl(one / "base" / "connector" / "metrics.jsonl") for one in (run, shared / "alone")
    ]
    for record, expected in zip(*records, strict=True):
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-3), record["step"]
        assert record["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-2), record["step"]
    rows = [read_json(one / "base" / "stage.json") for one in (run, shared / "alone")]
    for name in (
        "key",
        "updates",
        "samples",
        "tokens",
        "answer_tokens",
        "turns",
        "trainable",
        "parameters",
    ):
        assert rows[0][name] == rows[1][name], name


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_killed_in_two_processes_it_goes_on_in_one(
    shared: Path, tmp_path: Path, split: bool
) -> None:
    run = run_in(shared, tmp_path / "run")
    ended = two_ranks(connect, shared, run, 5, split, logs=tmp_path / "logs")
    assert 9 in [one.status for one in ended], ended
    assert (run / "base" / "connector" / "checkpoints" / "checkpoint-4").is_dir()
    assert not (run / "base" / "model").exists()
    connect(shared, run)
    assert_same(shared, run)


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_two_processes_train_as_one(shared: Path, tmp_path: Path, split: bool) -> None:
    run = run_in(shared, tmp_path / "run")
    ended = two_ranks(connect, shared, run, -1, split, logs=tmp_path / "logs")
    assert [one.status for one in ended] == [0, 0], ended
    assert_same(shared, run)
