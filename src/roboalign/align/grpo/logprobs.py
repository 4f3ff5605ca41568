"""Compute log-probabilities of sampled completions, with gradients, computing each prompt once for
its whole group."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from roboalign.mllm.pixels import repeat_rows

Completions = Int[Tensor, "answers tokens"]
Logits = Float[Tensor, "answers tokens vocabulary"]


@dataclass(frozen=True)
class TokenStatistics:
    """Per completion token, float32. Values under padding mean nothing: mask them."""

    logp: Float[Tensor, "answers tokens"]
    """Log-probability of the token under softmax(logits / temperature)."""
    entropy: Float[Tensor, "answers tokens"]
    """Entropy of that distribution, nats; without gradient."""


def completion_statistics(
    model: nn.Module,
    prompts: dict[str, Tensor],
    completions: Completions,
    mask: Completions,
    *,
    images: Sequence[int],
    temperature: float,
    share_prompt: bool = True,
) -> TokenStatistics:
    """Statistics of P * S `completions`, padded right, S of them side by side for each of the P prompts.

    `prompts` are the model's arguments for the P prompts, padded left, with `images` images each; `mask` is 1 on
    tokens.
    With `share_prompt` the group's prompt and image go through the model once, and its keys and values, with their
    gradients, are shared: the same function of the weights at a fraction of the work. Activation checkpointing turns
    the cache off; it needs `share_prompt=False`, which repeats the prompt for each completion.
    """
    if share_prompt:
        logits = _shared_forward(model, prompts, completions, mask)
    else:
        logits = _repeated_forward(model, prompts, completions, mask, images)
    logp_all = torch.log_softmax(logits.float() / temperature, dim=-1)
    logp = logp_all.gather(-1, completions[..., None]).squeeze(-1)
    with torch.no_grad():
        entropy = -(logp_all.exp() * logp_all).sum(-1)
    return TokenStatistics(logp, entropy)


def _shared_forward(
    model: nn.Module, prompts: dict[str, Tensor], completions: Completions, mask: Completions
) -> Logits:
    """Logits that predict `completions`: one pass over the prompts, one over the completions."""
    prompt_mask = prompts["attention_mask"]
    samples = len(completions) // len(prompt_mask)
    base = getattr(model, "module", model).base_model
    placed = "image_grid_thw" in prompts  # Qwen, with an image: it finds its own positions
    prompts = prompts | _positions(model, prompts, prompt_mask)
    prefill = model(**prompts, use_cache=True, logits_to_keep=1)
    first = prefill.logits.repeat_interleave(samples, dim=0)
    if completions.shape[1] == 1:
        return first
    cache = prefill.past_key_values
    cache.batch_repeat_interleave(samples)
    # Qwen's image tokens share positions; rope_deltas says how far the positions of the text after
    # them move back.
    start = prompt_mask.sum(1, keepdim=True)
    delta = getattr(base, "rope_deltas", None) if placed else None  # else of an earlier batch
    start = start if delta is None else start + delta.to(start)
    steps = torch.arange(completions.shape[1] - 1, device=start.device)
    rest = model(
        input_ids=completions[:, :-1],
        attention_mask=torch.cat(
            [prompt_mask.repeat_interleave(samples, dim=0), mask[:, :-1]], dim=1
        ),
        position_ids=start.repeat_interleave(samples, dim=0) + steps,
        past_key_values=cache,
        use_cache=True,
    )
    return torch.cat([first, rest.logits], dim=1)


def _repeated_forward(
    model: nn.Module,
    prompts: dict[str, Tensor],
    completions: Completions,
    mask: Completions,
    images: Sequence[int],
) -> Logits:
    """The same logits from one pass over prompt and completion, the prompt and its images repeated."""
    repeated = repeat_rows(prompts, images, len(completions) // len(prompts["input_ids"]))
    repeated["input_ids"] = torch.cat([repeated["input_ids"], completions], dim=1)
    repeated["attention_mask"] = torch.cat([repeated["attention_mask"], mask], dim=1)
    if "mm_token_type_ids" in repeated:
        repeated["mm_token_type_ids"] = torch.cat(
            [repeated["mm_token_type_ids"], torch.zeros_like(completions)], dim=1
        )
    repeated |= _positions(model, repeated, repeated["attention_mask"])
    return model(**repeated, use_cache=False, logits_to_keep=completions.shape[1] + 1).logits[
        :, :-1
    ]


def _positions(
    model: nn.Module, arguments: dict[str, Tensor], mask: Int[Tensor, "batch tokens"]
) -> dict[str, Int[Tensor, "batch tokens"]]:
    """The argument `position_ids` of rows padded left; {} for Qwen's families, which find theirs from the mask.

    Other families count from the left edge, padding included; `generate` counts from the first token, and so must
    this. So does Qwen's without any image.
    """
    if "image_grid_thw" in arguments:
        return {}
    return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
