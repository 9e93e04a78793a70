"""Pretended GPUs: all tensors are in host memory, but each says and checks on which device it is.

A storage has a device, `cuda:0`, `cuda:1` or the CPU; so views, parameters and gradients have one.
`_Calls` answers questions about devices, and reads the devices that calls name. `_Operations` sees
the operations themselves, also those of a backward pass. If tensors are on different devices, it
raises a RuntimeError, as PyTorch does. Threads that start inside the context are checked too.

It does not see what depends on real hardware: streams, memory, NCCL, kernels, speed.
"""

import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, autograd
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode, get_default_nowrap_functions
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

# Imported before any context, since their annotations must name the real torch.Generator.
import ppf.agents.evolution
import ppf.labels.samplers
import ppf.policy_search.dynamic  # noqa: F401
from ppf.pruning import ahead

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
MEMORY = 16 * 2**30  # bytes of each GPU


@contextmanager
def pretended_gpus(count: int = 1) -> Iterator[list[str]]:
    """A context in which PyTorch has some GPUs.

    Yields:
        The mismatches so far: operation, devices and shapes, and the lines of the project. There
        are entries only if a caller has caught the error of an operation.

    Raises:
        RuntimeError: an operation mixes devices, as PyTorch does. AssertionError at the end of the
            context: such an error was raised and caught.
    """
    devices = _Devices()
    run_thread, run_backward = threading.Thread._bootstrap_inner, autograd._engine_run_backward

    def in_thread(thread: threading.Thread) -> None:
        with _Calls(devices), _Operations(devices):  # PyTorch's modes are those of one thread
            run_thread(thread)

    def backward(*given: Any, **named: Any) -> Any:
        with _Calls(devices), devices.making(_ANYWHERE):  # the mode of the caller is off
            return run_backward(*given, **named)

    with ExitStack() as stack:
        enter = stack.enter_context
        for name, answer in _cuda(count).items():
            enter(mock.patch.object(torch.cuda, name, answer))
        enter(mock.patch.object(ahead, "_stream", _stream))
        enter(mock.patch.object(torch.Tensor, "record_stream", lambda tensor, stream: None))
        enter(mock.patch.object(torch, "Generator", _Generator))
        enter(mock.patch.object(threading.Thread, "_bootstrap_inner", in_thread))
        enter(mock.patch.object(autograd, "_engine_run_backward", backward))
        enter(_Calls(devices))
        enter(_Operations(devices))
        yield devices.mismatches
    assert not devices.mismatches, "\n".join(devices.mismatches)


class _Anywhere:
    """The device of what PyTorch itself has made in a backward pass: that of what it meets."""


_ANYWHERE = _Anywhere()
_Place = torch.device | _Anywhere


class _Devices:
    """The device of each storage; one that is not listed is on the CPU."""

    def __init__(self) -> None:
        self.mismatches: list[str] = []
        self._places: dict[int, tuple[StorageWeakRef, _Place]] = {}
        self._purge_at = 1000
        self._local = threading.local()

    def place(self, tensor: Tensor) -> _Place:
        storage = _storage(tensor)
        return self._places.get(storage, (None, CPU))[1] if storage else tensor.device

    def of(self, tensor: Tensor) -> torch.device:
        place = self.place(tensor)
        return CPU if isinstance(place, _Anywhere) else place

    def put(self, tensor: Tensor, place: _Place) -> None:
        """Says where a tensor's storage is."""
        if not _storage(tensor):
            return
        if len(self._places) > self._purge_at:
            alive = {k: v for k, v in self._places.items() if not v[0].expired()}
            self._places, self._purge_at = alive, 2 * len(alive) + 1000
        reference = StorageWeakRef(_unwrapped(tensor).untyped_storage())
        self._places[reference.cdata] = reference, place

    def moved(self, tensor: Tensor, device: torch.device) -> Tensor:
        """The tensor itself if it is on the device, else a copy there."""
        if not _storage(tensor) or self.of(tensor) == device:
            return tensor
        if tensor.requires_grad and torch.is_grad_enabled():
            return _Move.apply(tensor, self, device)
        copy = tensor.detach().clone()
        self.put(copy, device)
        return copy

    @property
    def made(self) -> _Place:
        """Where the call in progress makes new tensors."""
        return getattr(self._local, "made", CPU)

    @contextmanager
    def making(self, place: _Place) -> Iterator[None]:
        before, self._local.made = self.made, place
        try:
            yield
        finally:
            self._local.made = before

    def fail(self, operation: str, told: str) -> RuntimeError:
        """The error for tensors on different devices, which is also listed."""
        frames = [f for f in traceback.extract_stack() if f.filename.startswith(f"{ROOT}/ppf")]
        lines = [f"{f.filename.removeprefix(f'{ROOT}/')}:{f.lineno}" for f in frames[-3:]]
        self.mismatches.append(f"{operation}: {told} at {' > '.join(lines) or 'a test'}")
        return RuntimeError(f"Expected all tensors to be on the same device: {self.mismatches[-1]}")


