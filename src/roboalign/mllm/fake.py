"""Run models on fake tensors, which have shapes and types but no numbers, and count the memory they
would take.

PyTorch's fake tensors run code at any size, even on a machine that could not hold the data. Here
the weights and everything computed from them are fake. Token ids, masks and image sizes stay real,
because code branches on them.
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
    """Return a context in which every new tensor is fake. Outside it, results computed from a fake
    tensor are still fake."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@contextmanager
def fixed_in_place() -> Iterator[None]:
    """Make `module.to(...)` a no-op within the context: a fake weight that others refer to cannot
    be replaced.

    Also make a deep copy of a fake tensor a single new fake tensor: torch's own would copy its
    whole class.
    """
    stay = _replaced(nn.Module, "to", lambda module, *_, **__: module)
    with stay, _replaced(FakeTensor, "__deepcopy__", _copied):
        yield


@contextmanager
def _replaced(owner: type, name: str, value: Any) -> Iterator[None]:
    """Replace attribute `name` of PyTorch's class `owner` within the context, as fake tensors need
    it."""
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
    memo[id(tensor)] = copy  # keeps a table that two layers share as one
    return copy


def own_addresses() -> AbstractContextManager[Any]:
    """Give each fake tensor its own address within the context; accelerate uses it to find the
    sharded form of a weight."""
    return _replaced(FakeTensor, "data_ptr", lambda tensor: id(tensor.untyped_storage()))


class Meter(TorchDispatchMode):
    """Count the bytes of all fake tensors while code runs, and answer when code asks for a fake
    value.

    A number read from a fake tensor is 1 and a truth value is true, so a loss is finite and a norm
    is not NaN. A token drawn from fake probabilities is `token`, and real. Memory that kernels use
    internally, or that an allocator loses between tensors, is not counted.
    """

    def __init__(self, token: int) -> None:
        super().__init__()
        self.token = token
        self.live: Counter[str] = Counter()
        """Current bytes, by label."""
        self.peak: Counter[str] = Counter()
        """Bytes by label at the moment when their sum was largest since `reset`."""
        self.sizes: dict[int, tuple[str, int]] = {}
        self.total = self.peak_total = 0

    def label(self, name: str, tensors: Iterable[Tensor]) -> None:
        """Count these tensors under `name`; unlabeled tensors count under `""`."""
        for tensor in tensors:
            # for a sharded tensor, this process's part
            tensor = getattr(tensor, "_local_tensor", tensor)
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
            """Track a storage that is resized: FSDP2 frees gathered weights, and makes room for
            them again, this way."""
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
            )  # fake tensors treat cpu:0 and cpu as different devices
        if func in _READ and isinstance(args[0], FakeTensor):
            return True if args[0].dtype == torch.bool or func is ATEN.is_nonzero.default else 1.0
        if func in CHOSEN and isinstance(args[0], FakeTensor):
            return torch.full(func(*args, **kwargs).shape, self.token)
        if (
            func is ATEN.index_put_.default
            and isinstance(args[2], FakeTensor)
            and not isinstance(args[0], FakeTensor)
        ):
            return args[0]  # a record of unknown numbers
        if func in INDEXING:
            args = (args[0], _as_places(args[1]), *args[2:])
        # Room for unknown numbers, such as gathered weights.
        blank = (
            func in BLANK and (kwargs.get("dtype") or torch.get_default_dtype()).is_floating_point
        )
        blank &= kwargs.get("device") != torch.device("meta")  # takes no memory
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
    """Return real masks as the indices they mark, because the shape of a fake result depends on how
    many there are."""
    places: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            places += index.nonzero().unbind(1)
        else:
            places.append(index)
    return places
