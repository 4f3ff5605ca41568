"""Updates of an MLLM whose own tokens move the robot: GRPO on all tokens that it chose, rewarded by
success."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from peft import LoraModel
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from roboalign.align.grpo.config import RlConfig
from roboalign.align.grpo.logprobs import TokenStatistics, completion_statistics
from roboalign.align.grpo.loss import clipped_loss_tokens, group_advantages, kl_k3
from roboalign.align.grpo.rollout import Batch, answer_batch
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.encode import Encoded
from roboalign.mllm.load import save_mllm
from roboalign.online.config import OnlineConfig
from roboalign.online.groups import Groups
from roboalign.online.improve import MOST_DRIFT
from roboalign.online.loss import CLIP_HIGH, CLIP_LOW, DUAL_CLIP
from roboalign.online.sums import Means
from roboalign.online.token_explorer import kept_prompt, load_trained, trained_weights
from roboalign.vla.token_policy import TokenPolicy

TUNED = (
    "learning_rate",
    "weight_decay",
    "max_grad_norm",
    "freeze_vision",
    "bf16",
    "lora",
    "temperature",
    "micro_batch_size",
)
"""The settings of `rl` that this training has too."""


@dataclass(frozen=True)
class TokenDecision:
    """What the MLLM was asked at one moment of a rollout, and what it wrote."""

    prompt: Encoded
    ids: list[int]
    chosen: list[bool]
    """Which of them the model chose; those that closed a reasoning are not learned from."""
    logprob: float
    """Of the chosen ones, as the simulators' side computed it; NaN where some were dropped."""
    advantage: float


@dataclass
class TrainedWeights:
    """The weights of a model that are not frozen, as a part of a checkpoint."""

    model: Any

    def state_dict(self) -> dict[str, Tensor]:
        """Return them by name."""
        return trained_weights(self.model)

    def load_state_dict(self, weights: Mapping[str, Tensor]) -> None:
        """Write them into the model."""
        load_trained(self.model, weights)


