"""Compute log-probabilities of sampled completions, with gradients, computing each prompt once for
its whole group."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

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
    temperature: float,
    share_prompt: bool = True,
) -> TokenStatistics:
    """Statistics of P * S `completions`, padded right, S of them side by side for each of the P prompts.

    `prompts` are the model's arguments for the P prompts, padded left; `mask` is 1 on tokens.
    With `share_prompt` the group's prompt and image go through the model once, and its keys and values, with their
    gradients, are shared: the same function of the weights at a fraction of the work. Activation checkpointing turns
    the cache off; it needs `share_prompt=False`, which repeats the prompt for each completion.
    """
    forward = _shared_forward if share_prompt else _repeated_forward
    logits = forward(model, prompts, completions, mask)
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
    prompts = prompts | _positions(model, prompt_mask)
    prefill = model(**prompts, use_cache=True, logits_to_keep=1)
    first = prefill.logits.repeat_interleave(samples, dim=0)
    if completions.shape[1] == 1:
        return first
    cache = prefill.past_key_values
    cache.batch_repeat_interleave(samples)
    # Qwen's image tokens share positions; rope_deltas says how far the positions of the text after
    # them move back.
    start = prompt_mask.sum(1, keepdim=True)
    delta = getattr(base, "rope_deltas", None)
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
    model: nn.Module, prompts: dict[str, Tensor], completions: Completions, mask: Completions
) -> Logits:
    """The same logits from one pass over prompt and completion, the prompt and its image repeated."""
    rows = len(prompts["input_ids"])
    samples = len(completions) // rows
    repeated = repeat_prompts(prompts, samples)
    repeated["input_ids"] = torch.cat([repeated["input_ids"], completions], dim=1)
    repeated["attention_mask"] = torch.cat([repeated["attention_mask"], mask], dim=1)
    if "mm_token_type_ids" in repeated:
        repeated["mm_token_type_ids"] = torch.cat(
            [repeated["mm_token_type_ids"], torch.zeros_like(completions)], dim=1
        )
    repeated |= _positions(model, repeated["attention_mask"])
    return model(**repeated, use_cache=False, logits_to_keep=completions.shape[1] + 1).logits[
        :, :-1
    ]


def _positions(
    model: nn.Module, mask: Int[Tensor, "batch tokens"]
) -> dict[str, Int[Tensor, "batch tokens"]]:
    """The argument `position_ids` of rows padded left; {} for Qwen's families, which find theirs from the mask.

    Other families count from the left edge, padding included; `generate` counts from the first token, and so must this.
    """
    if hasattr(getattr(model, "module", model).base_model, "rope_deltas"):
        return {}
    return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def repeat_prompts(prompts: dict[str, Tensor], times: int) -> dict[str, Tensor]:
    """Repeat each prompt's part of every argument `times` times, side by side.

    Most arguments have as many rows a prompt for each of them. Qwen's `pixel_values` are the patches of all images in
    a row, as many as `image_grid_thw` [images, 3] says: two prompts' images may differ in size.
    Raises ValueError where rows cannot be assigned to prompts.
    """
    rows = len(prompts["input_ids"])
    grid = prompts.get("image_grid_thw")
    repeated = {}
    for name, value in prompts.items():
        if name == "pixel_values" and grid is not None:
            patches = grid.prod(dim=1).view(rows, -1).sum(dim=1).tolist()
            if sum(patches) != len(value):
                raise ValueError(
                    f"image_grid_thw says {sum(patches)} patches, pixel_values has {len(value)}"
                )
            parts = value.split(patches)
            repeated[name] = torch.cat([part for part in parts for _ in range(times)])
        elif len(value) % rows:
            raise ValueError(f"{name} has {len(value)} rows for {rows} prompts")
        else:
            parts = value.view(rows, len(value) // rows, *value.shape[1:])
            repeated[name] = parts.repeat_interleave(times, dim=0).flatten(0, 1)
    return repeated
