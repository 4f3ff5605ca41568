"""Run one process as if it were the first of many among which FSDP2 shards a model; nothing is sent
anywhere."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch.testing._internal.distributed.fake_pg import FakeStore

from roboalign.mllm.fake import own_addresses

# The variables that accelerate's launcher sets under launch/accelerate/eight_gpus_fsdp2.yaml.
LAUNCHED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_OFFLOAD_PARAMS": "false",
}


@contextmanager
def split_over(processes: int) -> Iterator[None]:
    """Shard models over `processes` within the context, although only the first process exists.

    What the others would send has the right size and no meaning.
    """
    place = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    settings = {**LAUNCHED, **{name: str(value) for name, value in place.items()}}
    with _environment(settings), own_addresses():
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
        try:
            yield
        finally:
            dist.destroy_process_group()
            AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Set these environment variables within the context; restore them afterwards."""
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
