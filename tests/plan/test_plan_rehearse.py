"""`roboalign plan --rehearse`: against the allocator's own record of the same update, and against the plan."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import yaml
from torch.profiler import ProfilerActivity, profile

from roboalign.cli.main import main
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.load import load_mllm, save_mllm
from roboalign.mllm.tiny_classes import build_class
from roboalign.plan import rehearse as module
from roboalign.plan.arithmetic import parse_gpus
from roboalign.plan.model import Assumptions
from roboalign.plan.rehearse import Rehearsal, Rehearsed, rehearse
from roboalign.plan.rehearse_model import WORDS, fake_backbone
from roboalign.plan.rehearse_split import LAUNCHED
from roboalign.run.load import load_recipe
from roboalign.run.recipe import Recipe

RECIPES = Path(__file__).parents[2] / "recipes"
SHRUNKEN = (
    "sft.micro_batch_size=4",
    "rl.micro_batch_size=4",
    "rl.samples=4",
    "rl.max_new_tokens=8",
    "head_training.features.batch_size=8",
)
NEAR = 0.15  # the plan's figures are to be within it


def rehearsed(recipe: Recipe, gpus: str = "2xH100", *, split: bool = False) -> dict[str, Rehearsed]:
    return {
        f"{one.stage} {one.part}": one
        for one in rehearse(recipe, *parse_gpus(gpus), Assumptions(), split=split)
    }


def far(found: dict[str, Rehearsed], *parts: str) -> dict[str, float]:
    """By how much the plan is off, where that is too much."""
    off = {part: found[part].planned / found[part].total - 1 for part in parts}
    return {part: value for part, value in off.items() if abs(value) > NEAR}


# Against real tensors ----------------------------------------------------------------------------------------------


def allocated(run: Any) -> int:
    """The most bytes that torch's allocator had given out at once while `run` ran, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    kineto: Any = record.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted((e.start_ns(), e.nbytes()) for e in kineto.events() if e.name() == "[memory]")
    total = peak = 0
    for _, size in events:
        total += size
        peak = max(peak, total)
    return peak


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("qwen2_5_vl", ("sft.gradient_checkpointing=true",)),
        ("qwen3_vl", ()),
        ("qwen3_vl", ("sft.freeze_vision=false",)),
        ("llava", ("sft.gradient_checkpointing=true", "sft.freeze_vision=false")),
    ],
)
def test_it_counts_what_the_allocator_gives_out(
    name: str, settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One update of SFT on fake tensors, and the same on real ones under torch's profiler."""
    folder = tmp_path / name  # a model without action tokens
    save_mllm(build_class(name, [" ".join(WORDS)] * 20), folder)
    source = (f"backbone.source={folder}", "backbone.layer=2")
    recipe = load_recipe(RECIPES / "quickstart.yaml", (*source, *SHRUNKEN, *settings))
    peaks: list[int] = []

    def real(trainer: Any, meter: Any) -> dict[str, Any]:
        trainer.args.save_strategy = "no"
        trainer.add_callback(module._OneUpdate(trainer, meter))
        peaks.append(allocated(trainer.run))
        return {}

    fake = fake_backbone(recipe, 66)
    with module.fixed_in_place():
        made, _ = module._sft(Rehearsal(recipe, Assumptions(), 1, fake))
    mllm = load_mllm(folder)
    mllm.model.resize_token_embeddings(
        fake.model.get_input_embeddings().weight.shape[0], mean_resizing=False
    )
    mllm.processor, mllm.vocabulary = fake.processor, fake.vocabulary
    monkeypatch.setattr(module, "_run", real)
    module._sft(Rehearsal(recipe, Assumptions(), 1, mllm))
    beside_weights = sum(made["update"].values()) - made["update"]["weights"]
    assert beside_weights == pytest.approx(peaks[0], rel=0.05)


# Against the plan --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [False, True])
def test_the_plan_is_near(split: bool) -> None:
    before = dict(os.environ)
    found = rehearsed(load_recipe(RECIPES / "quickstart.yaml", SHRUNKEN), split=split)
    assert not far(found, "sft start", "sft update", "rl start", "rl update", "head step")
    assert found["sft start"].total / found["sft update"].peak["weights"] > (1.9 if split else 0)
    assert {"rl rollout", "head hidden states"} < found.keys()
    assert os.environ == before and not dist.is_initialized()


def test_a_budget_of_tokens_is_rehearsed_as_the_conversations_that_it_holds() -> None:
    four = rehearsed(load_recipe(RECIPES / "quickstart.yaml", (*SHRUNKEN, "arms=[sft]")))
    budget = ("sft.tokens_per_micro_batch=1072", "arms=[sft]")  # they have 267 tokens
    found = rehearsed(load_recipe(RECIPES / "quickstart.yaml", budget))
    assert not far(found, "sft start", "sft update")
    assert found["sft update"].peak == four["sft update"].peak


def test_the_split_is_that_of_the_launch_file() -> None:
    asked = yaml.safe_load(
        (RECIPES.parent / "launch" / "accelerate" / "eight_gpus_fsdp2.yaml").read_text()
    )
    told = {name.upper(): str(value) for name, value in asked["fsdp_config"].items()}
    told = {
        name: value.lower() if value in ("True", "False") else value for name, value in told.items()
    }
    assert {"ACCELERATE_USE_FSDP": "true", **told} == LAUNCHED


def test_with_lora_and_without_kl() -> None:
    lora = "{rank: 8}"
    found = rehearsed(
        load_recipe(
            RECIPES / "quickstart.yaml",
            (*SHRUNKEN, "rl.kl=0", f"sft.lora={lora}", f"rl.lora={lora}"),
        )
    )
    assert not far(found, "sft update", "rl update")
    assert found["sft update"].peak["AdamW"] < 0.2 * found["sft update"].peak["weights"]
    assert "frozen model" not in found["rl update"].peak


@pytest.fixture
def published() -> Iterator[Recipe]:
    one_image = ("sft.micro_batch_size=1", "head_training.features.batch_size=1")
    yield load_recipe(RECIPES / "paper" / "qwen2_5_vl_7b.yaml", ("arms=[base, sft]", *one_image))


def test_the_7b_at_its_full_size(published: Recipe) -> None:
    """Eight billion parameters, through the trainer of SFT and the head, in seconds."""
    found = rehearsed(published, "8xH100")
    assert not far(found, "sft update", "head step")
    assert found["sft update"].total > 130e9 and found["sft update"].peak["weights"] > 33e9


# What is printed ---------------------------------------------------------------------------------------------------


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(RECIPES / "quickstart.yaml")
    settings = [part for setting in (*SHRUNKEN, "arms=[base, sft]") for part in ("--set", setting)]
    assert main(["plan", recipe, "--gpus", "2xH100", "--rehearse", *settings]) == 0
    told = capsys.readouterr().out
    assert "the model whole on each GPU" in told and "; the plan says" in told
    lines = [
        line.strip().split(":")[0] for line in told.splitlines() if "what comes and goes" in line
    ]
    assert lines == ["sft, update", "head, hidden states", "head, step"]


def test_a_family_whose_processor_is_not_known() -> None:
    recipe = load_recipe(
        RECIPES / "quickstart.yaml",
        ("backbone.source=/models/llava-1.5-7b-hf", "backbone.layer=21"),
    )
    with pytest.raises(RoboAlignError, match="known by its numbers alone"):
        rehearsed(recipe)


def test_a_batch_that_does_not_divide() -> None:
    with pytest.raises(RoboAlignError, match="multiple of"):
        rehearsed(load_recipe(RECIPES / "quickstart.yaml", ()), "3xH100")
