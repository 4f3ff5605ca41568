"""Build the reference model of GRPO's KL term: the policy as it was before the first update."""

import copy
from typing import Any

import torch
from accelerate import Accelerator

from roboalign.align.engines.fsdp2 import computes_in, plain_copy, shard


def reference_model(policy: Any, accelerator: Accelerator) -> Any:
    """Return a frozen copy of `policy` in eval mode, sharded by the same plan if `accelerator`
    shards the policy.

    Call it before the policy is sharded and trained. A sharded copy is stored in the type
    that it computes in. It is built in CPU memory, from which the devices take their shards layer
    by layer.
    """
    if not accelerator.is_fsdp2:
        return copy.deepcopy(policy).eval().requires_grad_(False)
    whole = plain_copy(policy, dtype=computes_in(accelerator), device=torch.device("cpu"))
    split = shard(accelerator, whole)
    # the embeddings too, because no backward pass will free them
    split.set_reshard_after_forward(True)
    return split
