"""GRPO in bfloat16 by autocast: a rollout casts each weight once, and the reference computes as the policy does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_grpo import CONFIG, fast, prompts, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from roboalign.align.grpo import trainer as grpo
from roboalign.align.grpo.config import RlConfig
from roboalign.align.grpo.train import train_grpo
from roboalign.core.files import read_jsonl


class Casts(TorchDispatchMode):
    """Counts how often one tensor is copied to another type."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.place, self.count = weight.data_ptr(), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() == self.place:
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_in_bfloat16_a_weight_is_cast_once_a_rollout_and_the_first_kl_is_nil(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mllm = tiny()
    casts = Casts(mllm.model.model.language_model.layers[0].mlp.down_proj.weight)
    lengths, genuine = [], grpo.roll_out

    def counted(*arguments: Any, **named: Any) -> Any:
        with casts:
            rolled = genuine(*arguments, **named)
        lengths.append(max(map(len, rolled.ids)))
        return rolled

    monkeypatch.setattr(grpo, "roll_out", counted)
    config = RlConfig(**{**CONFIG, "bf16": True, "updates": 4})
    train_grpo(mllm, fast(), prompts(), config, tmp_path)
    assert lengths[0] > 2  # passes that could have cast it again
    assert casts.count == 2  # rollouts
    assert read_jsonl(tmp_path / "metrics.jsonl")[0]["kl"] < 1e-9
