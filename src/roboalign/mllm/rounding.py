"""Round hidden states to the types used on disk and in serving, and count the bytes they take."""

from typing import Literal

import torch
from torch import Tensor

Dtype = Literal["float16", "bfloat16", "float8"]
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_LARGEST = 0.875  # of an e4m3 number, 448 = 0.875 x 2^9
EXPONENTS = (
    -100,
    119,
)  # of a scale: together with an 8-bit number's exponents they cover those of float32


def pack(states: Tensor, dtype: Dtype) -> tuple[Tensor, Tensor | None]:
    """Pack hidden states [..., W] into the stored numbers [..., W] and, for float8, exponents int8
    [...].

    float8 is e4m3 (4 bits of exponent, 3 of mantissa) with one power of two per token, the smallest
    that keeps the token's largest number in range, like the shared scales of the OCP Microscaling
    formats. A power of two costs no precision, and packing already rounded numbers changes nothing.
    """
    if dtype != "float8":
        return states.to(HALVES[dtype]), None
    states = states.float()
    mantissa, exponent = torch.frexp(states.abs().amax(dim=-1))
    exponent = torch.where(mantissa <= _LARGEST, exponent - 9, exponent - 8).clamp(*EXPONENTS)
    scaled = states * _power_of_two(-exponent)
    scaled[~torch.isfinite(scaled)] = (
        torch.nan
    )  # e4m3 has no infinity; torch turns infinity into its largest number
    return scaled.to(torch.float8_e4m3fn), exponent.to(torch.int8)


def unpack(numbers: Tensor, exponents: Tensor | None) -> Tensor:
    """Unpack what `pack` returned into hidden states [..., W] of the stored type; for float8, exact
    float32."""
    return numbers if exponents is None else numbers.float() * _power_of_two(exponents)


def _power_of_two(exponents: Tensor) -> Tensor:
    """Return 2 ** exponents, [...] -> [..., 1] float32, built from its bits: `exp2` is not exact on
    every device."""
    return ((exponents.int() + 127) << 23).view(torch.float32)[..., None]


def token_bytes(width: int, dtype: Dtype) -> int:
    """Return the bytes of one token's hidden state on disk."""
    return width + 1 if dtype == "float8" else 2 * width
