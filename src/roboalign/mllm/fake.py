"""Models without numbers: tensors that have shapes and types alone, and how much memory they would take.

PyTorch's fake tensors run any code at any size on a machine that could hold none of it. Here the weights are fake, and
with them all that is computed from them; token ids, masks and image sizes stay real, since code branches on them.
"""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ATEN = torch.ops.aten
INDEXING = frozenset({ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default})
_READ = frozenset({ATEN._local_scalar_dense.default, ATEN.is_nonzero.default})
BLANK = frozenset({ATEN.empty.memory_format, ATEN.empty_strided.default})
CHOSEN = frozenset({ATEN.searchsorted.Tensor, ATEN.argmax.default})


@cache
def fake_weights() -> FakeTensorMode:
    """The context in which every new tensor is fake. Outside of it, what is made of a fake tensor is fake."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@contextmanager
def fixed_in_place() -> Iterator[None]:
    """Within, `module.to(...)` leaves every module as it is: a fake weight that others refer to cannot be replaced.

    And a deep copy of a fake tensor is one more of the same kind: torch's own would copy the whole kind.
    """
    stay = _replaced(nn.Module, "to", lambda module, *_, **__: module)
    with stay, _replaced(FakeTensor, "__deepcopy__", _copied):
        yield


@contextmanager
def _replaced(owner: type, name: str, value: Any) -> Iterator[None]:
    """Within, PyTorch's class `owner` has another attribute `name`, as fake tensors need it."""
    own, before = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def _copied(tensor: FakeTensor, memo: dict[int, Any]) -> Tensor:
    copy = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        copy = nn.Parameter(copy, requires_grad=tensor.requires_grad)
    memo[id(tensor)] = copy  # of a table that two layers share, one
    return copy


def own_addresses() -> AbstractContextManager[Any]:
    """Within, each fake tensor tells an address of its own, by which accelerate finds the split form of a weight."""
    return _replaced(FakeTensor, "data_ptr", lambda tensor: id(tensor.untyped_storage()))


class Meter(TorchDispatchMode):
    """Counts the bytes of all fake tensors while code runs, and answers where a value of theirs is asked for.

    A number that is read out of a fake tensor is 1, a truth value is true: a loss is finite, a norm is not NaN. A token
    that is drawn from fake probabilities is `token`, and real. What kernels use inside, and what an allocator loses
    between tensors, is not seen.
    """

    def __init__(self, token: int) -> None:
        super().__init__()
        self.token = token
        self.live: Counter[str] = Counter()
        """Bytes now, by label."""
        self.peak: Counter[str] = Counter()
        """Bytes by label when their sum was largest since `reset`."""
        self.sizes: dict[int, tuple[str, int]] = {}
        self.total = self.peak_total = 0

    def label(self, name: str, tensors: Iterable[Tensor]) -> None:
        """Count these tensors under `name`; what is not labelled is `""`."""
        for tensor in tensors:
            tensor = getattr(tensor, "_local_tensor", tensor)  # of a split one, this process's part
            if not isinstance(tensor, FakeTensor):
                continue
            key = id(tensor.untyped_storage())
            if key in self.sizes:
                old, size = self.sizes[key]
                self.live[old] -= size
                self.live[name] += size
                self.sizes[key] = name, size
            else:
                self._add(tensor, name)

    def reset(self) -> None:
        """Forget the peak so far."""
        self.peak, self.peak_total = Counter(self.live), self.total

    def __enter__(self) -> Self:
        resize = torch.UntypedStorage.resize_

        def resized(storage: torch.UntypedStorage, size: int) -> Any:
            """FSDP2 frees gathered weights, and makes room for them again, so."""
            if id(storage) in self.sizes:
                self._resize(id(storage), size)
            return resize(storage, size)

        self.patched = _replaced(torch.UntypedStorage, "resize_", resized)
        self.patched.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self.patched.__exit__(*error)
        super().__exit__(*error)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device(
                kwargs["device"].type
            )  # a fake tensor tells cpu:0 from cpu
        if func in _READ and isinstance(args[0], FakeTensor):
            return True if args[0].dtype == torch.bool or func is ATEN.is_nonzero.default else 1.0
        if func in CHOSEN and isinstance(args[0], FakeTensor):
            return torch.full(func(*args, **kwargs).shape, self.token)
        if (
            func is ATEN.index_put_.default
            and isinstance(args[2], FakeTensor)
            and not isinstance(args[0], FakeTensor)
        ):
            return args[0]  # a record of numbers that nobody knows
        if func in INDEXING:
            args = (args[0], _as_places(args[1]), *args[2:])
        # Room for numbers, such as gathered weights, which nobody knows.
        blank = (
            func in BLANK and (kwargs.get("dtype") or torch.get_default_dtype()).is_floating_point
        )
        blank &= kwargs.get("device") != torch.device("meta")  # no room
        with fake_weights() if blank else nullcontext():
            result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, FakeTensor) and id(leaf.untyped_storage()) not in self.sizes:
                self._add(leaf, "")
        return result

    def _add(self, tensor: Tensor, name: str) -> None:
        storage = tensor.untyped_storage()
        self.sizes[id(storage)] = name, 0
        self._resize(id(storage), storage.nbytes())
        weakref.finalize(storage, self._gone, id(storage))

    def _resize(self, key: int, size: int) -> None:
        name, before = self.sizes[key]
        self.sizes[key] = name, size
        self.live[name] += size - before
        self.total += size - before
        if self.total > self.peak_total:
            self.reset()

    def _gone(self, key: int) -> None:
        self._resize(key, 0)
        del self.sizes[key]


def _as_places(indices: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Real masks as the places they mark: how many those are, a fake tensor's shape depends on."""
    places: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            places += index.nonzero().unbind(1)
        else:
            places.append(index)
    return places
