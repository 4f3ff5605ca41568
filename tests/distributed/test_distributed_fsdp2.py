"""SFT and GRPO on a model that is split over two processes (FSDP2, gloo), set up by the launch file: the weights and
records of one process; checkpoints that serve split and whole models alike; rollouts without collectives."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import backbone_models as backbones
import grpo_ranks
import pytest
import sft_process as sft_runs
import tiny_grpo
import tiny_sft
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from two_ranks import split_model, two_ranks, with_one_table

from roboalign.align.engines.fsdp2 import plain_copy, prepare_accelerator, whole_weights
from roboalign.align.grpo import trainer as grpo
from roboalign.align.grpo.config import RlConfig
from roboalign.align.grpo.train import build_grpo_trainer, train_grpo
from roboalign.align.sft import SftTrainer, train_sft
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_jsonl
from roboalign.mllm.encode import encode_prompt
from roboalign.mllm.generate import generate
from roboalign.mllm.load import Mllm, load_mllm, save_mllm


class Killed(Exception):
    """Stands for a kill of a training in the test's own process."""


def leave() -> None:
    dist.barrier()
    dist.destroy_process_group()


def sft(folder: Path, stop_at: int = -1, split: bool = True) -> int:
    """Six updates; in update `stop_at` it ends as a kill would."""
    torch.set_num_threads(1)
    if split:
        split_model()
    inner = SftTrainer.training_step

    def step(self: SftTrainer, model: torch.nn.Module, *arguments: Any) -> torch.Tensor:
        assert isinstance(model, FSDPModule) == split and self.args.world_size == 1 + split
        if self.state.global_step == stop_at:
            if split:
                os._exit(9)
            raise Killed
        loss = inner(self, model, *arguments)
        # No process keeps a whole gradient until the last of an update's micro-batches.
        assert not split or all(p.grad is not None for p in model.parameters() if p.requires_grad)
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SftTrainer, "training_step", step)
        train_sft(tiny_sft.tiny(), sft_runs.uneven(12), sft_runs.SETTINGS, folder)
    if split:
        leave()
    return 0


@pytest.fixture(scope="module")
def sft_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sft")
    sft(folder, split=False)
    return folder


@pytest.fixture(scope="module")
def grpo_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grpo")
    grpo_ranks.train(folder)
    return folder


def test_sft_split_goes_on_from_a_whole_model(sft_alone: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        sft(tmp_path, stop_at=3, split=False)
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("checkpoint-*")) == [
        "checkpoint-2"
    ]
    ended = two_ranks(sft, tmp_path, logs=tmp_path / "logs")
    assert [one.status for one in ended] == [0, 0], ended
    assert "resuming" in ended[0].stderr
    sft_runs.assert_same_training(tmp_path, sft_alone)


