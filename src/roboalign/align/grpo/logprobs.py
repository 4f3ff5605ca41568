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
    """Statistics per completion token, float32. Values under padding are meaningless: mask them."""

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
    """Return statistics of P * S `completions`, padded right; the S completions of each of the P
    prompts are adjacent.

    `prompts` are the model's arguments for the P prompts, padded left, with `images` images each;
    `mask` is 1 on tokens. With `share_prompt`, a group's prompt and images go through the model
    once, and its keys and values are shared with their gradients: the same function of the weights
    for a fraction of the work. Activation checkpointing disables the cache, so it needs
    `share_prompt=False`, which repeats the prompt for each completion.
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
    """Return the logits that predict `completions`: one pass over the prompts, one over the
    completions."""
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
    # Qwen's image tokens share positions; rope_deltas is how far the positions of the text after
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
    """Return the same logits from one pass over prompt and completion, with the prompt and its
    images repeated."""
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
    """Return the argument `position_ids` of rows padded left; {} for Qwen's families with images,
    which derive theirs from the mask.

    Other families count from the left edge, including padding; `generate` counts from the first
    token, and so must this. The same holds for Qwen's families without images.
    """
    if "image_grid_thw" in arguments:
        return {}
    return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
