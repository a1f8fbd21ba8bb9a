"""Traces written in a played decode loop, read back, and composed into what the loop's pool really holds."""

import numpy as np
import pytest
import torch

from eval.trace_view import holdings, reader
from sglang_rpc.config import RequestOptions
from sglang_rpc.memory.host_backup import HostBackup
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.trace.tracer import Tracer
from sglang_rpc.types import Compression
from tests.loops.decode_loop import END, LAYERS, MARKERS, START, WORD, config
from tests.loops.traced_loop import Traced


@pytest.mark.parametrize("aggregation", ["all", "group"])
@pytest.mark.parametrize("policy", ["rpc", "random", "streaming"])
def test_what_is_composed_is_what_the_pool_holds(tmp_path, aggregation, policy):
    traced = Traced(tmp_path, config(aggregation=aggregation, policy=policy), check=False)
    request = traced.loop.add(prompt=7)
    traced.loop.run(90)
    traced.finish(request)
    trace = traced.only()
    assert (trace.layers, trace.heads) == (LAYERS, 2 if aggregation == "group" else 1)
    assert trace.prompt == request.prompt
    assert trace.output == request.output[:90]
    result = traced.check(request, trace)
    receipt = request.state.receipt(90)
    end = result.stages[-1]
    assert trace.receipt == receipt
    assert trace.finish == {"type": "stop"}
    assert not trace.cut
    assert (end.generated, end.held, end.evicted) == (receipt["generated"], receipt["held"], receipt["evicted"])
    assert len(trace.compressions) == receipt["compressions"] == 5
    assert [c.event for c in trace.compressions] == [1, 2, 3, 4, 5]


def test_latents_have_one_set_a_layer(tmp_path):
    traced = Traced(tmp_path, config(aggregation="group"), heads=4, kv_heads=1, latent=True)
    request = traced.loop.add()
    traced.loop.run(60)
    traced.finish(request)
    traced.check(request, traced.only())


def test_requests_compressed_together_have_a_file_each(tmp_path):
    traced = Traced(tmp_path, config())
    requests = [traced.loop.add(row, prompt=3 * row, **more) for row, more in ((0, {}), (1, {"ratio": 2}), (3, {}))]
    idle = traced.loop.add(2, enabled=False)
    for request in requests:
        traced.rids[id(request)] = f"row-{request.row}"
    traced.loop.run(60)
    for request in [*requests, idle]:
        traced.finish(request)
    traces = {trace.header["rid"]: trace for trace in map(reader.read, traced.files())}
    assert sorted(traces) == ["row-0", "row-1", "row-3"]  # none of one that was not compressed
    for request in requests:
        traced.check(request, traces[f"row-{request.row}"])
    assert traces["row-1"].header["options"]["ratio"] == 2


def test_a_compression_that_keeps_no_candidate(tmp_path):
    tracer = Tracer(str(tmp_path), {"layers": 3, "heads": 1, "config": {}}, None, torch.device("cpu"))
    options = RequestOptions.from_custom_params(None, config(), knows_markers=False)
    c = Compression(row=1, slot=0, prompt_length=2, generated=9, window=3, begin=4, end=11, keep=0, event=1, late=False)
    tracer.observer([c], torch.empty(3, 1, 1, 0, dtype=torch.int32))
    tracer.compressed(RequestState(options), c, "rid", [1, 2], list(range(20)))
    tracer.flush()
    (file,) = tmp_path.iterdir()
    held = holdings.compose(reader.read(file)).held(1)
    assert [np.flatnonzero(row).tolist() for row in held] == [[0, 1, 6, 7, 8]] * 3


def test_a_request_that_never_ends_can_be_seen_as_far_as_it_went(tmp_path):
    traced = Traced(tmp_path, config())
    request = traced.loop.add(output=list(range(1000, 1640)))
    traced.loop.run(45)
    trace = traced.only()
    assert trace.receipt is None
    assert trace.output == list(range(1000, 1036))
    traced.check(request, trace)


def test_a_row_rebuilt_from_tokens_is_whole_again(tmp_path):
    traced = Traced(tmp_path, config())
    request = traced.loop.add()
    traced.loop.run(40)
    traced.loop.retract(request)
    traced.loop.run(40)
    traced.loop.retract(request)
    traced.truth[id(request)].append(traced.loop.held(request))
    receipt = request.state.receipt(80)
    request.state.hooks.trace.finish(request.output[:80], {"type": "abort"}, receipt)
    trace = traced.only()
    result = traced.check(request, trace)
    assert [stage.rebuilt for stage in result.stages] == [False, False, False, True, False, False, True]
    assert result.stages[-1].held == receipt["held"] == 80
    assert result.stages[-1].evicted == receipt["evicted"] > 0
    assert len(result.epochs) == 3
    assert [c.late for c in trace.compressions] == [False, False, True, False, False]


def test_a_row_that_came_back_as_it_was_goes_on(tmp_path):
    traced = Traced(tmp_path, config())
    loop, backups = traced.loop, HostBackup(traced.loop.layers, 10**9)
    request = loop.add(prompt=9)
    loop.run(44)
    loop.leave(request, backups)
    loop.come_back(request, 2, backups)
    loop.run(30)
    traced.finish(request)
    result = traced.check(request, traced.only())
    assert not any(stage.rebuilt for stage in result.stages)
    assert len(result.epochs) == 1


def test_early_compressions(tmp_path):
    traced = Traced(tmp_path, config())
    request = traced.loop.add()
    assert traced.loop.record_ahead(request)
    traced.loop.run(15)
    assert traced.loop.evict_early(request, 4) is not None
    traced.loop.run(30)
    traced.finish(request)
    trace = traced.only()
    assert [c.early for c in trace.compressions] == [True, False, False]
    traced.check(request, trace)


@pytest.mark.parametrize("scope", ["think", "all"])
def test_thoughts_and_answer_are_told_apart(tmp_path, scope):
    traced = Traced(tmp_path, config(scope=scope), markers=MARKERS)
    output = [WORD] * 3 + [START] + [WORD] * 50 + [END] + [WORD] * 9
    request = traced.loop.add(output=[*output, *[WORD] * 600])
    traced.loop.run(30)
    traced.tracer.flush()
    assert traced.only().think == (4, None)
    traced.loop.run(len(output) - 30)
    traced.finish(request)
    trace = traced.only()
    assert trace.think == (4, 55)
    traced.check(request, trace)


def test_without_markers_nothing_is_said_of_thoughts(tmp_path):
    traced = Traced(tmp_path, config())
    traced.loop.add()
    traced.loop.run(30)
    assert traced.only().think is None
