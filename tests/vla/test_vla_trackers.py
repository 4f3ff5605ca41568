"""The head's training and the run's stages send their metrics to the trackers that a recipe names."""

from pathlib import Path

import pytest
from synthetic_frames import CONFIG, make_head, synthetic
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_jsonl
from roboalign.core.trackers import tracking
from roboalign.run.graph import plan_stages
from roboalign.run.recipe import Recipe
from roboalign.run.scheduler import Run, by_name, do_stage, stage_keys
from roboalign.run.stage import Context, Stage
from roboalign.vla.train import fit


def train(context: Context) -> dict[str, int]:
    data = (synthetic(context.folder, 32, 0), synthetic(context.folder, 8, 1))
    return fit(make_head(), *data, CONFIG, context.folder, seed=0)


def test_a_stage_writes_what_tensorboard_reads(tmp_path: Path) -> None:
    recipe = Recipe(name="tracked", trackers=("tensorboard",))
    do_stage(recipe, tmp_path, Stage("seed-0/head/sft", train), "key", threads=1)
    folder = tmp_path / "seed-0/head/sft"
    rows = read_jsonl(folder / "metrics.jsonl")
    assert rows
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    assert set(found.Tags()["tensors"]) == set(rows[0]) - {"step"}
    for name in ("train_loss", "heldout_l1"):
        events = found.Tensors(name)
        assert [event.step for event in events] == [row["step"] for row in rows]
        values = [event.tensor_proto.float_val[0] for event in events]
        assert values == pytest.approx([row[name] for row in rows], rel=1e-6)


def test_trackers_are_no_part_of_a_key() -> None:
    with_one = Recipe(name="a", trackers=("wandb",))
    without = Recipe(name="a")
    keys = [stage_keys(by_name(plan_stages(recipe))) for recipe in (with_one, without)]
    assert keys[0] == keys[1]


def test_a_missing_tracker_stops_the_run_before_it_starts(tmp_path: Path) -> None:
    recipe = Recipe(name="a", trackers=("trackio",))
    with pytest.raises(RoboAlignError, match="trackio is not installed"):
        Run(recipe, tmp_path / "run", [Stage("one", train)]).execute()
    assert not (tmp_path / "run").exists()


def test_tracking_changes_no_weight(tmp_path: Path) -> None:
    weights = []
    for name in ("with", "without"):
        head = make_head()
        data = (synthetic(tmp_path / name, 32, 0), synthetic(tmp_path / name, 8, 1))
        with tracking(["tensorboard"] if name == "with" else [], "demo", name):
            fit(head, *data, CONFIG, tmp_path / name / "run", seed=0)
        weights.append(head.state_dict())
    assert all((weights[0][key] == value).all() for key, value in weights[1].items())