def compiled_sft(folder: Path) -> int:
    """Two updates, the layers traced (`aot_eager`: torch.compile without its code generation) and recomputed."""
    torch.set_num_threads(1)
    split_model()
    short = {"max_steps": 2, "save_every": 10, "gradient_checkpointing": True, "compile": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
        train_sft(
            tiny_sft.tiny(), sft_runs.uneven(12), sft_runs.SETTINGS.model_copy(update=short), folder
        )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    leave()
    return 0


def test_sft_split_and_compiled(tmp_path: Path) -> None:
    settings = sft_runs.SETTINGS.model_copy(update={"max_steps": 2, "save_every": 10})
    train_sft(tiny_sft.tiny(), sft_runs.uneven(12), settings, tmp_path / "alone")
    ended = two_ranks(compiled_sft, tmp_path / "split", logs=tmp_path / "logs")
    assert [one.status for one in ended] == [0, 0], ended
    sft_runs.assert_same_training(tmp_path / "split", tmp_path / "alone")


def test_sft_killed_when_split_goes_on_whole(sft_alone: Path, tmp_path: Path) -> None:
    ended = two_ranks(sft, tmp_path, 4, logs=tmp_path / "logs")
    assert 9 in [one.status for one in ended], ended
    written = {p.name for p in (tmp_path / "checkpoints" / "checkpoint-4").iterdir()}
    assert {
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
    } <= written  # and no file of a split model alone
    assert not [name for name in written if "fsdp" in name]
    sft(tmp_path, split=False)
    sft_runs.assert_same_training(tmp_path, sft_alone)


def test_grpo_killed_when_split_goes_on_split(grpo_alone: Path, tmp_path: Path) -> None:
    ended = two_ranks(grpo_ranks.train, tmp_path / "rl", 3, 2, True, logs=tmp_path)
    assert 9 in [one.status for one in ended], ended
    assert [p.name for p in (tmp_path / "rl" / "checkpoints").glob("checkpoint-*")] == [
        "checkpoint-2"
    ]
    ended = two_ranks(grpo_ranks.train, tmp_path / "rl", -1, 2, True, logs=tmp_path)
    assert [one.status for one in ended] == [0, 0], ended
    grpo_ranks.assert_same_training(tmp_path / "rl", grpo_alone)


def tied() -> Mllm:
    return with_one_table(tiny_grpo.tiny())


def bf16(folder: Path, split: bool = True) -> int:
    """Two rollouts as the paper's recipe has them (bf16, activations computed again, vision frozen), the table tied."""
    torch.set_num_threads(1)
    if split:
        split_model()
    config = RlConfig(
        **{
            **tiny_grpo.CONFIG,
            "updates": 4,
            "bf16": True,
            "gradient_checkpointing": True,
            "freeze_vision": True,
        }
    )
    inner, seen = grpo.roll_out, []

    def sampled(mllm: Mllm, *arguments: Any, **settings: Any) -> Any:
        assert not any(isinstance(module, FSDPModule) for module in mllm.model.modules())
        seen.append(mllm.model.dtype)
        if (
            split and dist.get_rank() == 0
        ):  # more forward passes than the other process makes: no collective is in them
            generate(mllm, [grpo.prompt_of(arguments[1][0])], max_new_tokens=3)
        return inner(mllm, *arguments, **settings)

    with pytest.MonkeyPatch.context() as patch:
        tiny_grpo.even_ids_rewarded.__wrapped__(patch)
        patch.setattr(grpo, "roll_out", sampled)
        train_grpo(tied(), tiny_grpo.fast(), tiny_grpo.prompts(), config, folder)
    assert seen == [torch.bfloat16 if split else torch.float32] * 2
    if split:
        leave()
    return 0


def test_grpo_in_bfloat16_with_checkpointing_and_a_tied_table(tmp_path: Path) -> None:
    """Sampling in bfloat16 draws other answers, so that runs are compared in what does not hang on them."""
    ended = two_ranks(bf16, tmp_path / "split", logs=tmp_path)
    assert [one.status for one in ended] == [0, 0], ended
    records = read_jsonl(tmp_path / "split" / "metrics.jsonl")
    assert len(records) == 4 and all(0 < record["grad_norm"] < 100 for record in records)
    assert (
        records[0]["drift"] < 0.05 and abs(records[0]["kl"]) < 1e-3
    )  # the sampler and the reference are the policy
    state = load_file(tmp_path / "split" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    start = dict(tied().model.named_parameters())
    moved = {name for name, value in state.items() if (value != start[name]).any()}
    assert moved and not any("visual" in name for name in moved)


FAMILIES = {"qwen2_5_vl": True, "smolvlm": True, "llava": False}  # name: whether the table is tied


def families(folder: Path, split: bool) -> int:
    """Two updates of GRPO with replay from a folder of each of these classes."""
    torch.set_num_threads(1)
    if split:
        split_model()
    config = RlConfig(
        learning_rate=1e-3,
        prompts_per_rollout=2,
        prompts_per_update=2,
        micro_batch_size=1,
        samples=2,
        updates=2,
        max_new_tokens=5,
        kl=0.1,
        replay_weight=0.5,
        replay_batch=2,
    )
    for name in FAMILIES:
        mllm = load_mllm(folder / name)
        train_grpo(
            mllm,
            backbones.FAST,
            backbones.conversations("think"),
            config,
            folder / f"{name}-{split}",
            replay=backbones.conversations("direct"),
        )
        assert isinstance(mllm.model.get_decoder().layers[0], FSDPModule) == split
    if split:
        leave()
    return 0


def test_other_families(tmp_path: Path) -> None:
    for name, tied in FAMILIES.items():
        save_mllm(backbones.model_of(name, tied=tied), tmp_path / name)
    ended = two_ranks(families, tmp_path, True, logs=tmp_path)
    assert [one.status for one in ended] == [0, 0], ended
    families(tmp_path, False)
    for name in FAMILIES:
        start, whole, split = (
            load_file(tmp_path / one / "model.safetensors")
            for one in (name, f"{name}-False/model", f"{name}-True/model")
        )
        assert start.keys() == whole.keys() == split.keys()
        moved = max(float((whole[key] - start[key]).abs().max()) for key in start)
        apart = max(float((whole[key] - split[key]).abs().max()) for key in start)
        assert moved > 1e-3 and apart < 0.02 * moved, (name, moved, apart)


def copies(mllm_of: Callable[[], Mllm]) -> int:
    """A split model read whole is the model it was split from."""
    split_model()
    mllm = mllm_of()
    before = {name: value.clone() for name, value in mllm.model.state_dict().items()}
    prompt = encode_prompt(mllm, "reach", grpo.prompt_of(tiny_grpo.prompts()[0]).images)
    expected = generate(mllm, [prompt], max_new_tokens=8, temperature=0.0)
    trainer = build_grpo_trainer(
        mllm,
        tiny_grpo.fast(),
        tiny_grpo.prompts(),
        [],
        RlConfig(**tiny_grpo.CONFIG),
        Path("unused"),
        list(range(4)),
        2,
        "rl",
    )
    trainer._prepare_for_training(2, trainer.get_train_dataloader(), None)
    assert isinstance(mllm.model, FSDPModule)
    parts = sum(p.to_local().numel() for p in mllm.model.parameters())
    assert parts < 0.6 * sum(p.numel() for p in mllm.model.parameters())
    copy = plain_copy(mllm.model, dtype=None, device=torch.device("cpu"))
    assert plain_copy(mllm.model, dtype=None, device=torch.device("cpu"), keep=False) is None
    state = whole_weights(mllm.model, keep=True)
    for found in (copy.state_dict(), state):
        assert found.keys() == before.keys() and all(
            torch.equal(found[name], before[name]) for name in before
        )
    again = generate(
        Mllm(copy, mllm.processor, mllm.vocabulary), [prompt], max_new_tokens=8, temperature=0.0
    )
    assert again.tokens == expected.tokens and again.logprobs == expected.logprobs
    leave()
    return 0


@pytest.mark.parametrize("mllm_of", [tiny_grpo.tiny, tied])
def test_a_split_model_read_whole(tmp_path: Path, mllm_of: Callable[[], Mllm]) -> None:
    ended = two_ranks(copies, mllm_of, logs=tmp_path)
    assert [one.status for one in ended] == [0, 0], ended


def test_one_process_cannot_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RoboAlignError, match="not for FSDP2 in several processes"):
        train_sft(tiny_sft.tiny(), sft_runs.uneven(12), sft_runs.SETTINGS, tmp_path)


def test_a_launch_under_which_one_process_alone_has_weights_is_refused() -> None:
    plugin = SimpleNamespace(cpu_ram_efficient_loading=True)
    launched = SimpleNamespace(
        distributed_type="FSDP", is_fsdp2=True, state=SimpleNamespace(fsdp_plugin=plugin)
    )
    with pytest.raises(
        RoboAlignError, match="every process must load the weights Fix: set it to false"
    ):
        prepare_accelerator(launched, torch.nn.Linear(1, 1))  # type: ignore[arg-type]
