"""A stand-in for `torch.cuda.CUDAGraph`, which records operators on a CPU and replays them.

Stricter than a GPU: what would be undefined there, or go wrong once in a while, raises here.

* A replay runs the captured operators and no Python: host values and branches are those of the capture.
* It uses memory by address (`memory`): freed memory raises, and the pool's own holds garbage when a replay begins.
* A capture runs nothing: what it writes is undone.
* In a capture nothing may wait for the device, copy from it or to it, or touch memory of the host.
* What runs in a capture for the first time raises: it would be compiled or loaded there. Warm-ups are for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter, tree_map

from tests.unit.graphs.memory import Block, Place, resolved

#: Operators whose result's shape, or whose caller, depends on the data: the host waits for them.
WAITS = (
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "nonzero_static", "masked_select", "unique"),
    *("_unique2", "unique_dim", "unique_consecutive", "repeat_interleave", "bincount", "lift_fresh"),
)
#: Methods that copy to the host, or wait for the device, without an operator that a CPU would show.
COPIES = tuple(
    getattr(torch.Tensor, name)
    for name in ("cpu", "item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__")
)


class NotInCapture(Exception):
    """CUDA does not permit this in a capture, or would not replay it."""


@dataclass
class Device:
    """What all graphs of a process share: the pool's memory, what is the host's, and what is compiled and loaded."""

    pool: list[Block] = field(default_factory=list)
    host: list[torch.Tensor] = field(default_factory=list)
    loaded: set[object] = field(default_factory=set)
    capturing: Graph | None = None

    def on_host(self, tensor: torch.Tensor) -> None:
        """Declare `tensor` the host's, which a CPU cannot tell from the device's."""
        self.host.append(tensor)

    def warming_up(self) -> AbstractContextManager[object]:
        """A context in which operators are loaded as they run."""
        return _Loader(self)

    def launch(self, kernel: Callable[..., None], variant: object, *args: Any, **kwargs: Any) -> None:
        """Run a kernel that is no operator, and keep it if a graph is being captured.

        Args:
            variant: what the compiler makes a kernel of its own for.
        """
        self.load(kernel, variant)
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            if self.capturing is not None:
                self.capturing.keep(kernel, args, kwargs)
            kernel(*args, **kwargs)

    def load(self, kernel: object, variant: object) -> None:
        """Compile and load what is about to run. Raises NotInCapture in a capture, if it is not there yet."""
        if self.capturing is None:
            self.loaded.add((kernel, variant))
        elif (kernel, variant) not in self.loaded:
            raise NotInCapture(f"{kernel} runs in a capture for the first time: {variant}")

    def synchronize(self) -> None:
        """Raises NotInCapture in a capture."""
        if self.capturing is not None:
            raise NotInCapture("synchronize")


class Graph:
    """One captured graph."""

    def __init__(self, device: Device):
        self.device = device
        self.nodes: list[tuple[Callable, tuple, dict, Any]] = []
        self.blocks: dict[int, Block] = {}
        self._modes = ExitStack()

    def capture_begin(self, **_settings: Any) -> None:
        """Record from here on."""
        assert self.device.capturing is None
        self.device.capturing = self
        self._modes.enter_context(_NoCopies())
        self._modes.enter_context(_Recorder(self))

    def capture_end(self) -> None:
        """Record no more."""
        self._modes.close()
        self.device.capturing = None
        for block in self.blocks.values():
            block.leave_capture()
        self.device.pool += [block for block in self.blocks.values() if block.owned is not None]

    def replay(self) -> None:
        """Run what was captured, on the memory that was captured. Raises Freed."""
        for block in self.device.pool:
            block.spoil()
        for operator, args, kwargs, outputs in self.nodes:
            made = operator(*tree_map(resolved, args), **tree_map(resolved, kwargs))
            for place, value in zip(tree_iter(outputs), tree_iter(made), strict=True):
                if isinstance(place, Place):
                    place.tensor().copy_(value)

    def keep(self, operator: Callable, args: tuple, kwargs: dict) -> dict[int, Block]:
        """Add an operator; returns the memory of its inputs."""
        before = {block_of(t): self._known(t) for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        places = tree_map(self._place, (args, kwargs))
        self.nodes.append((operator, *places, None))
        return before

    def keep_outputs(self, outputs: Any, inputs: dict[int, Block]) -> None:
        """Add what the newest operator allocated. Views, and what it wrote in place, are their inputs' memory."""

        def place(value: Any) -> Place | None:
            if not isinstance(value, torch.Tensor) or block_of(value) in inputs:
                return None
            key = block_of(value)
            if key not in self.blocks:
                self.blocks[key] = Block.of(value, allocated_here=True)
            return Place.of(value, self.blocks[key])

        self.nodes[-1] = (*self.nodes[-1][:3], tree_map(place, outputs))

    def _known(self, tensor: torch.Tensor) -> Block:
        if any(block_of(tensor) == block_of(other) for other in self.device.host):
            raise NotInCapture("a replay neither reads nor writes the host's memory")
        key = block_of(tensor)
        if key not in self.blocks:
            self.blocks[key] = Block.of(tensor, allocated_here=False)
        return self.blocks[key]

    def _place(self, value: Any) -> Any:
        return Place.of(value, self._known(value)) if isinstance(value, torch.Tensor) else value


def block_of(tensor: torch.Tensor) -> int:
    """A key of the allocation that `tensor` lies in. No other takes it over while a Block is kept."""
    return tensor.untyped_storage()._cdata


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: Graph):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in WAITS:
            raise NotInCapture(f"{func} makes the host wait, or copies from it")
        if func.overloadpacket.__name__ in ("index", "index_put", "index_put_") and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            raise NotInCapture(f"{func} counts a mask, and the host waits for the count")
        self.graph.device.load(func, _dtypes((args, kwargs)))
        inputs = self.graph.keep(func, args, kwargs)
        outputs = func(*args, **kwargs)
        self.graph.keep_outputs(outputs, inputs)
        return outputs


class _Loader(TorchDispatchMode):
    def __init__(self, device: Device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if self.device.capturing is None:
            self.device.load(func, _dtypes((args, kwargs or {})))
        return func(*args, **(kwargs or {}))


def _dtypes(arguments: Any) -> tuple[torch.dtype, ...]:
    return tuple(value.dtype for value in tree_iter(arguments) if isinstance(value, torch.Tensor))


class _NoCopies(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in COPIES:
            raise NotInCapture(f"Tensor.{func.__name__} makes the host wait")
        return func(*args, **(kwargs or {}))


def install(monkeypatch: pytest.MonkeyPatch) -> Device:
    """Put the stand-in where SGLang's runners look for graphs: in `torch.cuda`, and in `torch.cpu`, their device's."""
    device = Device()

    @contextmanager
    def graph(cuda_graph: Graph, pool: object = None, stream: object = None, **_settings: Any) -> Iterator[None]:
        cuda_graph.capture_begin()
        try:
            yield
        finally:
            cuda_graph.capture_end()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda **_settings: Graph(device))
    for module in (torch.cuda, torch.cpu):
        monkeypatch.setattr(module, "graph", graph, raising=False)
        monkeypatch.setattr(module, "graph_pool_handle", lambda: "the pool", raising=False)
        monkeypatch.setattr(module, "synchronize", lambda *_: device.synchronize())
        monkeypatch.setattr(module, "is_current_stream_capturing", lambda: device.capturing is not None, raising=False)
    return device
