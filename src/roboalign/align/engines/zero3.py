"""Weights, gradients and optimizer split over processes by DeepSpeed (ZeRO-3): set up, read whole, and resumed.

A launcher asks for it (launch/accelerate/eight_gpus_zero3.yaml). DeepSpeed's own checkpoints serve the number of
processes that wrote them; ours are those of a whole model (`sharding.py`), and serve any.
"""

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.integrations.deepspeed import (
    is_deepspeed_available,
    propagate_args_to_deepspeed,
    unset_hf_deepspeed_config,
)

from roboalign.core.errors import RoboAlignError

ASKED = "ACCELERATE_USE_DEEPSPEED"  # how accelerate's launcher tells its processes
LAUNCH = "launch/accelerate/eight_gpus_zero3.yaml"
MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW keeps of each weight


def asked() -> bool:
    """Whether this process was launched for DeepSpeed."""
    return os.environ.get(ASKED, "false").lower() == "true"


def check_installed() -> None:
    """Raises RoboAlignError where this process was launched for DeepSpeed, and that is not installed."""
    if asked() and not is_deepspeed_available():
        raise RoboAlignError(
            "this launch asks for DeepSpeed, which is not installed",
            where=ASKED,
            fix="install requirements-deepspeed.lock (docs/how-to/scale-out.md), or launch with "
            "launch/accelerate/eight_gpus_fsdp2.yaml, which needs no other package",
        )


def prepare_accelerator(
    accelerator: Accelerator, model: nn.Module, arguments: TrainingArguments
) -> None:
    """Make `accelerator` hand `model` to DeepSpeed with the recipe's settings.

    Raises RoboAlignError where the launcher started one process or asked for another stage than 3, and for weights that
    are not float32.
    """
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        # accelerate uses DeepSpeed on GPUs alone and would train whole copies here, silently; it works over gloo.
        accelerator.state.distributed_type = DistributedType.DEEPSPEED
        accelerator.state.deepspeed_plugins = arguments.deepspeed_plugin
        propagate_args_to_deepspeed(accelerator, arguments)
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None or plugin.zero_stage != 3 or accelerator.num_processes == 1:
        raise RoboAlignError(
            "this launch asks for DeepSpeed, but not for ZeRO-3 in several processes",
            where=ASKED,
            fix=f"launch several processes with {LAUNCH}",
        )
    if other := {parameter.dtype for parameter in model.parameters()} - {torch.float32}:
        raise RoboAlignError(
            f"ZeRO-3 trains float32 weights, and some are {other.pop()}",
            where="hardware.dtype",
            fix="set hardware.dtype: float32, with sft.bf16: true for speed",
        )
    if arguments.bf16:
        # DeepSpeed's own bf16 would also round the frozen weights and the rotary frequencies.
        plugin.deepspeed_config["bf16"] = {"enabled": False}
        plugin.deepspeed_config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        plugin.hf_ds_config._dtype = (
            torch.float32
        )  # images stay as they are; autocast rounds what it multiplies
    accelerator.gradient_accumulation_steps = arguments.gradient_accumulation_steps
    unset_hf_deepspeed_config()  # it would make every model that is loaded from here on a split one


def is_split(parameter: Tensor) -> bool:
    """Whether DeepSpeed has split this parameter: the tensor itself then tells neither size nor values."""
    return hasattr(parameter, "ds_id")


def size_of(parameter: Any) -> int:
    """Numbers in a parameter, split by DeepSpeed or not."""
    return int(parameter.ds_numel if is_split(parameter) else parameter.numel())


def whole(parameter: Any) -> Tensor:
    """The value of a split parameter in the type it is stored in; every process takes part.

    DeepSpeed's own gathering gives weights of linear layers in the type they are multiplied in.
    """
    return _joined(parameter.ds_tensor.detach(), parameter)


def whole_optimizer(
    optimizer: Any, trained: list[list[nn.Parameter]], *, keep: bool
) -> dict[str, Any]:
    """AdamW's state dict with whole tensors in the CPU's memory, as torch saves that of an unsplit model.

    `optimizer` is what accelerate made of it; `trained` are the parameters of its groups, before DeepSpeed flattened
    them. Every process takes part; {} without `keep`.
    """
    from deepspeed.utils import safe_get_local_optimizer_state

    adam = optimizer.optimizer.optimizer  # accelerate's wrapper, DeepSpeed's, and torch's own
    step = next(iter(adam.state.values()))["step"]
    state: list[dict[str, Any]] = []
    for parameter in (parameter for group in trained for parameter in group):
        entry = {
            name: _joined(safe_get_local_optimizer_state(parameter, name), parameter)
            for name in MOMENTS
        }
        if keep:
            state.append(
                {"step": step.cpu().clone(), **{name: value.cpu() for name, value in entry.items()}}
            )
    if not keep:
        return {}
    numbers = iter(range(len(state)))
    groups = [
        {**group, "params": [next(numbers) for _ in of_group]}
        for group, of_group in zip(adam.param_groups, trained, strict=True)
    ]
    return {"state": dict(enumerate(state)), "param_groups": groups}


def load_optimizer(optimizer: Any, trained: list[list[nn.Parameter]], file: Path) -> None:
    """Read what an unsplit training, or `whole_optimizer`, wrote into the optimizer of split weights."""
    from deepspeed.utils import safe_set_local_optimizer_state

    split, adam = optimizer.optimizer, optimizer.optimizer.optimizer
    stored = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    step = next(iter(stored["state"].values()))["step"]
    for flat in split.fp32_partitioned_groups_flat:
        zeros = {name: torch.zeros_like(flat) for name in MOMENTS}
        adam.state[flat] = {"step": step.to(flat.device, copy=True), **zeros}
    for index, parameter in enumerate(parameter for group in trained for parameter in group):
        for name in MOMENTS:
            safe_set_local_optimizer_state(
                parameter, _part(stored["state"][index][name], parameter), name
            )
    for group, kept in zip(adam.param_groups, stored["param_groups"], strict=True):
        group.update({name: value for name, value in kept.items() if name != "params"})


def _joined(part: Tensor, parameter: Any) -> Tensor:
    """The whole tensor, in the shape of `parameter`, of equal parts, one a process and the last padded."""
    parts = part.new_empty(dist.get_world_size(), part.numel())
    dist.all_gather(list(parts), part)
    return parts.flatten()[: parameter.ds_numel].view(parameter.ds_shape)


def _part(value: Tensor, parameter: Any) -> Tensor:
    """This process's part of a whole tensor, as DeepSpeed splits `parameter`."""
    size, rank = parameter.ds_tensor.numel(), dist.get_rank()
    held = value.flatten()[rank * size : (rank + 1) * size]
    return nn.functional.pad(held, (0, size - held.numel()))
