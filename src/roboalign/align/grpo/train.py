"""Run one GRPO training, from its prompts to the written model."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraModel
from torch import Tensor
from torch.utils.data import Dataset

from roboalign.actions.fast import FastTokenizer
from roboalign.align.checkpoints import WeightsDigest, weights_fingerprint
from roboalign.align.dataset import (
    Conversations,
    digest_of,
    sample_order,
)
from roboalign.align.engines.vllm.sampler import serving
from roboalign.align.grpo.config import RlConfig
from roboalign.align.grpo.rollout import (
    check_prompts,
)
from roboalign.align.grpo.trainer import GrpoTrainer
from roboalign.align.schedule import Schedule, accumulation_of
from roboalign.align.train_config import training_arguments
from roboalign.conversations.conversation import Conversation
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import write_json
from roboalign.mllm.load import Mllm


class Numbers(Dataset):
    """Numbers 0, 1, 2, ... of the micro-batches. Their contents are sampled when their rollout
    begins."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index


def train_grpo(
    mllm: Mllm,
    fast: FastTokenizer | None,
    prompts: Sequence[Conversation],
    config: RlConfig,
    out_dir: str | Path,
    *,
    replay: Sequence[Conversation] = (),
    label: str = "rl",
) -> dict[str, Any]:
    """Refine `mllm` in place by the accuracy of the actions or words in its answers, and write it
    to `out_dir/model`.

    `prompts` is the rl split of a mixture: one action question each, with the FAST ids of its
    target. For the rewards `answer` and `trace`, they are questions in think mode whose first turn
    has the expected answer, and `fast` may be None. `replay` are SFT conversations for
    `config.replay_weight`. `out_dir` also gets `metrics.jsonl`, `samples.jsonl`, `ledger.json` and,
    during training, `checkpoints/`. A killed run resumes from the last one and ends with the same
    weights.

    Returns the ledger: updates, rollouts, unique prompts, answers, tokens generated and prefilled,
    seconds by part.

    Raises RoboAlignError in the same cases as train_sft, and if a prompt has no target for the
    reward or the model lacks the action tokens to answer.
    """
    out_dir = Path(out_dir)
    check_prompts(mllm, prompts, config.reward, str(out_dir))
    if bool(replay) != bool(config.replay_weight):
        raise RoboAlignError(
            "replay_weight and replayed conversations go together",
            where="replay_weight",
            fix="give both or neither.",
        )
    if config.threads:
        torch.set_num_threads(config.threads)
    rollouts = math.ceil(len(prompts) * config.epochs / config.prompts_per_rollout)
    updates = config.updates or rollouts * config.updates_per_rollout
    # With equal lengths the order is plain random permutations.
    order = sample_order([0] * len(prompts), config.prompts_per_update, updates, config.seed)
    lora = config.choose_trained(mllm)
    trainer = build_grpo_trainer(
        mllm, fast, prompts, replay, config, out_dir, order, updates, label, lora
    )
    with serving(trainer.sampler, leads=trainer.is_world_process_zero()):
        totals = trainer.run()
    trainer.save_final(mllm.processor, out_dir / "model")
    ledger = {"updates": updates, "unique_prompts": len(set(order)), **totals}
    if trainer.is_world_process_zero():
        write_json(out_dir / "ledger.json", ledger)
    return ledger


def build_grpo_trainer(
    mllm: Mllm,
    fast: FastTokenizer | None,
    prompts: Sequence[Conversation],
    replay: Sequence[Conversation],
    config: RlConfig,
    out_dir: Path,
    order: list[int],
    updates: int,
    label: str,
    lora: LoraModel | None = None,
    digest: WeightsDigest = weights_fingerprint,
) -> GrpoTrainer:
    """Build the trainer of `train_grpo`; `order` lists the prompts of all updates in sequence.

    `digest` identifies the initial weights: checkpoints of other weights are not resumed.
    """
    arguments = training_arguments(
        config,
        out_dir,
        updates=updates,
        micro_batch=1,
        accumulation=1,
        schedule=config.schedule,
        warmup_ratio=0.0,
        save_every=config.save_every * config.updates_per_rollout,
        on_cpu=mllm.device.type == "cpu",
    )
    per_update = config.prompts_per_update // config.micro_batch_size
    arguments.gradient_accumulation_steps = accumulation_of(
        config.prompts_per_update, config.micro_batch_size, arguments.world_size, unit="prompts"
    )
    replayed = None
    if replay:
        accumulation_of(config.replay_batch, 1, per_update, unit="conversations")
        size = config.replay_batch
        replayed = Schedule(
            Conversations(mllm, replay), sample_order([0] * len(replay), size, updates, config.seed)
        )
    return GrpoTrainer(
        mllm,
        fast,
        prompts,
        replayed,
        config,
        order,
        mllm.model,
        arguments,
        Numbers(updates * per_update),
        _number,
        label=label,
        out_dir=out_dir,
        fingerprint={**config.fingerprint(), "conversations": digest_of(prompts, replay)},
        lora=lora,
        digest=digest,
    )


def _number(batch: list[int]) -> dict[str, Tensor]:
    return {"number": torch.tensor(batch[0])}
