"""What the Triton path shows a observer, padded and for several requests at once, is what it keeps."""

from __future__ import annotations

import pytest

from eval.trace_view import reader
from tests.kernels.cases import DEVICE
from tests.loops.decode_loop import config
from tests.loops.traced_loop import Traced


@pytest.mark.parametrize("aggregation", [pytest.param("all", marks=pytest.mark.long), "group"])
def test_a_trace_is_what_the_pool_holds(tmp_path, aggregation):
    traced = Traced(tmp_path, config(scoring="triton", aggregation=aggregation), device=DEVICE)
    assert traced.loop.compressor.scoring == "triton"
    requests = [traced.loop.add(row, prompt=4 * row, **more) for row, more in ((0, {}), (1, {"ratio": 2}), (3, {}))]
    for request in requests:
        traced.rids[id(request)] = f"row-{request.row}"
    traced.loop.run(60)
    for request in requests:
        traced.finish(request)
    traces = {trace.header["rid"]: trace for trace in map(reader.read, traced.files())}
    for request in requests:
        trace = traces[f"row-{request.row}"]
        assert trace.heads == (2 if aggregation == "group" else 1)
        assert len(traced.check(request, trace).stages) == 3 + 2


def test_latents(tmp_path):
    traced = Traced(tmp_path, config(scoring="triton"), heads=4, kv_heads=1, latent=True, device=DEVICE)
    request = traced.loop.add()
    traced.loop.run(40)
    traced.finish(request)
    traced.check(request, traced.only())
