"""Find where a sampled answer ends."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from roboalign.mllm.encode import end_ids
from roboalign.mllm.load import Mllm


class Ending:
    """Find which rows of sampled ids end, with an end token or with text that contains `stop`.

    The stop text may span several tokens and merge with what follows it, so text is compared
    instead of ids. Only rows whose last token can complete it are decoded.
    """

    def __init__(self, mllm: Mllm, stop: str | None) -> None:
        self.tokenizer, self.stop = mllm.tokenizer, stop
        self.ends = torch.tensor(sorted(end_ids(mllm)))
        if stop and ("completes", stop) not in mllm.cache:
            pieces = mllm.tokenizer.convert_ids_to_tokens(list(range(len(mllm.tokenizer))))
            mllm.cache["completes", stop] = torch.tensor(
                [may_complete(one, stop) for one in pieces]
            )
        self.completes = mllm.cache["completes", stop] if stop else None

    def __call__(self, ids: Int[Tensor, "rows tokens"]) -> Bool[Tensor, " rows"]:
        """Return which rows of sampled ids, on the CPU, end with their last one."""
        ended = torch.isin(ids[:, -1], self.ends)
        if self.stop and self.completes is not None:
            for row in (self.completes[ids[:, -1]] & ~ended).nonzero()[:, 0].tolist():
                # A token is at least one byte, so the stop text has no more tokens than bytes.
                ended[row] = self.stop in self.tokenizer.decode(
                    ids[row, -len(self.stop.encode()) :]
                )
        return ended


def may_complete(piece: str, stop: str) -> bool:
    """Return whether a token, as its tokenizer spells it, may be the last one of the stop text.

    An action token ends with the sign that ends `</answer>`, and cannot be its end: without this,
    all rows would be decoded at every action token. Vocabularies spell the signs of ASCII as they
    are, or as bytes (`<0x3E>`). For other stop texts the last sign decides.
    """
    if stop[-1] not in piece or not stop.isascii() or not stop.isprintable() or " " in stop:
        return stop[-1] in piece
    starts = [piece[: end + 1] for end, sign in enumerate(piece) if sign == stop[-1]]
    spelled_as_byte = piece == f"<0x{ord(stop[-1]):02X}>"
    return spelled_as_byte or any(stop.endswith(one) or one.endswith(stop) for one in starts)
