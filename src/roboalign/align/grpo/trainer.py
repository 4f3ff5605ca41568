"""Train by GRPO on action accuracy (paper, section 3.2), with EasyR1's arithmetic, on
`transformers.Trainer`.

A rollout samples a group of answers to each of its prompts; a few updates then use it.
docs/explanation/design.md explains why this is not TRL's GRPOTrainer; `benchmarks/grpo.py` times
both, and tests/align/test_align_grpo_trl.py compares their losses.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from roboalign.actions.fast import FastTokenizer
from roboalign.align.answers import conversation_loss
from roboalign.align.dataset import (
    action_ids,
    collate_conversations,
)
from roboalign.align.engines.fsdp2 import computes_in, plain_copy
from roboalign.align.engines.vllm.sampler import PROBES, Drift, VllmSampler, own_logp
from roboalign.align.grpo.config import RlConfig
from roboalign.align.grpo.logprobs import completion_statistics
from roboalign.align.grpo.loss import clipped_loss_tokens, kl_k3, mean_drift
from roboalign.align.grpo.reference import reference_model
from roboalign.align.grpo.rollout import (
    Batch,
    Rollout,
    batch_of,
    describe_groups,
    groups_of,
    prompt_of,
    roll_out,
    sample_records,
)
from roboalign.align.grpo.sums import UpdateSums, means_of
from roboalign.align.lora import adapters_off
from roboalign.align.schedule import Schedule
from roboalign.align.trainer import AlignTrainer
from roboalign.conversations.conversation import Conversation
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import append_jsonl
from roboalign.mllm.load import Mllm

LARGEST_DRIFT = 0.1
"""Mean difference in nats that rounding may cause in log-probabilities; 0.01 was measured for
bfloat16."""


class GrpoTrainer(AlignTrainer):
    """Train by GRPO. A micro-batch is `micro_batch_size` prompts with all their answers; groups are
    never split.

    Each process samples the prompts of its own micro-batches. No state of a rollout needs to be
    saved, since checkpoints fall between rollouts. The seed of a prompt depends on its place in the
    run, not on the number of processes.
    """

    gather: Callable[[list[Any]], list[Any]] = staticmethod(gather_object)
    """Concatenates the lists of all processes, on each of them."""

    def __init__(
        self,
        mllm: Mllm,
        fast: FastTokenizer | None,
        conversations: Sequence[Conversation],
        replay: Schedule | None,
        config: RlConfig,
        order: list[int],
        *named: Any,
        **rest: Any,
    ) -> None:
        self.mllm, self.fast, self.conversations, self.replay = mllm, fast, conversations, replay
        self.config, self.order = config, order
        self.batches: dict[int, tuple[Batch, Tensor | None]] = {}
        self.update_tokens: dict[int, float] = {}
        self.rollout_record: dict[str, Any] = {}
        self.sums = UpdateSums(config.clip_low, config.clip_high)
        super().__init__(*named, **rest)
        here = self.out_dir, self.args.device, self.args.process_index
        most = max(1, *(len(c.images) for c in conversations))
        self.sampler = VllmSampler(config.vllm, *here, images=most) if config.vllm else None
        # with adapters, the reference is the policy without them
        copied = config.kl and not config.lora
        self.reference = reference_model(mllm.model, self.accelerator) if copied else None
        self.loss_is_scaled_for_ga = True  # the loss below is already a mean over the whole update

    # Rollouts.

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        number = int(inputs["number"])
        if number not in self.batches:
            self.begin_rollout()
        began = time.monotonic()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.count(seconds_update=time.monotonic() - began)
        return loss

    def begin_rollout(self) -> None:
        """Sample, reward and score this process's prompts for all updates of the rollout that
        begins now."""
        config, first = self.config, self.state.global_step
        numbers = self.numbers_of(first, config.updates_per_rollout)
        micro = config.micro_batch_size
        places = [place for n in numbers for place in range(n * micro, (n + 1) * micro)]
        chosen = [self.conversations[self.order[place]] for place in places]
        if self.sampler is not None:
            self.publish(self.sampler)
        began = time.monotonic()
        with self.autocast():
            rollout = roll_out(
                self.mllm if self.sampler else self.whole_policy(),
                self.fast,
                chosen,
                samples=config.samples,
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                preset=config.reward,
                seed=[_seed(config.seed, place) for place in places],
                sampler=self.sampler,
            )
        if self.sampler is not None:
            self.sampler.rest()
        sampled = time.monotonic()
        batches = [batch_of(self.mllm, rollout, i * micro, micro) for i in range(len(numbers))]
        drift = None
        if self.sampler is not None:
            batches, drift = self.with_own_logp(self.sampler, batches)
        self.batches = {
            n: (batch, self.reference_logp(batch)) for n, batch in zip(numbers, batches)
        }
        self.update_tokens = {}
        for update in range(first, first + config.updates_per_rollout):
            local = sum(int(self.batches[n][0].mask.sum()) for n in self.numbers_of(update, 1))
            count = torch.tensor(local, dtype=torch.float64, device=self.args.device)
            self.update_tokens[update] = float(self.accelerator.reduce(count, reduction="sum"))
        self.account(rollout, places, sampled - began, time.monotonic() - sampled, drift)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the autocast of `bf16` for many forward passes: otherwise each sampled token would
        cast all weights again.

        A sharded model's copies are in bfloat16 already.
        """
        return nullcontext() if self.is_fsdp_enabled else self.accelerator.autocast()

    def publish(self, sampler: VllmSampler) -> None:
        """Give the servers the current policy. The first process writes it, and reloads the server
        if all processes share one."""
        began, first, update = (
            time.monotonic(),
            self.is_world_process_zero(),
            self.state.global_step,
        )
        asked = (
            [prompt_of(c) for c in self.conversations[:PROBES]],
            update,
            self.config.max_new_tokens,
        )
        policy = self.whole_policy(keep=first)
        if first:
            sampler.write(policy, update)
            if not sampler.own:
                sampler.load(policy, *asked)
        del policy  # a gathered copy must be freed before our own server takes its share of the GPU
        self.accelerator.wait_for_everyone()
        if sampler.own:
            sampler.load(self.mllm, *asked, share_prompt=not self.config.gradient_checkpointing)
            self.accelerator.wait_for_everyone()
        self.count(seconds_publishing=time.monotonic() - began)

    def whole_policy(self, keep: bool = True) -> Mllm:
        """Return the policy as a module whose forward passes wait for no other process: if it is
        sharded, a copy.

        Every process must call this; only those with `keep` get a copy.
        """
        if not self.is_fsdp_enabled:
            return self.mllm
        dtype, device = computes_in(self.accelerator), self.args.device
        return replace(
            self.mllm, model=plain_copy(self.mllm.model, dtype=dtype, device=device, keep=keep)
        )

    def with_own_logp(
        self, sampler: VllmSampler, batches: list[Batch]
    ) -> tuple[list[Batch], Drift]:
        """Return the batches with our log-probabilities, so that the first ratios are 1, and how
        far the server's differed."""
        share = not self.config.gradient_checkpointing
        pairs = [
            own_logp(self.mllm, batch, temperature=self.config.temperature, share_prompt=share)
            for batch in batches
        ]
        drift = Drift.over([one for _, one in pairs])
        sampler.check(
            drift, f"a rollout of {drift.tokens} tokens after update {self.state.global_step}"
        )
        return [batch for batch, _ in pairs], drift

    def numbers_of(self, update: int, updates: int) -> list[int]:
        """Return the micro-batches of this process in `updates` updates, starting with `update`."""
        per_update = self.args.gradient_accumulation_steps * self.args.world_size
        everyones = range(update * per_update, (update + updates) * per_update)
        return [n for n in everyones if n % self.args.world_size == self.args.process_index]

    def reference_logp(self, batch: Batch) -> Tensor | None:
        """Return the log-probabilities of the initial model (its copy, or the policy without
        adapters); None without KL."""
        if not self.config.kl:
            return None
        with (
            torch.no_grad(),
            self.autocast(),
            adapters_off(self.lora) if self.lora else nullcontext(),
        ):
            return self.statistics(self.reference or self.mllm.model, batch).logp

    def statistics(self, model: nn.Module, batch: Batch) -> Any:
        return completion_statistics(
            model,
            batch.prompts,
            batch.completions,
            batch.mask,
            images=batch.images,
            temperature=self.config.temperature,
            share_prompt=not self.config.gradient_checkpointing,
        )

    def account(
        self,
        rollout: Rollout,
        places: list[int],
        sampling: float,
        scoring: float,
        drift: Drift | None,
    ) -> None:
        """Update the counters, and record the rollout of all processes for metrics.jsonl and
        samples.jsonl."""
        self.count(
            prompts=len(places),
            answers=len(rollout.ids),
            generated_tokens=rollout.generation.n_decoded_tokens,
            prefill_tokens=rollout.generation.n_prefill_tokens,
            seconds_generation=sampling,
            seconds_reference=scoring,
            rollouts=int(self.is_world_process_zero()),
        )
        everyones = sorted(
            self.gather(list(zip(places, groups_of(rollout)))), key=lambda pair: pair[0]
        )
        chosen = [self.conversations[self.order[place]] for place, _ in everyones]
        groups = [group for _, group in everyones]
        self.rollout_record = describe_groups(groups, chosen)
        if drift is not None:
            found = Drift.over(self.gather([drift]))
            self.rollout_record |= {"sampler_drift": found.mean, "sampler_drift_max": found.largest}
        if self.is_world_process_zero():
            for record in sample_records(self.mllm, groups, chosen, self.config.logged_samples):
                append_jsonl(
                    self.out_dir / "samples.jsonl", {"step": self.state.global_step + 1, **record}
                )

    # The loss.

    def compute_loss(self, model: nn.Module, inputs: Any, *arguments: Any, **named: Any) -> Tensor:
        """Return this micro-batch's share of the loss; the shares of an update add up to the mean
        over all its answer tokens."""
        number, config = int(inputs["number"]), self.config
        batch, reference = self.batches[number]
        statistics = self.statistics(model, batch)
        if self.state.global_step % config.updates_per_rollout == 0:
            self.require_the_samplers_policy(statistics.logp, batch)
        tokens = clipped_loss_tokens(
            statistics.logp,
            batch.old_logp,
            batch.advantages,
            config.clip_low,
            config.clip_high,
            config.dual_clip,
        )
        kl = (
            kl_k3(statistics.logp, reference) if reference is not None else torch.zeros_like(tokens)
        )
        share = (
            self.args.world_size / self.update_tokens[self.state.global_step]
        )  # DDP averages over processes
        loss = ((tokens + config.kl * kl) * batch.mask).sum() * share
        replayed = self.replay_loss(model, number)
        self.sums.add(batch, statistics.logp.detach(), statistics.entropy, kl.detach(), replayed)
        return loss if replayed is None else loss + config.replay_weight * replayed

    def require_the_samplers_policy(self, logp: Tensor, batch: Batch) -> None:
        """Raise RoboAlignError if the trainer's log-probabilities differ from the sampler's at the
        first update of a rollout.

        The weights are still the same, so every ratio must be 1. Otherwise the rows mix up images
        or positions.
        """
        if self.config.lora and self.config.lora.dropout:
            return
        if (drift := mean_drift(logp, batch.old_logp, batch.mask)) > LARGEST_DRIFT:
            raise RoboAlignError(
                f"the trainer's log-probabilities are {drift:.2f} nats away from the sampler's on average, with the "
                "same weights: this model's inputs are not repeated correctly for its samples",
                where=f"stage {self.label}, update {self.state.global_step + 1}",
                fix="set rl.micro_batch_size=1, and report the model's class",
            )

    def replay_loss(self, model: nn.Module, number: int) -> Tensor | None:
        """Return the SFT loss on this micro-batch's share of the replayed conversations; None
        without replay."""
        if self.replay is None:
            return None
        per_update = self.args.gradient_accumulation_steps * self.args.world_size
        size = self.config.replay_batch // per_update
        chosen = [self.replay[number * size + i] for i in range(size)]
        batch = collate_conversations(self.mllm, chosen, neutral=self.config.neutral_reasoning)
        batch = {key: value.to(self.args.device) for key, value in batch.items()}
        return (
            conversation_loss(model, batch, action_ids(self.mllm))
            / self.args.gradient_accumulation_steps
        )

    # Logging.

    def step_metrics(self) -> dict[str, Any]:
        """Return statistics of the updates since the last record and of the rollout, over all
        processes."""
        taken = self.gather([self.sums.take()])
        return {**means_of(taken, self.args.gradient_accumulation_steps), **self.rollout_record}


def _seed(seed: int, place: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {place}".encode()).digest()[:6])
