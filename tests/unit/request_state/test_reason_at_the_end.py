"""The reason in a receipt, of a request that ended between two polls."""

from types import SimpleNamespace

import pytest

from sglang_rpc.hooks.reporting import _receipt
from tests.loops.decode_loop import END, MARKERS, START, WORD, Loop, config


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ([WORD] * 30, "no think segment opened"),
        ([WORD] * 3 + [START] + [WORD] * 26, "finished before 72 generated tokens"),
        ([WORD] * 3 + [START] + [WORD] * 6 + [END] + [WORD] * 19, "the think segment ended before 72 "),
    ],
)
def test_what_was_thought_since_the_last_poll_is_read(output, reason):
    loop = Loop(config(interval=64, window=4, scope="think"), markers=MARKERS, check=False)
    request = loop.add(prompt=1, output=output, enabled=True)
    loop.run(30)
    assert request.polls[-1] < 4
    req = SimpleNamespace(rpc=request.state, finished=lambda: True, output_ids_through_stop=output)
    (receipt,) = _receipt(req)
    assert receipt["reason"].startswith(reason)
