"""A stand-in for a GPU on machines that have none: tensors that lie *there*, and what waits for them.

A tensor that lies there says that its device is ``meta`` and keeps its values here. What a GPU refuses is an
error, such as an operation on tensors of both places; what makes the processor wait until the GPU has done
all that it was given is noted, as ``torch.cuda.set_sync_debug_mode`` does: numbers that are read, copies to
either side that are not ``non_blocking``, and results whose size depends on values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

THERE = torch.device("meta")
aten = torch.ops.aten
SIZE_DEPENDS = {
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.bincount.default: "bincount",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.unique_consecutive.default: "unique_consecutive",
    aten.equal.default: "equal",
}


class Far(torch.Tensor):
    """A tensor that lies there."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Far:
        far: Far = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=THERE,
        )
        far.here = here
        return far

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Far({self.here!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of far_device()")


class FarDevice(TorchDispatchMode):
    """Computes with tensors that lie there, and notes in ``waits`` whatever would wait for them."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        flat, layout = tree_flatten((args, kwargs))
        tensors = [each for each in flat if isinstance(each, Tensor)]
        there = any(isinstance(each, Far) for each in tensors)
        target = kwargs.get("device")
        if func is aten._to_copy.default:
            goes = there if target is None else torch.device(target) == THERE
            self._note_copy(there, goes, kwargs.get("non_blocking", False))
            there = goes
        elif func is aten.copy_.default:
            onto, source = args[0], args[1]
            blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            if not (isinstance(onto, Far) and source.ndim == 0 and not isinstance(source, Far)):
                self._note_copy(isinstance(source, Far), isinstance(onto, Far), not blocking)
        elif there or (target is not None and torch.device(target) == THERE):
            there = True
            self._check_together(func, args, tensors)
            self._note_sizes(func, args, kwargs)
        if target is not None:
            kwargs["device"] = torch.device("cpu")
            flat, layout = tree_flatten((args, kwargs))
        own = {id(each.here): each for each in flat if isinstance(each, Far)}
        here_args, here_kwargs = tree_unflatten(
            [each.here if isinstance(each, Far) else each for each in flat], layout
        )
        result = func(*here_args, **here_kwargs)
        if func is aten._local_scalar_dense.default and there:
            self.waits.append("item")
            return result

        def placed(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) in own:  # changed in place
                return own[id(value)]
            return Far(value) if there else value

        return tree_map(placed, result)

    def _note_copy(self, was_there: bool, goes_there: bool, non_blocking: bool) -> None:
        if was_there and not goes_there:
            self.waits.append("copy back")
        elif goes_there and not was_there and not non_blocking:
            self.waits.append("blocking copy")

    def _check_together(self, func: Any, args: Any, tensors: list[Tensor]) -> None:
        """Numbers may lie on the CPU, and so may an index, which is then copied."""
        near = [each for each in tensors if not isinstance(each, Far) and each.ndim > 0]
        if near and func in (aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default):
            self.waits.append("index on the CPU")
        elif near:
            raise AssertionError(f"{func} of tensors on different devices: {[each.shape for each in near]}")

    def _note_sizes(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        if func in SIZE_DEPENDS:
            self.waits.append(SIZE_DEPENDS[func])
        elif func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
            self.waits.append("repeat_interleave")
        elif func in (aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default):
            masks = [each for each in args[1] if each is not None and each.dtype in (torch.bool, torch.uint8)]
            is_fill = func is not aten.index.Tensor and args[2].numel() == 1
            if masks and not is_fill:
                self.waits.append("index by a mask")


class _Made(TorchFunctionMode):
    """Tensors made of numbers, such as ``torch.tensor(…, device=there)``, are copied there and waited for."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            if torch.device(kwargs.pop("device")) == THERE:
                self.waits.append(func.__name__)
                return func(*args, **kwargs).to(THERE, non_blocking=True)
        elif func in (Tensor.tolist, Tensor.numpy) and isinstance(args[0], Far):
            self.waits.append(func.__name__)
            return func(args[0].here, *args[1:], **kwargs)
        elif func is Tensor.new_tensor and isinstance(args[0], Far):
            self.waits.append("new_tensor")
            return torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)).to(
                THERE, non_blocking=True
            )
        return func(*args, **kwargs)


class _Generator(torch.Generator):
    """One that draws there is one that draws here."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return super().__new__(cls, "cpu")


@contextmanager
def far_device() -> Iterator[list[str]]:
    """Let tensors lie there while the context lasts; gives the list of what was waited for so far."""
    mode, generator = FarDevice(), torch.Generator
    torch.Generator = _Generator  # type: ignore[misc]
    try:
        with mode, _Made(mode.waits):
            yield mode.waits
    finally:
        torch.Generator = generator  # type: ignore[misc]


def brought_back(value: Any) -> Any:
    """Return what lies there as tensors of the CPU, uncounted."""
    return tree_map(lambda each: each.here if isinstance(each, Far) else each, value)