class _Move(autograd.Function):
    """A copy on another device, whose gradient is moved back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, devices: _Devices, device: torch.device) -> Tensor:
        ctx.devices, ctx.source = devices, devices.of(tensor)
        copy = tensor.clone()
        devices.put(copy, device)
        return copy

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return ctx.devices.moved(gradient, ctx.source), None, None


class _Calls(TorchFunctionMode):
    """Calls of PyTorch's functions: what they ask about devices, and where they make tensors."""

    def __init__(self, devices: _Devices) -> None:
        super().__init__()
        self._devices = devices
        tensor = torch.Tensor
        self._own: dict[Any, Callable[..., Any]] = {
            tensor.device.__get__: lambda x, *_: devices.of(x),
            tensor.is_cuda.__get__: lambda x, *_: devices.of(x).type == "cuda",
            tensor.get_device: lambda x: devices.of(x).index or 0,
            tensor.to: self._to,
            tensor.cpu: lambda x, **_: devices.moved(x, CPU),
            tensor.cuda: lambda x, device=0, **_: devices.moved(x, _device(device)),
            tensor.type_as: lambda x, other: devices.moved(x.to(other.dtype), devices.of(other)),
            tensor.pin_memory: lambda x, *_: devices.moved(x, CPU).clone(),
            tensor.is_pinned: lambda x, *_: False,
            tensor.numpy: self._numpy,
            tensor.__array__: self._numpy,
            tensor.__deepcopy__: self._deepcopy,
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = dict(kwargs or {})
        if own := self._own.get(func):
            return own(*args, **named)
        if func in get_default_nowrap_functions():
            return func(*args, **named)
        given = _tensors((args, named))
        asked = None if named.get("device") is None else _device(named["device"])
        if asked and asked.type == "cuda":
            named["device"] = CPU
        made = asked or next((d for x in given if (d := self._devices.of(x)) != CPU), CPU)
        if isinstance(generator := named.get("generator"), _Generator) and generator.place != made:
            raise self._devices.fail(func.__name__, f"{made}, generator {generator.place}")
        with self._devices.making(made):
            found = func(*args, **named)
        if func is torch.Tensor.new_tensor:
            asked = asked or self._devices.of(args[0])
        if asked:
            found = tree_map_only(Tensor, lambda x: self._devices.moved(x, asked), found)
        return found

    def _to(self, tensor: Tensor, *given: Any, **named: Any) -> Tensor:
        device, flags = named.pop("device", None), ["non_blocking", "copy"]
        if (other := named.pop("other", None)) is not None:
            given = (other, *given)
        for value in given:
            if isinstance(value, Tensor):
                device, named["dtype"] = self._devices.of(value), value.dtype
            elif isinstance(value, torch.dtype):
                named["dtype"] = value
            elif isinstance(value, bool):
                named[flags.pop(0)] = value
            elif value is not None:
                device = value
        device = None if device is None else _device(device)
        if device and device.type == "meta":
            return tensor.to(device, **named)
        changed = tensor.to(**named)
        return self._devices.moved(changed, device) if device else changed

    def _numpy(self, tensor: Tensor, *given: Any, **named: Any) -> Any:
        if not named.get("force") and self._devices.of(tensor) != CPU:
            raise self._devices.fail("numpy", str(self._devices.of(tensor)))
        return tensor.numpy(**named)

    def _deepcopy(self, tensor: Tensor, memo: dict[int, Any]) -> Tensor:
        copy = tensor.__deepcopy__(memo)
        self._devices.put(copy, self._devices.place(tensor))
        return copy


class _Operations(TorchDispatchMode):
    """Operations on tensors: their inputs must be on one device, and their outputs are there."""

    def __init__(self, devices: _Devices) -> None:
        super().__init__()
        self._devices = devices

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        with torch._C.DisableTorchFunction():
            given = [(x, self._devices.place(x)) for x in _tensors((args, named))]
            place = self._place(func, args, given)
            for x, before in given:
                if before is _ANYWHERE and place is not _ANYWHERE:
                    self._devices.put(x, place)
            found = func(*args, **named)
            if place != CPU:
                known = {_storage(x) for x, _ in given}
                for x in _tensors(found):
                    if _storage(x) not in known:
                        self._devices.put(x, place)
            return found

    def _place(
        self, func: Any, args: tuple[Any, ...], given: list[tuple[Tensor, _Place]]
    ) -> _Place:
        """Where an operation runs.

        Args:
            args: of the operation.
            given: all tensors among its arguments, and where they are.

        Raises:
            RuntimeError: its tensors are on different devices. As in PyTorch, numbers on the CPU
                (tensors without dimensions) and indices there may meet tensors on a GPU.
        """
        if not given:
            return self._devices.made
        name = func.overloadpacket.__name__
        if name in _ACROSS:
            return given[0][1]
        places = {place for _, place in given} - {_ANYWHERE}
        if len(places) > 1:
            numbers = torch.Tag.pointwise in func.tags or name.startswith(_WITH_NUMBERS)
            indices = {id(x) for x in _tensors(args[1])} if name in _WITH_INDICES else set[int]()
            places = {
                place
                for x, place in given
                if place is not _ANYWHERE
                and not (place == CPU and (id(x) in indices or (numbers and not x.dim())))
            }
        if len(places) > 1:
            first = {place: x for x, place in reversed(given)}
            told = ", ".join(f"{place} {tuple(x.shape)}" for place, x in first.items())
            raise self._devices.fail(str(func), told)
        return places.pop() if places else _ANYWHERE


_ACROSS = ("copy_", "fill_", "_has_compatible_shallow_copy_type")
_WITH_INDICES = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
_WITH_NUMBERS = ("masked_fill", "index_fill", "index_put", "_index_put", "_foreach_")


class _Generator(torch.Generator):
    """A random generator, which says the device that it was made for."""

    place: torch.device

    def __new__(cls, device: Any = CPU) -> "_Generator":
        made = super().__new__(cls)
        made.place = _device(device)
        return made

    def __init__(self, device: Any = CPU) -> None:
        pass

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place


def _device(given: Any) -> torch.device:
    """A device with its index."""
    device = torch.device("cuda", given) if isinstance(given, int) else torch.device(given)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _tensors(given: Any) -> list[Tensor]:
    """All tensors in arguments or results."""
    if isinstance(given, Tensor):
        return [given]
    if isinstance(given, dict):
        given = list(given.values())
    return [x for part in given for x in _tensors(part)] if isinstance(given, (tuple, list)) else []


def _unwrapped(tensor: Tensor) -> Tensor:
    """The tensor inside of those that `torch.func` has wrapped."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _storage(tensor: Tensor) -> int | None:
    """The address of a tensor's storage; None: on another device than the CPU, as "meta"."""
    with torch._C.DisableTorchFunction():
        inner = _unwrapped(tensor)
        return inner.untyped_storage()._cdata if inner.device.type == "cpu" else None


def _stream(device: torch.device) -> mock.MagicMock:
    """In place of a `torch.cuda.Stream`."""
    stream = mock.MagicMock()
    stream.record_event.return_value = mock.MagicMock(spec=torch.cuda.Event)
    return stream


def _cuda(count: int) -> dict[str, Any]:
    """What replaces functions of `torch.cuda`."""
    properties = SimpleNamespace(name="Pretended", total_memory=MEMORY, major=7, minor=0)
    answers: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "device_count": count,
        "current_device": 0,
        "get_device_name": "Pretended",
        "get_device_capability": (7, 0),
        "get_device_properties": properties,
        "is_bf16_supported": True,
        "mem_get_info": (MEMORY, MEMORY),
        "is_current_stream_capturing": False,
        "get_rng_state_all": [],
        **dict.fromkeys(("memory_allocated", "max_memory_allocated", "memory_reserved"), 0),
    }
    silent = ("_lazy_init", "set_device", "synchronize", "empty_cache", "manual_seed")
    silent += ("manual_seed_all", "reset_peak_memory_stats", "set_rng_state_all", "set_rng_state")
    answers |= dict.fromkeys(silent)
    functions = {name: mock.MagicMock(return_value=answer) for name, answer in answers.items()}
    functions["get_rng_state"] = lambda device=None: torch.get_rng_state()
    return functions | {"stream": nullcontext, "current_stream": mock.MagicMock()}
