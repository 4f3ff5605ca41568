"""Tensors without numbers: what they would take, by hand, and what code that asks for a number is told."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from roboalign.mllm.fake import Meter, fake_weights, fixed_in_place, own_addresses


def numbers(*shape: int) -> torch.Tensor:
    with fake_weights():
        return torch.ones(*shape)


def test_bytes_now_and_at_the_peak() -> None:
    weight = numbers(1000)
    with Meter(0) as meter:
        meter.label("weights", [weight])
        two = weight + weight  # 4,000 bytes
        view = two[:10]
        del two  # its storage is still there
        assert meter.live == {"weights": 4000, "": 4000}
        del view
        three = torch.cat([weight, weight, weight])
    assert meter.total == 4000 + 12000
    assert meter.peak == {"weights": 4000, "": 12000} and meter.peak_total == 16000
    del three
    assert meter.total == 4000 and meter.peak_total == 16000
    meter.reset()
    assert meter.peak_total == 4000


def test_what_a_backward_pass_holds() -> None:
    """y = tanh(x w): kept are x w's result and the gradients of both: with x [8, 4] and w [4, 2]."""
    x, w = numbers(8, 4), nn.Parameter(numbers(4, 2))
    with Meter(0) as meter:
        meter.label("weights", [x, w])
        y = torch.tanh(x @ w)
        assert meter.live[""] == 4 * 8 * 2  # y, for its own derivative; x w has gone
        y.sum().backward()
        del y
    assert meter.live[""] == 4 * 4 * 2 == w.grad.numel() * 4  # type: ignore[union-attr]


def test_room_that_is_given_back_without_a_tensor_going() -> None:
    with Meter(0) as meter:
        room = torch.empty(500)
        assert isinstance(room, FakeTensor) and meter.total == 2000
        room.untyped_storage().resize_(0)
        assert meter.total == 0
        room.untyped_storage().resize_(2000)
    assert meter.total == 2000
    assert torch.empty(2).untyped_storage().resize_(4).nbytes() == 4  # behind it, all is as before


def test_a_number_that_is_asked_for() -> None:
    loss = numbers(3).sum()
    with Meter(7):
        assert float(loss) == 1.0 and torch.isfinite(loss)
        chosen = numbers(5, 9).argmax(-1)
        record = torch.zeros(5)
        record[torch.arange(5)] = numbers(5)
        kept = numbers(4, 2)[torch.tensor([True, False, True, True])]
    assert chosen.tolist() == [7] * 5 and record.tolist() == [0.0] * 5
    assert kept.shape == (3, 2)
    with pytest.raises(Exception, match="_local_scalar_dense"):
        float(loss)


def test_real_numbers_stay_real() -> None:
    with Meter(0) as meter:
        ids = torch.arange(6).reshape(2, 3)
        assert (ids * 2).tolist() == [[0, 2, 4], [6, 8, 10]] and torch.full((2,), 0.5).tolist() == [
            0.5,
            0.5,
        ]
        assert torch.empty(4, device="meta").is_meta
    assert meter.total == 0


def test_modules_stay_where_they_are() -> None:
    with fake_weights():
        layer = nn.Linear(2, 2)
    before = layer.weight
    with fixed_in_place():
        assert layer.to(torch.bfloat16) is layer and layer.weight is before
    assert nn.Linear(2, 2).to(torch.bfloat16).weight.dtype == torch.bfloat16


def test_addresses() -> None:
    first, second = numbers(2), numbers(2)
    with own_addresses():
        assert first.data_ptr() == first[1:].data_ptr() != second.data_ptr()
