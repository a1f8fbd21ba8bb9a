"""Random requests: whatever happens, the oracle holds and every query slot comes back."""

import random

import pytest

from sglang_rpc.memory.host_backup import HostBackup
from tests.loops.decode_loop import END, MARKERS, START, WORD, Loop, config
from tests.loops.oracle import Oracle
from tests.loops.rule_oracle import RuleOracle
from tests.unit.compressor.checks import assert_all_slots_are_back, set_pressure


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("policy", "oracle"), [("rpc", Oracle), ("peak", RuleOracle)])
def test_whatever_happens_the_oracle_holds_and_every_slot_comes_back(seed, policy, oracle):
    rng = random.Random(seed)
    interval, window, slots = rng.randint(2, 20), rng.randint(1, 10), rng.randint(1, 4)
    ratio, scope = rng.uniform(1.05, interval), rng.choice(["all", "think"])
    when = rng.choice(["always", "pressure"])
    settings = config(interval, window, ratio, scope, policy=policy, kernel_size=1, when=when)
    loop = Loop(settings, slots=slots, markers=MARKERS, oracle=oracle)
    backups = HostBackup(loop.layers, 10**9)
    for row in (0, 1):
        tokens = rng.choices([WORD, START, END], [40, 1, 1], k=200)
        loop.add(row, [rng.choice([WORD, START]) for _ in range(rng.randint(0, 6))], tokens)
    for _ in range(60):
        loop.poll()
        for request in list(loop.requests):
            held, rows = loop.held(request), {r.row for r in loop.requests}
            actions = ["nothing", "record_ahead", "evict_early", "stop_recording_ahead", "retract", "leave"]
            match rng.choices(actions, [60, 15, 15, 3, 2, 5])[0]:
                case "record_ahead":
                    loop.record_ahead(request)
                case "evict_early":
                    loop.evict_early(request, ratio * rng.choice([1, 2, 4]))
                case "stop_recording_ahead":
                    loop.compressor.stop_recording_ahead(request.state)
                case "retract":
                    loop.retract(request)
                case "leave" if request.generated:
                    loop.leave(request, backups)
                    loop.come_back(request, rng.choice(sorted({0, 1, 2, 3} - rows)), backups)
                    assert loop.held(request) == held
        if settings.when == "pressure" and rng.random() < 0.1:
            set_pressure(loop, not loop.compressor.dates_kept)
        for request in loop.requests:
            loop._decode(request)
        assert loop.ring.in_use == sum(r.state.recording.slot is not None for r in loop.requests)
        assert all(r.state.recording.slot is not None for r in loop.requests if r.state.recording.ahead)
    assert backups.used == 0
    assert_all_slots_are_back(loop)
