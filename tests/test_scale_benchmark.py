"""The benchmark of scale: its operations are those that torch counts, and a part that fails leaves the others."""

import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from roboalign.align.answers import conversation_loss
from roboalign.align.dataset import Conversations
from roboalign.align.trained import freeze_vision
from roboalign.mllm.encode import IGNORED, collate, encode_conversation
from roboalign.mllm.load import Mllm
from roboalign.mllm.presets import MODEL_PRESETS
from roboalign.mllm.tiny_classes import build_class

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import scale
import scale_model
import scale_policy
import scale_training
from scale_measure import Row, Setting, attempt, fits
from scale_model import (
    SHAPES,
    build,
    conversations,
    patches_of,
    training_pass,
    vision_pass,
    work_of,
)

TURNS = [
    {
        "question": "Where is the red block, and what is beside it?",
        "answer": "It is left of the gripper.",
    }
] * 2


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def mllm(request: pytest.FixtureRequest) -> Mllm:
    made = build_class(request.param, [text for turn in TURNS for text in turn.values()] * 9)
    made.model.set_attn_implementation("eager")  # torch does not count its fused attention on a CPU
    return made


@pytest.mark.parametrize("frozen", [True, False])
def test_operations_are_those_that_torch_counts(mllm: Mllm, frozen: bool) -> None:
    """Two equal samples, so that nothing is padding; torch counts attention to the tokens behind as well."""
    encoded = encode_conversation(mllm, TURNS, [np.zeros((64, 64, 3), np.uint8)])
    length, patches = len(encoded.input_ids), patches_of(mllm, encoded)
    batch = collate(mllm, [encoded, encoded])
    work, answers = work_of(mllm.model), 2 * int((encoded.labels != IGNORED).sum())
    if frozen:
        freeze_vision(mllm.model)
    with FlopCounterMode(display=False) as counter:
        conversation_loss(mllm.model.train(), batch).backward()
    mllm.model.requires_grad_(True).eval()
    counted = counter.get_total_flops()
    needed = training_pass(work, [length] * 2, answers, [patches] * 2, frozen_vision=frozen)
    behind = 3 * 2 * 2 * work.text.layers * work.text.query * length**2
    assert needed + behind == pytest.approx(counted, rel=0.02)
    assert needed != pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("side", [32, 64])
