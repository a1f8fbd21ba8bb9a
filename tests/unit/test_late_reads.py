"""Policies that read rows in every layer, which SGLang's own order of streams does not know of."""

import inspect
from types import SimpleNamespace

import pytest

from sglang_rpc.hooks import accumulate
from sglang_rpc.startup import cpu


class OneStream:
    """The scheduler's stream, as SGLang's barrier and ours use it."""

    def __init__(self):
        self.waits: list[str] = []

    def wait_event(self, event: str) -> None:
        self.waits.append(event)

    def wait_stream(self, stream: str) -> None:
        self.waits.append(stream)


@pytest.mark.parametrize("every_step", [True, False])
@pytest.mark.parametrize(("enabled", "event"), [(True, "its reads of rows"), (True, None), (False, None)])
def test_their_reads_are_waited_for(every_step, enabled, event):
    """SGLang's own barrier waits for less where the attention backend says so, and is missing on AMD GPUs."""
    cpu.prepare()
    from sglang.srt.managers.scheduler import Scheduler as SGLangs

    stream = OneStream()
    runtime = SimpleNamespace(every_step=every_step, fence=lambda: stream.wait_stream("the whole forward"))
    runner = SimpleNamespace(shared_read_done_event=event)
    scheduler = SimpleNamespace(
        _war_barrier_enabled=enabled,
        model_worker=SimpleNamespace(last_shared_read_runner=runner),
        schedule_stream=stream,
        forward_stream="the whole forward",
        rpc=runtime,
    )
    barrier = inspect.unwrap(SGLangs._apply_war_barrier)  # another test may have put our hook on it
    accumulate.wait_for_late_reads(barrier(scheduler), scheduler)
    own = [event or "the whole forward"] if enabled else []
    assert stream.waits == own + (["the whole forward"] if every_step else [])


def test_without_rpc_nothing_waits_longer():
    accumulate.wait_for_late_reads(None, SimpleNamespace(rpc=None))
