"""Query slots while memory is short: those that are due before those that are recorded ahead, and in turn."""

from sglang_rpc.hooks import pressure
from tests.fakes.batches import ScheduleBatch
from tests.fakes.requests import Req, ReqKvInfo, ids
from tests.fakes.runtime import Runtime
from tests.fakes.scheduler import Scheduler
from tests.loops.decode_loop import Loop, config
from tests.unit.compressor.checks import assert_all_slots_are_back


def watch_while_short(loop: Loop, runtime: Runtime) -> None:
    reqs = [
        Req(ids(r.prompt), rpc=r.state, kv=ReqKvInfo(req_pool_idx=r.row, kv_committed_len=r.length))
        for r in loop.requests
    ]
    pressure.watch(runtime, [ScheduleBatch(reqs)])


def test_the_only_slot_is_not_kept_ahead_of_time_from_who_is_due():
    loop = Loop(config(interval=128, window=4), slots=1, check=False)
    ahead = loop.add(0)
    loop.run(40)
    due = loop.add(1, interval=16)
    runtime = Runtime(Scheduler(), loop.config, loop.compressor, loop.ring)
    for _ in range(60):
        watch_while_short(loop, runtime)
        loop.run(1)
    # Recording ahead began first, and its own date is at 132. The other's are at 20, 36 and 52.
    assert [event for _, event, _ in due.done] == [1, 2, 3]
    assert all(generated <= 20 + 16 * i + 1 for i, (generated, _, _) in enumerate(due.done)), due.done
    assert ahead.state.recording.ahead
    assert_all_slots_are_back(loop)


def test_those_that_wait_get_their_turn_while_memory_is_short():
    loop = Loop(config(interval=64, window=4), slots=1, check=False)
    blocker = loop.ring.acquire(3)
    assert blocker is not None
    larger = loop.add(0)
    loop.run(20)
    first = loop.add(1, interval=16)
    loop.run(46)
    assert first.state.recording.turn < larger.state.recording.turn
    loop.ring.release(blocker)
    # A step in which `larger`, which would free more, must not be recorded ahead.
    watch_while_short(loop, Runtime(Scheduler(), loop.config, loop.compressor, loop.ring))
    loop.run(1)
    assert first.state.recording.slot is not None
    assert larger.state.recording.slot is None
    assert_all_slots_are_back(loop)
