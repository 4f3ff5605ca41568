"""The vision tower's pretraining on images of coloured squares whose places are known."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from roboalign.align.vision import (
    METRE_BETA,
    METRES,
    PIXEL_BETA,
    PIXEL_WEIGHT,
    KeypointReader,
    VisionConfig,
    VisionTrainer,
    collate_frames,
    pretrain_vision,
    reader_errors,
)
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, read_jsonl
from roboalign.episodes.episode import Camera, Episode, encode_png
from roboalign.episodes.keypoints import Keypoints, keypoints
from roboalign.mllm.load import Mllm
from roboalign.mllm.tiny import TinyConfig, build_tiny

torch.set_num_threads(1)

SIZE = 32
SHORT = {"updates": 6, "batch_size": 8, "save_every": 2, "log_every": 1}


def tiny() -> Mllm:
    config = TinyConfig(
        image_size=SIZE,
        patch_size=8,
        merge=2,
        vision_width=32,
        vision_depth=2,
        vision_heads=2,
        width=32,
        depth=2,
        heads=2,
        kv_heads=1,
        mlp_width=32,
        vocab_size=420,
    )
    return build_tiny(config, ["Where is the red square?", "It is on the left."] * 10)


def squares(number: int, steps: int = 40) -> Episode:
    """A red square (the gripper) and a green one (the goal) on gray, elsewhere in each frame; one metre wide."""
    rng = np.random.default_rng(number)
    frames = np.full((steps, SIZE, SIZE, 3), 128, np.uint8)
    places = rng.integers(4, SIZE - 4, (steps, 2, 2))  # step, body, (u, v)
    for t in range(steps):
        for (u, v), colour in zip(places[t], ((255, 0, 0), (0, 255, 0)), strict=True):
            frames[t, v - 3 : v + 3, u - 3 : u + 3] = colour
    world = np.concatenate([places / SIZE, np.full((steps, 2, 1), 0.1)], axis=-1)
    projection = np.array([[SIZE, 0, 0, 0], [0, SIZE, 0, 0], [0, 0, 0, 1.0]])
    return Episode(
        episode_id=f"squares/{number}",
        task="squares",
        instruction="look",
        fps=10,
        actions=np.zeros((steps, 4), np.float32),
        state=np.zeros((steps, 4), np.float32),
        images={"top": [encode_png(frame) for frame in frames]},
        cameras={"top": Camera("top", SIZE, SIZE, projection)},
        privileged=world.reshape(steps, 6).astype(np.float32),
        privileged_names=tuple(f"{body}.{axis}" for body in ("gripper", "goal") for axis in "xyz"),
    )


@pytest.fixture(scope="module")
def points() -> Keypoints:
    return keypoints([squares(number) for number in range(5)], "top", every=1)


@pytest.fixture(scope="module")
def heldout() -> Keypoints:
    return keypoints([squares(100)], "top", every=1)


def parameters(mllm: Mllm) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in mllm.model.named_parameters()}


def test_it_learns_where_the_squares_are_and_changes_the_tower_alone(
    points: Keypoints, heldout: Keypoints, tmp_path: Path
) -> None:
    mllm = tiny()
    before = parameters(mllm)
    config = VisionConfig(updates=150, batch_size=32, learning_rate=3e-3, log_every=10)
    ledger = pretrain_vision(mllm, points, heldout, "top", config, tmp_path)
    losses = [record["loss"] for record in read_jsonl(tmp_path / "metrics.jsonl")]
    assert losses[-1] < 0.3 * losses[0]
    # A guess in the middle is off by about 0.3 image widths.
    assert ledger["pixel_error"] < 0.1 and ledger["metre_error"] < 0.1
    assert (
        ledger["updates"] == 150
        and ledger["samples"] == 150 * 32
        and read_json(tmp_path / "ledger.json") == ledger
    )
    changed = {
        name for name, value in parameters(mllm).items() if not torch.equal(value, before[name])
    }
    assert changed and all(name.startswith("model.visual.") for name in changed)
    assert not mllm.model.training
    for module in ("blocks", "merger", "patch_embed"):
        assert any(module in name for name in changed), module


def test_gradients_reach_the_tower_and_nothing_else(points: Keypoints) -> None:
    mllm = tiny()
    batch = frames_of(mllm, points, 4)
    reader = KeypointReader(mllm.model.model.visual, 32, points.n_queries, torch.zeros(3))
    pixels, positions = reader(batch["pixel_values"], batch["image_grid_thw"], batch["queries"])
    assert pixels.shape == (4, 4, 2) and positions.shape == (4, 4, 3)
    (pixels.sum() + positions.sum()).backward()
    reached = {name for name, value in mllm.model.named_parameters() if value.grad is not None}
    assert reached and all(name.startswith("model.visual.") for name in reached)


def frames_of(mllm: Mllm, points: Keypoints, count: int) -> dict[str, torch.Tensor]:
    rows = [
        {
            "image": episode.frame("top", t),
            "queries": points.queries[i],
            "known": points.known[i],
            "pixels": points.pixels[i],
            "positions": points.positions[i],
        }
        for i, (episode, t) in enumerate(points.frames[:count])
    ]
    return collate_frames(mllm, rows)


def huber(error: float, beta: float) -> float:
    return error**2 / 2 / beta if error < beta else error - beta / 2


def fixed_answers(pixels: torch.Tensor, positions: torch.Tensor) -> Any:
    return lambda *inputs: (pixels, positions)


def trainer_of(processes: int, reduce: Any) -> Any:
    return SimpleNamespace(
        args=SimpleNamespace(world_size=processes), accelerator=SimpleNamespace(reduce=reduce)
    )


def test_the_loss_by_hand() -> None:
    alone = trainer_of(1, lambda count, reduction: count)
    known = torch.tensor([[True, False], [False, False]])
    inputs = {
        "pixel_values": None,
        "image_grid_thw": None,
        "queries": None,
        "known": known,
        "pixels": torch.zeros(2, 2, 2),
        "positions": torch.zeros(2, 2, 3),
    }
    pixels, positions = (
        torch.full((2, 2, 2), 9.0),
        torch.full((2, 2, 3), 9.0),
    )  # unknown bodies do not count
    pixels[0, 0] = torch.tensor([0.03, 0.2])
    positions[0, 0] = torch.tensor([0.01, 0.5, 0.0])
    loss = VisionTrainer.compute_loss(alone, fixed_answers(pixels, positions), inputs)
    expected = PIXEL_WEIGHT * (huber(0.03, PIXEL_BETA) + huber(0.2, PIXEL_BETA))
    expected += huber(0.01 / METRES, METRE_BETA) + huber(0.5 / METRES, METRE_BETA)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    nothing = VisionTrainer.compute_loss(
        alone, fixed_answers(pixels, positions), {**inputs, "known": known & False}
    )
    assert nothing.item() == 0
    # Beside a process that knows three bodies, whose loss is 0, the mean of both parts is the mean over the four.
    two: Any = trainer_of(2, lambda count, reduction: count + 3)
    assert VisionTrainer.compute_loss(
        two, fixed_answers(pixels, positions), inputs
    ).item() / 2 == pytest.approx(expected / 4, rel=1e-5)


def test_reader_errors_by_hand(points: Keypoints) -> None:
    part = dataclasses.replace(points, frames=points.frames[:5])  # in two batches
    order = iter([torch.arange(3), torch.arange(3, 5)])

    def answers(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        index = next(order)
        pixels, positions = (
            torch.from_numpy(array)[index] for array in (points.pixels, points.positions)
        )
        return pixels + torch.tensor([0.03, 0.04]), positions + torch.tensor([0.0, 0.0, 0.2])

    errors = reader_errors(answers, tiny(), part, "top", batch=3)  # type: ignore[arg-type]
    assert errors == {
        "pixel_error": pytest.approx(0.05, rel=1e-4),
        "metre_error": pytest.approx(0.2, rel=1e-4),
    }


def test_a_stopped_run_goes_on_and_ends_with_the_same_weights(
    points: Keypoints, heldout: Keypoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = VisionConfig(**SHORT)
    whole = tiny()
    ledger = pretrain_vision(whole, points, heldout, "top", config, tmp_path / "whole")
    inner = VisionTrainer.training_step

    def step(self: VisionTrainer, *arguments: Any) -> torch.Tensor:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return inner(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(VisionTrainer, "training_step", step)
        pretrain_vision(tiny(), points, heldout, "top", config, tmp_path / "stopped")
    assert (tmp_path / "stopped" / "checkpoints" / "checkpoint-2").is_dir()
    resumed = tiny()
    again = pretrain_vision(resumed, points, heldout, "top", config, tmp_path / "stopped")
    for name, value in parameters(whole).items():
        assert torch.equal(value, parameters(resumed)[name]), name
    assert {**again, "seconds": 0} == {**ledger, "seconds": 0}
    records = [
        [
            {k: v for k, v in row.items() if k != "seconds"}
            for row in read_jsonl(tmp_path / f / "metrics.jsonl")
        ]
        for f in ("whole", "stopped")
    ]
    assert records[0] == records[1] and len(records[0]) == 6


def test_a_target_that_is_no_number_stops_the_run_before_the_weights_change(
    points: Keypoints, tmp_path: Path
) -> None:
    broken = dataclasses.replace(points, pixels=points.pixels.copy())
    broken.pixels[:, 0] = np.nan
    mllm = tiny()
    before = parameters(mllm)
    with pytest.raises(RoboAlignError, match="the loss is nan") as error:
        pretrain_vision(mllm, broken, None, "top", VisionConfig(**SHORT), tmp_path)
    assert error.value.where == "vision, update 1"
    assert all(torch.equal(value, before[name]) for name, value in parameters(mllm).items())


def test_a_frame_that_cannot_be_read_is_named(points: Keypoints, tmp_path: Path) -> None:
    cut = dataclasses.replace(points.frames[0][0], images={"top": [b"\x89PNG cut"] * 40})
    broken = dataclasses.replace(points, frames=[(cut, t) for _, t in points.frames])
    with pytest.raises(RoboAlignError, match="not a readable image"):
        pretrain_vision(tiny(), broken, None, "top", VisionConfig(**SHORT), tmp_path)


def test_a_checkpoint_of_other_settings_is_not_taken_up(points: Keypoints, tmp_path: Path) -> None:
    pretrain_vision(tiny(), points, None, "top", VisionConfig(**SHORT), tmp_path)
    assert json.loads((tmp_path / "ledger.json").read_text())["updates"] == 6
    with pytest.raises(RoboAlignError, match="another learning_rate"):
        pretrain_vision(
            tiny(), points, None, "top", VisionConfig(**SHORT, learning_rate=0.5), tmp_path
        )
