import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roboalign.mllm.rounding import pack, token_bytes, unpack


def e4m3_grid() -> np.ndarray:
    """All finite numbers of e4m3 by their definition: 4 bits of exponent with bias 7, 3 of mantissa; no infinity."""
    numbers = [
        (m / 8) * 2.0**-6 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7)
        for e in range(16)
        for m in range(8)
        if (e, m) != (15, 7)
    ]
    return np.array(sorted({sign * number for number in numbers for sign in (1, -1)}))


def test_float8_by_hand():
    # 896 = 2 x 448 is the largest of the first row: exponent 1. 100 / 2 = 50 lies halfway between 48 and 52: even, 48.
    states = torch.tensor([[896.0, 100.0, -3.0], [0.0, 0.0, 0.0], [1.0, 0.3, -0.9]])
    numbers, exponents = pack(states, "float8")
    assert numbers.dtype == torch.float8_e4m3fn and exponents.dtype == torch.int8
    assert exponents[0] == 1 and exponents[2] == -8  # 1 = 256 x 2^-8, and 512 would not fit
    expected = [[896.0, 96.0, -3.0], [0.0, 0.0, 0.0], [1.0, 0.3125, -0.875]]
    assert unpack(numbers, exponents).tolist() == expected


rows = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40)


@given(rows, st.integers(-60, 60))
def test_float8_is_the_nearest_number_of_the_grid_that_the_power_of_two_scales(row, power):
    row = np.float32(row) * np.float32(2.0**power)
    numbers, exponents = pack(torch.from_numpy(row)[None], "float8")
    got = unpack(numbers, exponents)[0].double().numpy()
    scale = 2.0 ** int(exponents[0])
    grid = scale * e4m3_grid()
    distances = np.abs(row.astype(np.float64)[:, None] - grid)
    np.testing.assert_array_equal(np.abs(row - got), distances.min(axis=1))
    largest = np.abs(row).max()
    assert largest <= 448 * scale and (
        largest == 0 or int(exponents[0]) == -100 or largest > 224 * scale
    )


@given(rows, st.sampled_from(["float16", "bfloat16", "float8"]))
def test_rounding_twice_is_rounding_once(row, dtype):
    row = [value / 100 for value in row]  # within float16
    once = unpack(*pack(torch.tensor([row]), dtype))
    assert torch.equal(unpack(*pack(once, dtype)).float(), once.float())


def test_float8_keeps_all_but_a_thirtieth_beside_an_outlier():
    """Hidden states of real models have a few channels a thousand times as large as the others."""
    states = torch.randn(200, 512, generator=torch.Generator().manual_seed(0))
    states[:, 7] = 3000
    got = unpack(*pack(states, "float8"))
    error = (
        (got - states).norm() / states.norm(),
        (got - states)[:, :7].norm() / states[:, :7].norm(),
    )
    assert error[0] < 0.03 and error[1] < 0.04


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad):
    for dtype in ("float16", "bfloat16", "float8"):
        assert not torch.isfinite(unpack(*pack(torch.tensor([[1.0, bad]]), dtype))).all()


def test_bytes_of_a_token():
    for dtype, expected in (("float16", 96), ("bfloat16", 96), ("float8", 49)):
        assert token_bytes(48, dtype) == expected
        parts = [part for part in pack(torch.randn(5, 48), dtype) if part is not None]
        assert sum(part.numel() * part.element_size() for part in parts) == 5 * expected