@dataclass
class TokenLearner:
    """The MLLM of a token policy: all its weights, or adapters."""

    policy: TokenPolicy
    config: OnlineConfig
    tuned: RlConfig
    lora: LoraModel | None
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, policy: TokenPolicy, config: OnlineConfig, tuned: RlConfig) -> "TokenLearner":
        """Return a learner for this policy. Freezes what `tuned` does not train."""
        lora = tuned.choose_trained(policy.mllm)
        trained = [p for p in policy.mllm.model.parameters() if p.requires_grad]
        groups = [  # norms and biases do not decay
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": tuned.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=tuned.learning_rate, betas=(0.9, 0.999))
        return cls(policy, config, tuned, lora, optimizer)

    @property
    def device(self) -> torch.device:
        return self.policy.mllm.device

    def judge(self, rewards: Float[Tensor, " rollouts"]) -> Float[Tensor, " rollouts"]:
        """Return GRPO's advantages of one group."""
        return group_advantages(rewards, len(rewards))

    def weights(self) -> dict[str, Tensor]:
        """Return what is trained."""
        return trained_weights(self.policy.mllm.model)

    def parts(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {"model": TrainedWeights(self.policy.mllm.model), "optimizer": self.optimizer}

    def settings(self) -> list[Any]:
        """Return how the tokens are drawn and learned."""
        own = self.tuned.model_dump(mode="json", include=set(TUNED))
        return [own, self.policy.config.model_dump(), self.policy.view.model_dump()]

    def learn(self, groups: Groups, generator: torch.Generator) -> dict[str, float]:
        """Learn `epochs` times from every decision. Dropout is off.

        Raises RoboAlignError if a loss or gradient is not finite, or if the rollouts were not this
        policy's.
        """
        decisions = self._decisions(groups)
        order = torch.randperm(len(decisions), generator=generator)
        batches = [
            [[decisions[row] for row in part] for part in batch.split(self.tuned.micro_batch_size)]
            for batch in order.split(self.config.batch_size)
        ]
        self.policy.mllm.model.eval()
        # In the same parts as the updates, so that the first ratios are exactly 1.
        with torch.no_grad():
            before = [[self._statistics(part)[1].logp for part in batch] for batch in batches]
        drift = _drift(batches, before)
        means = Means()
        with _recomputing(self.policy.mllm.model, on=self.tuned.gradient_checkpointing):
            for _ in range(self.config.epochs):
                for batch, old in zip(batches, before, strict=True):
                    self._step(batch, old, means)
        return {"decisions": len(decisions), "drift": drift, **means.take()}

    def _decisions(self, groups: Groups) -> list[TokenDecision]:
        looks = [look for one in groups.trajectories for look in one.looks]
        return [
            TokenDecision(
                kept_prompt(self.policy, look),
                look["ids"].tolist(),
                look["chosen"].tolist(),
                float(look["logprob"]),
                advantage,
            )
            for look, advantage in zip(looks, groups.of_decisions().tolist(), strict=True)
        ]

    def _statistics(self, part: Sequence[TokenDecision]) -> tuple[Batch, TokenStatistics]:
        batch = answer_batch(
            self.policy.mllm,
            [one.prompt for one in part],
            [one.ids for one in part],
            [[0.0] * len(one.ids) for one in part],
            torch.tensor([one.advantage for one in part]),
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.tuned.bf16):
            return batch, completion_statistics(
                self.policy.mllm.model,
                batch.prompts,
                batch.completions,
                batch.mask,
                images=batch.images,
                temperature=self.tuned.temperature,
                share_prompt=False,
            )

    def _step(
        self, parts: Sequence[Sequence[TokenDecision]], old: Sequence[Tensor], means: Means
    ) -> None:
        """Perform one optimizer step: the mean over all chosen tokens of a batch."""
        total = sum(sum(one.chosen) for part in parts for one in part)
        for part, before in zip(parts, old, strict=True):
            batch, now = self._statistics(part)
            chosen = _chosen(part, before)
            tokens = clipped_loss_tokens(
                now.logp, before, batch.advantages, CLIP_LOW, CLIP_HIGH, DUAL_CLIP
            )
            loss = (tokens * chosen).sum() / max(total, 1)
            loss.backward()
            with torch.no_grad():
                ratio = (now.logp - before).exp()
                limit = torch.where(batch.advantages > 0, CLIP_HIGH, CLIP_LOW)[:, None]
                off = (ratio - 1) * batch.advantages.sign()[:, None] > limit
                found = {
                    "loss": tokens,
                    "ratio": ratio,
                    "ratio_off": (ratio - 1).abs(),
                    "clipped": off.float(),
                    "kl": kl_k3(now.logp, before),
                    "entropy": now.entropy,
                }
            if (count := int(chosen.sum())) > 0:
                means.add(count, **{name: one[chosen].mean().item() for name, one in found.items()})
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(trained, self.tuned.max_grad_norm).item()
        if not (math.isfinite(norm) and means.finite()):
            raise RoboAlignError(
                f"a loss or gradient is not finite (norm {norm})",
                where="online",
                fix="lower rl.learning_rate",
            )
        means.add(1.0, grad_norm=norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, folder: Path) -> None:
        """Write the MLLM to `model` next to the policy, adapters merged, and the policy."""
        mllm = self.policy.mllm
        if self.lora is not None:
            self.lora.merge_and_unload()
            self.lora = None
        mllm.model.requires_grad_(True)
        mllm.folder = folder.parent / "model"
        save_mllm(mllm, mllm.folder)
        self.policy.save(folder)


@contextmanager
def _recomputing(model: Any, *, on: bool) -> Iterator[None]:
    """Recompute the layers' activations in the backward pass if this is `on`.

    Layers do so only while they train, and a training model would drop out. So only the layers'
    own flag is set; what is inside them stays as it is.
    """
    if not on:
        yield
        return
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers = [one for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
        model.gradient_checkpointing_disable()


def _chosen(
    part: Sequence[TokenDecision], logp: Float[Tensor, "answers tokens"]
) -> Bool[Tensor, "answers tokens"]:
    """Return which tokens of padded answers the model chose."""
    width = logp.shape[1]
    rows = [one.chosen + [False] * (width - len(one.chosen)) for one in part]
    return torch.tensor(rows, device=logp.device)


def _drift(
    batches: Sequence[Sequence[Sequence[TokenDecision]]], before: Sequence[Sequence[Tensor]]
) -> float:
    """Return the mean difference, in nats a token, between the log-probabilities of the rollouts
    and of the policy that learns from them. Raises RoboAlignError if it is no rounding."""
    off = tokens = 0.0
    for batch, logps in zip(batches, before, strict=True):
        for part, logp in zip(batch, logps, strict=True):
            own = (logp * _chosen(part, logp)).sum(dim=1)
            known = torch.tensor([one.logprob for one in part], device=own.device)
            compared = known.isfinite()
            off += float((own - known)[compared].abs().sum())
            tokens += sum(sum(one.chosen) for one, use in zip(part, compared.tolist()) if use)
    drift = off / max(tokens, 1)
    if not drift <= MOST_DRIFT:
        raise RoboAlignError(
            f"the rollouts' log-probabilities differ by {drift:.3g} nats a token from those of the "
            "policy that learns from them",
            where="online",
            fix="report it: rollouts and updates must use the same weights and prompts",
        )
    return drift
