"""The recipe's `hardware`: which device a process gets, what the stage keys know of it, and what a stage loads."""

from pathlib import Path

import pytest
import torch

from roboalign.core.errors import RoboAlignError
from roboalign.core.machine import device_of
from roboalign.mllm.shipped import builtin_folder
from roboalign.run.graph import plan_stages
from roboalign.run.recipe import Recipe
from roboalign.run.scheduler import by_name, stage_keys
from roboalign.run.stage import Context, Stage


def recipe(**hardware: object) -> Recipe:
    return Recipe.model_validate({"name": "x", "arms": ["roboalign"], "hardware": hardware})


@pytest.mark.parametrize(
    ("device", "gpus", "place", "expected"),
    [
        ("auto", 0, "3", "cpu"),
        ("auto", 8, "3", "cuda:3"),
        ("auto", 1, None, "cuda:0"),
        ("cpu", 8, "3", "cpu"),
        ("cuda", 4, "3", "cuda:3"),
    ],
)
def test_the_device_of_a_process(
    monkeypatch: pytest.MonkeyPatch, device: str, gpus: int, place: str | None, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if place:
        monkeypatch.setenv("LOCAL_RANK", place)
    assert device_of(device) == torch.device(expected)


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 0), ("cuda", 3), ("auto", 3)])
def test_a_process_without_a_gpu_is_told(
    monkeypatch: pytest.MonkeyPatch, device: str, gpus: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(RoboAlignError, match=f"process 3 of this machine has no GPU: {gpus} found"):
        device_of(device)


def table(recipe: Recipe) -> dict[str, Stage]:
    return by_name(plan_stages(recipe))


def test_only_the_precision_enters_the_keys() -> None:
    plain = stage_keys(table(recipe()))
    assert stage_keys(table(recipe(device="cuda", timeout=60))) == plain
    other = stage_keys(table(recipe(dtype="bfloat16")))
    same = {name for name in plain if plain[name] == other[name]}
    assert same == {"collect", "tokenizer", "mix"}


def test_a_stage_loads_in_the_precision_of_the_recipe(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        mllm = Context(
            recipe(device="cpu", dtype=name), tmp_path, Stage("sft", lambda context: {})
        ).load(builtin_folder())
        assert {p.dtype for p in mllm.model.parameters()} == {dtype} and mllm.device.type == "cpu"
