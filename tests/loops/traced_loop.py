"""A played decode loop whose compressions are traced, and what its pool really held after each of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from eval.trace_view import holdings, reader
from sglang_rpc.config import RPCConfig
from sglang_rpc.trace.tracer import Tracer
from sglang_rpc.trace.writer import check_folder
from tests.loops.decode_loop import LAYERS, Loop, Request


class Traced:
    """A loop whose compressions are traced into `folder`, as the hooks do it."""

    def __init__(self, folder: Path, config: RPCConfig, **kwargs):
        self.loop = Loop(config, **kwargs)
        compressor = self.loop.compressor
        heads = self.loop.layers[0].keys.shape[1] if config.aggregation == "group" else 1
        server = {"model": "a model", "layers": LAYERS, "heads": heads, "config": config.as_dict()}
        check_folder(str(folder))
        self.folder, self.tracer = folder, Tracer(str(folder), server, compressor.markers, torch.device("cpu"))
        compressor.observe(self.tracer.observer)
        self.rids: dict[int, str] = {}
        #: What the pool held after each compression, by request: [layer][head][positions].
        self.truth: dict[int, list] = {}
        commit = compressor.commit

        def committed(state, c, freed):
            request = next(r for r in self.loop.requests if r.state is state)
            rid = self.rids.get(id(request), "rid")
            output = request.output[: request.generated]
            state.hooks.trace = self.tracer.compressed(state, c, rid, request.prompt, output)
            commit(state, c, freed)
            self.truth.setdefault(id(request), []).append(self.loop.held(request))

        compressor.commit = committed

    def finish(self, request: Request) -> None:
        output = request.output[: request.generated]
        if request.state.hooks.trace is not None:
            request.state.hooks.trace.finish(output, {"type": "stop"}, request.state.receipt(len(output)))
        self.truth.setdefault(id(request), []).append(self.loop.held(request))
        self.loop.finish(request)

    def files(self) -> list[Path]:
        self.tracer.flush()
        return sorted(self.folder.iterdir())

    def only(self) -> reader.Trace:
        (file,) = self.files()
        return reader.read(file)

    def check(self, request: Request, trace: reader.Trace) -> holdings.Holdings:
        """Every stage of the trace is what the pool held then."""
        result, truth = holdings.compose(trace), self.truth[id(request)]
        assert len(result.stages) == len(truth) + 1
        assert result.held(0).all()
        for number, layers in enumerate(truth, 1):
            held = result.held(number)
            per_layer = held.reshape(trace.layers, trace.heads, -1)
            for layer, heads in enumerate(layers):
                for head, positions in enumerate(heads):
                    own = per_layer[layer, head if trace.heads > 1 else 0]
                    assert np.flatnonzero(own).tolist() == positions, (number, layer, head)
            assert (held.sum(1) == result.stages[number].held).all()
        return result
