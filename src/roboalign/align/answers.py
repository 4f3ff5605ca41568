"""Compute the loss on answers, with logits only at the answer positions."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from roboalign.mllm.encode import IGNORED


@contextmanager
def logits_at_answers(
    model: nn.Module,
    labels: Int[Tensor, "batch tokens"],
    words_only: Bool[Tensor, "batch tokens"] | None = None,
    action_ids: Int[Tensor, " actions"] | None = None,
) -> Iterator[None]:
    """Within this context, `model(**inputs).logits` is [K, V]: one row for each of the K tokens
    that count in `labels`.

    The other logits, mostly for images and questions, are never computed. Hooks on the output layer
    do this, so the forward pass of any Hugging Face model, wrapped or not, is unchanged. For tokens
    whose `words_only` is true, the logits `action_ids` are -inf.
    """
    asked = labels[:, 1:] != IGNORED
    head: nn.Module = getattr(model, "module", model).get_output_embeddings()  # type: ignore[operator]
    hooks = [head.register_forward_pre_hook(lambda _, arguments: (arguments[0][:, :-1][asked],))]
    if words_only is not None and action_ids is not None:
        rows = words_only[:, 1:][asked]

        def hide(_: nn.Module, __: Any, logits: Tensor) -> Tensor:
            columns = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
            columns[action_ids] = True
            return logits.masked_fill(rows[:, None] & columns, float("-inf"))

        hooks.append(head.register_forward_hook(hide))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def answer_loss(
    outputs: Any, labels: Int[Tensor, "batch tokens"], num_items_in_batch: Tensor | int
) -> Float[Tensor, ""]:
    """Return the cross-entropy summed over the answer tokens, divided by `num_items_in_batch`, the
    answer tokens of the whole update."""
    targets = labels[:, 1:]
    asked = targets[targets != IGNORED]
    return (
        nn.functional.cross_entropy(outputs.logits.float(), asked, reduction="sum")
        / num_items_in_batch
    )


def conversation_loss(
    model: nn.Module, batch: dict[str, Tensor], action_ids: Int[Tensor, " actions"] | None = None
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy over the answer tokens of one batch of
    `collate_conversations`."""
    labels = batch["labels"]
    with logits_at_answers(model, labels, batch.get("words_only"), action_ids):
        outputs = model(
            **{key: value for key, value in batch.items() if key not in ("labels", "words_only")}
        )
    return answer_loss(outputs, labels, torch.sum(labels[:, 1:] != IGNORED))