def test_operations_of_the_vision_tower(mllm: Mllm, side: int) -> None:
    """Windows of Qwen2.5-VL, all of an image in Qwen3-VL."""
    image = [[np.zeros((side, side, 3), np.uint8)]]
    pixels = mllm.processor.image_processor(
        image, return_tensors="pt", input_data_format="channels_last"
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        mllm.model.model.visual(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"])
    needed = vision_pass(work_of(mllm.model), len(pixels["pixel_values"]))
    assert needed == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.parametrize("name", ["qwen2_5_vl_7b", "qwen3_vl_8b"])
def test_the_published_shapes(name: str) -> None:
    """Without memory behind them: as many parameters as published and the new tokens' rows; samples near 700 tokens."""
    shape = SHAPES[name]
    mllm = build(shape, torch.bfloat16, torch.device("meta"))
    parameters, numbers = list(mllm.model.parameters()), work_of(mllm.model).text
    rows = len(mllm.vocabulary.ids) if mllm.vocabulary else 0
    added = rows * numbers.width * (1 if numbers.tied else 2)
    assert (
        sum(p.numel() for p in parameters) == (MODEL_PRESETS[shape.preset].published or 0) + added
        and rows > 100
    )
    assert {(p.device.type, p.dtype) for p in parameters} == {("meta", torch.bfloat16)}
    data = Conversations(mllm, conversations(shape, 64, turns=scale_training._turns(mllm, shape)))
    assert statistics.mean(len(data[i].input_ids) for i in range(64)) == pytest.approx(
        shape.tokens, rel=0.05
    )


def small(preset: str, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """A published model's configuration, narrow and with two layers, at the widths of its heads; one step of each."""
    config = json.loads(json.dumps(MODEL_PRESETS[preset].config))
    config["text_config"] |= {
        "hidden_size": 128,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "vocab_size": 1200,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
    }
    config["vision_config"] |= {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 128,
    }
    if "deepstack_visual_indexes" in config["vision_config"]:
        config["vision_config"]["deepstack_visual_indexes"] = [0]
    else:
        config["vision_config"]["fullatt_block_indexes"] = [1]
    monkeypatch.setitem(MODEL_PRESETS, preset, replace(MODEL_PRESETS[preset], config=config))
    monkeypatch.setattr(scale_policy, "CAMERA_SIDE", 64)
    shape = scale_model.Shape(
        preset,
        image=64,
        tokens=120,
        batch=2,
        layer=1,
        head="tiny",
        action_dim=3,
        horizon=4,
        vocabulary=40,
        prompts=4,
        answer=3,
    )
    monkeypatch.setitem(SHAPES, "small", shape)
    return Setting(shape, torch.device("cpu"), rate=1e10, steps=1, compile=False, workers=0, warm=1)


@pytest.mark.parametrize("preset", ["qwen2.5-vl-3b", "qwen3-vl-8b"])
def test_every_part_runs_at_the_configuration_of_a_published_model(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(preset, monkeypatch)
    monkeypatch.setattr(
        sys, "argv", ["scale.py", "--shape", "small", "--steps", "1", "--out", str(tmp_path)]
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(scale, "matrix_rate", lambda *arguments: (1e10, {512: 1e10}))
    assert scale.main() == 0
    found = json.loads((tmp_path / "scale-small.json").read_text())
    rows = {(row["part"], row["what"]): row for row in found["rows"]}
    assert [part for part, _ in rows] == ["sft"] + 3 * ["rollout"] + 2 * ["head"] + 2 * ["act"]
    assert all(row["median"] > 0 and row["peak"] is None for row in rows.values())
    sft = rows["sft", "float32, eager"]["more"]
    assert sft["utilisation"] > 0 and sft["micro_batch_size"] == 2
    assert "No GPU: float32 on a CPU." in (tmp_path / "scale-small.md").read_text()
    assert found["context"]["torch"] == torch.__version__ and not found["context"]["cuda_used"]


def test_a_part_that_fails_leaves_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = small("qwen2.5-vl-3b", monkeypatch)
    tried: list[int] = []

    def run(micro: int) -> list[Row]:
        tried.append(micro)
        if micro > 2:
            raise torch.OutOfMemoryError
        return [Row("sft", "fits", "s", [1.0, 3.0, 2.0], None)]

    def never(micro: int) -> list[Row]:
        raise torch.OutOfMemoryError

    def sft(setting: Setting) -> Iterator[Row]:
        yield from attempt("sft", "too large", setting, lambda: fits(setting, 4, never))
        yield from attempt("sft", "fits", setting, lambda: fits(setting, 12, run))

    def broken(setting: Setting) -> Iterator[Any]:
        yield Row("rollout", "first", "s", [1.0], 3 * 2**30)
        raise ValueError("a fault")

    def whole(setting: Setting) -> Iterator[Row]:
        yield Row("head", "kept", "steps/s", [200.4], None)

    monkeypatch.setattr(scale, "PARTS", {"sft": sft, "rollout": broken, "head": whole})
    rows, failed = scale.measure(setting, ["sft", "rollout", "head"])
    assert failed and tried == [8, 4, 2]
    notes = [(row.what, row.note) for row in rows[:4]]
    assert notes == [
        ("too large", "out of memory"),
        ("fits", ""),
        ("first", ""),
        ("rollout", "failed: ValueError, see the traceback"),
    ]
    assert [row.part for row in rows[4:]] == ["head"]
    printed = capsys.readouterr().out
    assert "| sft | too large | – | 0 | – | out of memory |" in printed
    assert "| head | kept | 200 steps/s (200 to 200) | 1 | – |  |" in printed
    assert (
        "| sft | fits | 2.00 s (1.00 to 3.00) | 3 | – |  |" in printed
        and "| 1 | 3.0 |  |" in printed
    )
