"""The types to which hidden states are rounded, on disk and in serving alike, and the bytes that they take."""

from typing import Literal

import torch
from torch import Tensor

Dtype = Literal["float16", "bfloat16", "float8"]
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_LARGEST = 0.875  # of an e4m3 number, 448 = 0.875 x 2^9
EXPONENTS = (
    -100,
    119,
)  # of a scale: with what an 8-bit number adds they are those of float32 numbers


def pack(states: Tensor, dtype: Dtype) -> tuple[Tensor, Tensor | None]:
    """Hidden states [..., W] -> their numbers [..., W] as they are stored, and for float8 exponents int8 [...].

    float8 is e4m3 (4 bits of exponent, 3 of mantissa) with a power of two for each token, the least that keeps its
    largest number in range, as the shared scales of the OCP Microscaling formats are. A power of two costs no
    precision, and what has been rounded once is packed as it is.
    """
    if dtype != "float8":
        return states.to(HALVES[dtype]), None
    states = states.float()
    mantissa, exponent = torch.frexp(states.abs().amax(dim=-1))
    exponent = torch.where(mantissa <= _LARGEST, exponent - 9, exponent - 8).clamp(*EXPONENTS)
    scaled = states * _power_of_two(-exponent)
    scaled[~torch.isfinite(scaled)] = (
        torch.nan
    )  # e4m3 has no infinity, and torch makes the largest number of it
    return scaled.to(torch.float8_e4m3fn), exponent.to(torch.int8)


def unpack(numbers: Tensor, exponents: Tensor | None) -> Tensor:
    """What `pack` gave -> hidden states [..., W]: of the stored type, for float8 of float32, in which it is exact."""
    return numbers if exponents is None else numbers.float() * _power_of_two(exponents)


def _power_of_two(exponents: Tensor) -> Tensor:
    """[...] -> [..., 1] float32, by its bits: `exp2` is not exact on every device."""
    return ((exponents.int() + 127) << 23).view(torch.float32)[..., None]


def token_bytes(width: int, dtype: Dtype) -> int:
    """Bytes of one token's hidden state on disk."""
    return width + 1 if dtype == "float8" else 2 * width
