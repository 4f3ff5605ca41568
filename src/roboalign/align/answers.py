"""The loss on answers, with logits computed at the answers alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from roboalign.mllm.encode import IGNORED


@contextmanager
def logits_at_answers(model: nn.Module, labels: Tensor) -> Iterator[None]:
    """Within this, `model(**inputs).logits` is [K, V]: one row for each of the K tokens that `labels` [B, L] asks for.

    The rest of the B x L x V logits, most of them for images and questions, is never computed. A hook on the output
    layer does it, so that the forward pass of any Hugging Face model, wrapped or not, stays as it is.
    """
    asked = labels[:, 1:] != IGNORED
    head: nn.Module = getattr(model, "module", model).get_output_embeddings()  # type: ignore[operator]
    hook = head.register_forward_pre_hook(lambda _, arguments: (arguments[0][:, :-1][asked],))
    try:
        yield
    finally:
        hook.remove()


def answer_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int) -> Tensor:
    """Cross-entropy summed over the answer tokens, over `num_items_in_batch`: those of the whole update."""
    targets = labels[:, 1:]
    asked = targets[targets != IGNORED]
    return nn.functional.cross_entropy(outputs.logits.float(), asked, reduction="sum") / num_items_in_batch


def conversation_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy over the answer tokens of one collated batch."""
    labels = batch["labels"]
    with logits_at_answers(model, labels):
        outputs = model(**{key: value for key, value in batch.items() if key != "labels"})
    return answer_loss(outputs, labels, torch.sum(labels[:, 1:] != IGNORED))
