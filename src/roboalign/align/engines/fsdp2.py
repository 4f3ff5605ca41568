"""Shard weights, gradients and optimizer over processes (FSDP2): set up a sharded model, gather it,
and resume it.

The launcher requests this (launch/accelerate/eight_gpus_fsdp2.yaml), and `accelerate` shards the
model. The files are the same as for an unsharded training, so a checkpoint works with any number of
processes, sharded or not.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from roboalign.align.lora import adapted, merged_parameters
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.presets import meta_model

ASKED = "ACCELERATE_USE_FSDP"  # the variable by which accelerate's launcher tells its processes
DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"
LAUNCH = "launch/accelerate/eight_gpus_fsdp2.yaml"


class ShardedTrainer(Trainer):
    """`transformers.Trainer` whose model may be sharded; its checkpoints are those of an unsharded
    model.

    Weights in a checkpoint have the names of the model in memory. In a Hugging Face folder they may
    differ: Qwen2.5-VL and LLaVA have older names. Trainer would store those, and would skip what it
    does not find when it resumes.
    """

    model: Any
    lr_scheduler: Any

    @property
    def splits(self) -> bool:
        """Return whether the launch shards the model over the processes."""
        return bool(self.is_fsdp_enabled)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if os.environ.get(ASKED, "false").lower() == "true":
            prepare_accelerator(self.accelerator, self.model)
            self.is_fsdp_enabled = True

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        norm = super()._clip_grad_norm(model)
        return norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the complete model into a folder. Every process must call this; the first one
        writes."""
        if not self.splits:
            super().save_model(output_dir, _internal_call)
            return
        state = whole_weights(self.model, keep=self.args.should_save)
        if self.args.should_save:
            self._save(output_dir, state_dict=state)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        if not folder.name.startswith(PREFIX_CHECKPOINT_DIR):
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            state = whole_weights(self.model, keep=True) if state_dict is None else state_dict
            stored = {name: state[name].contiguous() for name in _kept(self.model)}
            save_file(stored, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.splits:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = whole_optimizer(self.optimizer, keep=self.args.should_save)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        load_weights(self.model if model is None else model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.splits or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load_optimizer(self.optimizer, Path(checkpoint) / OPTIMIZER_NAME)
        self.lr_scheduler.load_state_dict(
            torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
        )


def refuse_deepspeed() -> None:
    """Raise RoboAlignError if accelerate launched this process for DeepSpeed."""
    if os.environ.get(DEEPSPEED, "false").lower() == "true":
        raise RoboAlignError(
            "this launch asks for DeepSpeed, and models are split by FSDP2 only",
            where=DEEPSPEED,
            fix=f"launch with {LAUNCH}",
        )


def prepare_accelerator(accelerator: Accelerator, model: nn.Module) -> None:
    """Make `accelerator` shard `model` layer by layer with FSDP2, as the launcher requested.

    Raises RoboAlignError if the launcher requested FSDP1, started only one process, or lets only
    the first process load weights.
    """
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        # accelerate shards only on GPUs and would silently train unsharded copies here; FSDP2
        # itself works over gloo.
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        accelerator.state.distributed_type = DistributedType.FSDP
    if not accelerator.is_fsdp2:
        raise RoboAlignError(
            "this launch asks for FSDP, but not for FSDP2 in several processes",
            where=ASKED,
            fix=f"launch several processes with {LAUNCH}",
        )
    plugin = accelerator.state.fsdp_plugin
    if plugin.cpu_ram_efficient_loading:
        # With this option, transformers gives the other processes a model without weights, but the
        # KL reference is copied from it.
        raise RoboAlignError(
            "fsdp_cpu_ram_efficient_loading is on, and every process must load the weights",
            where=ASKED,
            fix=f"set it to false, as in {LAUNCH}",
        )
    if plugin.transformer_cls_names_to_wrap is None:
        # accelerate refuses a class that does not occur; LLaVA lists the layers of every vision
        # tower that it could have.
        there = {type(module).__name__ for module in model.modules()}
        plugin.transformer_cls_names_to_wrap = sorted(
            there & set(getattr(model, "_no_split_modules", None) or ())
        )
    # Gradients that are reduced only after the last micro-batch would be stored unsharded on each
    # device.
    accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True
    if accelerator.mixed_precision == "bf16":
        # accelerate's default would also sum gradients in bfloat16.
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        plugin.mixed_precision_policy = policy


@contextmanager
def split_adapted(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Shard a model with adapters in place, layer by layer; within this context `accelerate` takes
    it as it is.

    `accelerate` would shard a table whose rows are trained apart from the root, and refuses one
    that is shared, since it asks the wrapped table for its weights. Here both tables are the root's
    and stay gathered from the first forward pass of an update to its last backward pass.
    """
    plugin = accelerator.state.fsdp_plugin
    settings: dict[str, Any] = {
        "mp_policy": plugin.mixed_precision_policy or MixedPrecisionPolicy(),
        "offload_policy": plugin.cpu_offload,
    }
    layers, again = set(plugin.transformer_cls_names_to_wrap), plugin.reshard_after_forward
    for module in reversed(list(model.modules())):  # inner modules first
        if type(module).__name__ in layers:
            fully_shard(module, reshard_after_forward=again, **settings)
    fully_shard(model, **settings)
    policy, plugin.auto_wrap_policy = plugin.auto_wrap_policy, None
    try:
        yield
    finally:
        plugin.auto_wrap_policy = policy


def computes_in(accelerator: Accelerator) -> torch.dtype | None:
    """Return the type in which a sharded model gathers and multiplies its weights; None: the type
    in which they are stored."""
    return torch.bfloat16 if accelerator.mixed_precision == "bf16" else None


def shard(accelerator: Accelerator, model: nn.Module) -> Any:
    """Shard `model` in place, by the same plan as the trained model, and move its shards to the
    devices."""
    return fsdp2_prepare_model(accelerator, model)


# Gather complete weights. These functions are collectives: every process calls them. Only one
# parameter at a time is complete in addition to the shards.


def whole_parameters(
    model: nn.Module, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield name and complete value of each parameter in `dtype` (None: its own type).

    Shared parameters come once. Adapters are merged into the weights that they adapt.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # free what a forward pass without a backward pass left gathered
    if adapted(model):
        for name, value in merged_parameters(model, gathered):
            yield name, value if dtype is None else value.to(dtype)
        return
    for name, parameter in model.named_parameters():
        yield name, gathered(parameter if dtype is None else parameter.detach().to(dtype))


def gathered(parameter: Tensor) -> Tensor:
    """Return the complete value of a parameter, sharded or not, without a gradient."""
    part = parameter.detach()
    return part.full_tensor() if isinstance(part, DTensor) else part


def whole_weights(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """Return the state dict of the complete model in CPU memory, as of an unsharded model; {}
    without `keep`."""
    state = {}
    for name, value in whole_parameters(model):
        if keep:
            state[name] = value.cpu()
    if not keep:
        return {}
    owners = dict(model.named_parameters(remove_duplicate=False))
    first = {id(owners[name]): value for name, value in state.items()}
    shared = {name: first[id(parameter)] for name, parameter in owners.items()}
    return shared | {name: value.cpu() for name, value in _persistent_buffers(model).items()}


def _persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    kept = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


def _kept(model: nn.Module) -> dict[str, Tensor]:
    """Return what a checkpoint stores of a model: each parameter once, and its persistent
    buffers."""
    return dict(model.named_parameters()) | _persistent_buffers(model)


def plain_copy(
    model: Any, *, dtype: torch.dtype | None, device: torch.device, keep: bool = True
) -> Any:
    """Return a complete, frozen copy of a sharded Hugging Face model in eval mode, on `device`;
    None without `keep`. Its adapters are merged.

    The copy is a separate module whose forward passes take part in no collective, so each process
    may run as many as it needs.
    """
    found: dict[str, Tensor] = {}
    for name, value in whole_parameters(model, dtype):
        if keep:
            found[name] = nn.Parameter(value.to(device, copy=True), requires_grad=False)
    if not keep:
        return None
    copy = meta_model(model.config)
    assert found.keys() == {name for name, _ in copy.named_parameters()}, (
        "the configuration is of another model"
    )
    kept = {name for name, _ in copy.named_buffers()}  # not those of adapters
    buffers = {
        name: buffer.detach().to(device, copy=True)
        for name, buffer in model.named_buffers()
        if name in kept
    }
    for name, tensor in (found | buffers).items():
        owner, _, leaf = name.rpartition(".")
        setattr(copy.get_submodule(owner), leaf, tensor)
    copy.tie_weights()
    copy.generation_config = model.generation_config
    if (renamed := getattr(model, "_weight_conversions", None)) is not None:
        copy._weight_conversions = renamed  # the names of the weights in the policy's own folder
    return copy.eval()


def whole_optimizer(optimizer: Any, *, keep: bool) -> dict[str, Any]:
    """Return the optimizer's state dict with complete tensors in CPU memory, in torch's format for
    an unsharded model."""
    found = optimizer.state_dict()
    complete: dict[int, dict[str, Any]] = {}
    for index, moments in found["state"].items():
        entry = {
            name: value.full_tensor() if isinstance(value, DTensor) else value
            for name, value in moments.items()
        }
        if keep:
            complete[index] = {
                name: value.cpu() if isinstance(value, Tensor) else value
                for name, value in entry.items()
            }
    return {"state": complete, "param_groups": found["param_groups"]} if keep else {}


# Load from complete files into the shards: each process keeps only its own part.


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load the weights of a checkpoint into a model, sharded or not. Raises RoboAlignError if some
    are missing."""
    left = _kept(model)
    with safe_open(folder / SAFE_WEIGHTS_NAME, framework="pt") as stored, torch.no_grad():
        for name in left.keys() & set(stored.keys()):
            weight = left.pop(name)
            weight.copy_(like(stored.get_tensor(name), weight))
    if left:
        raise RoboAlignError(
            f"{len(left)} of its weights are not there ({', '.join(sorted(left)[:3])})",
            where=str(folder),
            fix=f"remove {folder.parent} to begin this training again",
        )


def load_optimizer(optimizer: Any, file: Path) -> None:
    """Load an optimizer's state, from an unsharded training or `whole_optimizer`, into that of
    sharded weights.

    Both number the parameters in the order in which the optimizer's groups list them.
    """
    stored = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, moments in stored["state"].items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameters[index].shape and value.ndim:
                moments[name] = like(value, parameters[index])
    optimizer.load_state_dict(stored)


def like(whole: Tensor, parameter: Tensor) -> Tensor:
    """Return `whole`, which each process has, on the device of `parameter` and sharded in the same
    way."""
    if not isinstance(parameter, DTensor):
        return whole.to(parameter.device)
    mesh = parameter.device_mesh
    return distribute_tensor(
        whole.to(parameter.device), mesh, parameter.placements, src_data_rank=None
    )
