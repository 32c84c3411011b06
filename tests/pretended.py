"""A device that is not there: its tensors compute on the CPU, but do not mix with the CPU's, as those of a GPU.

It goes by the name "meta", since torch has everything but numbers there. What can fail on a GPU and not here: its own
kernels, their precision and memory, and lists as indices, which torch moves by itself.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
BETWEEN_DEVICES = ("_to_copy", "copy_", "_local_scalar_dense")


class Elsewhere(torch.Tensor):
    """A tensor there; `held` has its numbers."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, strides=held.stride(), dtype=held.dtype,
                                                   storage_offset=held.storage_offset(), device=DEVICE)

    def __init__(self, held):
        self.held = held

    def __repr__(self, **_):
        return f"Elsewhere({self.held})"

    def tolist(self):
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})


class Numbers(TorchFunctionMode):
    """What torch would make or index there without asking anybody."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(part, dtype=None if part else torch.long) if isinstance(part, list) else part
                          for part in index)
            args = args[0], index, *args[2:]
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") == DEVICE:
            return function(*args, **kwargs | {"device": None}).to(DEVICE)
        return function(*args, **kwargs)


class Operations(TorchDispatchMode):
    """What torch computes there."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if torch.is_inference_mode_enabled():    # then compounds come whole, with devices among their arguments
            with self:
                result = function.decompose(*args, **kwargs or {})
            if result is not NotImplemented:
                return result
        return computed(function, args, kwargs or {})


@contextmanager
def pretended():
    """While it is entered, "meta" is that device."""
    with Numbers(), Operations():
        yield


def check(name: str, tensors: list[torch.Tensor], device, generator) -> None:
    """RuntimeError for what a GPU refuses, too."""
    lost = [tuple(value.shape) for value in tensors if value.is_meta and not isinstance(value, Elsewhere)]
    if lost:
        raise RuntimeError(f"{name}: tensors of shapes {lost} got there without their numbers")
    # As in torch: numbers in tensors without axes, and indices, may come from the CPU.
    here = [tuple(value.shape) for value in tensors if not isinstance(value, Elsewhere) and value.ndim]
    if 0 < len(here) < len(tensors) and any(isinstance(value, Elsewhere) for value in tensors) and \
            name not in BETWEEN_DEVICES and not name.startswith(("index", "_unsafe_index")):
        raise RuntimeError(f"{name}: tensors of two devices, those of shapes {here} on the CPU")
    if generator is not None and device is not None and torch.device(device) != generator.device:
        raise RuntimeError(f"{name}: a generator of {generator.device} on {device}")


def computed(function, args, kwargs):
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    device, name = kwargs.get("device"), function.overloadpacket.__name__
    if name == "_has_compatible_shallow_copy_type":    # a module asks whether it may keep a parameter that moves
        return False
    check(name, tensors, device, kwargs.get("generator"))
    there = any(isinstance(value, Elsewhere) for value in tensors)
    args, kwargs = tree_map(lambda value: value.held if isinstance(value, Elsewhere) else value, (args, kwargs))
    if device is not None:
        there, kwargs["device"] = torch.device(device) == DEVICE, torch.device("cpu")
    with _disable_current_modes():
        result = function(*args, **kwargs)
    if not there:
        return result
    known = {id(value.held): value for value in tensors if isinstance(value, Elsewhere)}    # of in-place operations

    def moved(value):
        if not isinstance(value, torch.Tensor):
            return value
        return known[id(value)] if id(value) in known else Elsewhere(value)

    return tree_map(moved, result)
