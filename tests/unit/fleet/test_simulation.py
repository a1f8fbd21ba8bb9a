"""The simulated fleet against what can be computed by hand, and against itself step by step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eval.fleet.fleet import ROUTERS, Outcome, View, least_requests, prefix_affinity, simulate
from eval.fleet.load import Job, Load
from eval.fleet.prefixes import PrefixCache
from eval.fleet.replica import Replica
from eval.fleet.report import measures
from eval.fleet.server import CLIP, Server, Step
from sglang_rpc.policy.budget import Budget

#: Binary fractions, so that sums are exact: 16 ms and 2 ms more for each request.
STEP = Step(fixed=1 / 64, request=1 / 512, prefill=1 / 32, token=1 / 4096)
BUDGET = Budget(interval=64, window=16, step=16)
OFF = Server(100_000, STEP)
RPC = replace(OFF, budget=BUDGET, ratio=4.0, forecast=True)
CLOSED = Load(jobs=12, prompt=32, output=101, clients=1)


def run(server: Server, load: Load, replicas: int = 1, router: str = "round-robin", seed: int = 0) -> Outcome:
    return simulate(server, replicas, ROUTERS[router], load.draw(seed), load.clients)


def seen(outcome: Outcome) -> list[tuple]:
    """Everything that a client sees of each request."""
    return [(r.job.number, r.sent, r.first, r.ended, r.output, r.retractions) for r in outcome.requests]


def test_one_client_takes_its_prefill_and_its_steps():
    outcome = run(OFF, CLOSED)
    first, whole = 1 / 32 + 32 / 4096, 1 / 32 + 32 / 4096 + 100 * (1 / 64 + 1 / 512)
    assert [r.first - r.sent for r in outcome.requests] == [first] * 12
    assert [r.ended - r.sent for r in outcome.requests] == [whole] * 12
    assert outcome.seconds == 12 * whole
    assert measures(outcome, OFF.pool)["tok_s"] == 101 / whole
    entry_seconds = 32 * first + sum((32 + n) * (1 / 64 + 1 / 512) for n in range(1, 101))
    assert outcome.replicas[0].entry_seconds == 12 * entry_seconds


def test_requests_at_once_share_the_steps():
    step = replace(STEP, entry=1 / 2**20)
    outcome = run(replace(OFF, step=step), replace(CLOSED, jobs=8, clients=None, rate=float("inf")))
    attended = sum(8 * (32 + n) for n in range(1, 101))
    seconds = 1 / 32 + 8 * 32 / 4096 + 100 * (1 / 64 + 8 / 512) + attended / 2**20
    assert {r.ended for r in outcome.requests} == {seconds}


@pytest.mark.parametrize("clients", [1, 4, 8])
def test_requests_at_once_are_their_rate_times_their_time(clients):
    """Little's law: nobody waits here, so the mean of those running is throughput x mean latency, exactly."""
    outcome = run(OFF, replace(CLOSED, jobs=40, clients=clients))
    found = measures(outcome, OFF.pool)
    latency = sum(r.ended - r.sent for r in outcome.requests) / 40
    assert found["running_mean"] == pytest.approx(clients if clients == 1 else found["requests_s"] * latency, rel=0.02)


def test_little_s_law_is_exact_where_all_are_admitted_as_they_come():
    outcome = run(OFF, replace(CLOSED, jobs=8, clients=None, rate=float("inf")))
    running = sum(replica.running_seconds for replica in outcome.replicas)
    assert running == sum(r.ended - r.sent for r in outcome.requests)


def test_a_pool_for_three_serves_equal_requests_in_waves_of_three():
    """Each is held 32 + 101 entries for; one slot is booked for each, and the last is never given."""
    load = replace(CLOSED, jobs=9, clients=None, rate=float("inf"))
    tight = replace(OFF, pool=3 * (32 + 101) + 3 + 1)
    wave = 1 / 32 + 3 * 32 / 4096 + 100 * (1 / 64 + 3 / 512)
    assert [r.ended for r in run(tight, load).requests] == [wave] * 3 + [2 * wave] * 3 + [3 * wave] * 3
    assert [r.ended for r in run(replace(tight, pool=tight.pool - 1), load).requests][:3] != [wave] * 3


def test_equal_replicas_share_equal_requests():
    load = replace(CLOSED, jobs=16, clients=None, rate=float("inf"))
    (alone,) = {r.ended for r in run(OFF, replace(load, jobs=4)).requests}
    for router in ROUTERS:
        outcome = run(OFF, load, replicas=4, router=router)
        assert {r.ended for r in outcome.requests} == {alone}, router
        assert [len(replica.ended) for replica in outcome.replicas] == [4] * 4


@pytest.mark.parametrize("output", [60, 80, 81, 145, 400, 1000])
def test_a_compressed_request_holds_what_the_budget_says(output):
    outcome = run(RPC, replace(CLOSED, jobs=1, output=output))
    (request,), (replica,) = outcome.requests, outcome.replicas
    assert replica.peak == 32 + BUDGET.peak(output - 1)  # the last token is never stored
    assert replica.compressions == BUDGET.compressions_due(output - 2) == request.compressions


def test_compressions_hold_the_batch_up():
    slow = replace(RPC, step=replace(STEP, compression=1 / 4))
    one = replace(CLOSED, jobs=1, output=400)
    assert run(slow, one).seconds == run(RPC, one).seconds + 5 / 4


TIGHT = Load(jobs=60, prompt=32, output=300, spread=0.5, longest=700, rate=8.0)
LOADS = {
    "known": TIGHT,
    "closed": replace(TIGHT, rate=None, clients=12),
    "at-once": replace(TIGHT, rate=float("inf")),
    "unknown": replace(TIGHT, limit=1, rate=float("inf")),
    "unknown-limit": replace(TIGHT, limit=900, rate=float("inf")),
    "shared": replace(TIGHT, prompt=96, shared=64, groups=5),
    "unknown-shared": replace(TIGHT, prompt=96, shared=64, groups=5, limit=1, rate=float("inf")),
}


class Checked(Replica):
    """Compares its counts with its requests at every boundary."""

    def boundary(self, now: float) -> int:
        ended = super().boundary(now)
        own = sum(r.job.prompt - r.job.shared + r.held for r in self.running)
        groups = {r.job.group for r in self.running if r.job.shared}
        assert self.own == own
        assert self.cache.used == len(groups) * 64
        assert self.own + self.cache.used + self.cache.idle <= self.server.pool
        assert len(self.running) <= self.server.max_running
        return ended


@pytest.mark.parametrize("server", [OFF, RPC], ids=["off", "rpc"])
@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_request_ends_once_and_the_pool_is_never_exceeded(monkeypatch, server, load, seed):
    monkeypatch.setattr("eval.fleet.fleet.Replica", Checked)
    tight = replace(server, pool=1200, max_running=9)
    outcome = run(tight, load, replicas=2, router="least-kv", seed=seed)
    assert sorted(r.job.number for r in outcome.requests) == list(range(60))
    assert all(r.output == r.job.output for r in outcome.requests)
    assert all(r.sent < r.first <= r.ended <= outcome.seconds for r in outcome.requests)
    for replica in outcome.replicas:
        assert 600 < replica.peak <= 1200
        assert replica.used == 0
        assert not replica.running
        assert not replica.waiting


def test_known_lengths_are_never_retracted_and_unknown_ones_are():
    tight = {server: replace(server, pool=1200) for server in (OFF, RPC)}
    retracted = {}
    for server, one in tight.items():
        assert sum(r.retractions for r in run(one, LOADS["at-once"]).requests) == 0
        outcome = run(one, LOADS["unknown"])
        retracted[server] = sum(r.retractions for r in outcome.requests)
        assert all(replica.early == 0 for replica in outcome.replicas if server is OFF)
    assert retracted[OFF] > 0
    assert retracted[RPC] < retracted[OFF]


def test_before_a_retraction_requests_are_compressed_early(monkeypatch):
    far = replace(RPC, pool=1200, budget=Budget(interval=512, window=16, step=128))
    outcome = run(far, LOADS["unknown"])
    assert outcome.replicas[0].early > 0
    monkeypatch.setattr(Server, "early_gain", lambda *_: 0)
    without = run(far, LOADS["unknown"])
    assert without.replicas[0].early == 0
    assert sum(r.retractions for r in outcome.requests) < 0.5 * sum(r.retractions for r in without.requests)


@pytest.mark.parametrize(("budget", "computed"), [(None, 32 + 669), (Budget(10_000, 5_000, 2_500), 32 + 1)])
def test_a_retracted_request_comes_back_with_what_it_had(budget, computed):
    """The second is let in when the first has 301 tokens, of a pool that both outgrow 668 steps later.

    Without RPC its prompt and tokens are computed again. With it, all but the newest token come from host memory.
    """
    prefill, one, two = 1 / 32 + 32 / 4096, 1 / 64 + 1 / 512, 1 / 64 + 2 / 512
    jobs = [Job(0, 0.0, 32, 1000, limit=1000), Job(1, prefill + 300 * one, 32, 1000, limit=1000)]
    outcome = simulate(replace(OFF, pool=1700, budget=budget), 1, least_requests, jobs)
    first, second = outcome.requests
    assert (first.job.number, first.retractions, second.retractions) == (0, 0, 1)
    assert first.ended == prefill + 300 * one + prefill + 668 * two + 31 * one
    assert second.first == prefill + 300 * one + prefill
    assert second.ended == first.ended + 1 / 32 + computed / 4096 + 330 * one
    assert outcome.replicas[0].peak == 1700


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_a_ratio_of_one_is_rpc_off(load):
    """It evicts nothing. Under SGLang's reservation, as the forecast adds known lengths up otherwise.

    Unknown lengths get a pool in which all run at once. Compressions let the queue be looked at again, when less is
    reserved, and RPC alone brings retracted requests back from host memory.
    """
    pool = 1200 if load.limit is None else 60_000
    off, on = (
        run(replace(OFF, pool=pool, budget=budget), load, 2)
        for budget in (None, Budget(interval=64, window=16, step=64))
    )
    assert seen(on) == seen(off)
    assert [r.peak for r in on.replicas] == [r.peak for r in off.replicas]
    assert sum(r.retractions for r in off.requests) == 0
    assert sum(r.compressions for r in on.replicas) > 0


@pytest.mark.parametrize("server", [OFF, RPC], ids=["off", "rpc"])
@pytest.mark.parametrize("load", [LOADS["known"], LOADS["shared"]], ids=["known", "shared"])
def test_stretches_of_steps_are_the_steps_one_by_one(monkeypatch, server, load):
    ample = replace(server, step=replace(STEP, entry=1 / 2**24))
    whole = seen(run(ample, load, replicas=2, router="least-kv"))
    monkeypatch.setattr(Replica, "_longest_stretch", lambda self: 1)
    assert seen(run(ample, load, replicas=2, router="least-kv")) == whole


def test_a_seed_decides_everything():
    for server in (OFF, RPC):
        tight = replace(server, pool=1200)
        runs = [seen(run(tight, LOADS["unknown-shared"], 2, "least-kv", seed)) for seed in (3, 3, 4)]
        assert runs[0] == runs[1] != runs[2]


def test_rpc_serves_more_at_once_in_the_same_pool():
    off, rpc = (measures(run(replace(server, pool=1200), LOADS["at-once"]), 1200) for server in (OFF, RPC))
    assert rpc["running_mean"] > 1.5 * off["running_mean"]
    assert rpc["tok_s"] > off["tok_s"]
    assert rpc["kv_peak"] <= 1200


def test_a_prefill_waits_for_the_step_that_runs_and_holds_the_others_up():
    jobs = [Job(0, 0.0, 32, 101), Job(1, 1.0, 32, 11)]
    outcome = simulate(OFF, 1, least_requests, jobs)
    one, two = 1 / 64 + 1 / 512, 1 / 64 + 2 / 512
    prefill = 1 / 32 + 32 / 4096
    begun = next(n for n in range(101) if prefill + n * one >= 1.0)
    first, second = sorted(outcome.requests, key=lambda r: r.job.number)
    assert second.first == prefill + begun * one + prefill
    assert second.ended == second.first + 10 * two
    assert first.ended == second.ended + (100 - begun - 10) * one


def test_routers_choose():
    job = Job(5, 0.0, 10, 10)
    views = [View(4, 90, False), View(2, 80, True), View(3, 10, False), View(2, 85, True)]
    assert {name: router(job, views) for name, router in ROUTERS.items()} == {
        "round-robin": 1,
        "least-requests": 1,
        "least-kv": 2,
        "prefix-affinity": 1,
    }
    holds = View(8, 0, True)
    assert prefix_affinity(job, [View(2, 0, False), replace(holds, requests=7)]) == 1
    assert prefix_affinity(job, [View(2, 0, False), holds]) == 0
    assert prefix_affinity(job, [View(2, 0, False), View(1, 0, False)]) == 1


def test_affinity_finds_more_prefixes_than_turns_do():
    load = Load(jobs=80, prompt=600, output=40, shared=512, groups=8, rate=4.0)
    small = replace(OFF, pool=3000)
    shares = {name: measures(run(small, load, 4, name), 3000)["cached_share"] for name in ROUTERS}
    assert shares["prefix-affinity"] > 1.5 * shares["round-robin"]
    alone = measures(run(replace(small, pool=100_000), load), 100_000)["cached_share"]
    assert alone == pytest.approx(72 / 80 * 512 / 600)  # each group's first pays for it


@pytest.mark.parametrize(("pool", "waits"), [(278, True), (279, False)])
def test_a_prefix_that_is_used_again_is_free_no_more(pool, waits):
    """The third's own 32 entries and 50 tokens stand beside the second's 132 at most, and the prefix of 64."""
    jobs = [Job(0, 0.0, 96, 50, shared=64, group=1), Job(1, 5.0, 32, 100), Job(2, 5.5, 96, 50, shared=64, group=1)]
    _, second, third = sorted(simulate(replace(OFF, pool=pool), 1, least_requests, jobs).requests, key=lambda r: r.sent)
    assert third.cached == 64
    assert (third.first > second.ended) is waits


def test_idle_prefixes_go_oldest_first():
    cache = PrefixCache()
    for group in (1, 2, 3):
        cache.use(group, 100)
    for group in (2, 1, 3):
        cache.leave(group)
    cache.use(3, 100)
    assert (cache.used, cache.idle) == (100, 200)
    cache.evict(0)
    assert cache.idle == 200
    cache.evict(1)
    assert (cache.holds(1), cache.holds(2), cache.holds(3)) == (False, True, True)
    cache.evict(500)
    assert (cache.holds(2), cache.holds(3), cache.used, cache.idle) == (False, True, 100, 0)
    for group in (4, 5, 4):
        cache.use(group, 100)
        cache.leave(group)
    cache.evict(1)
    assert (cache.holds(4), cache.holds(5)) == (True, False)


def test_what_does_not_fit_an_empty_replica_is_refused():
    with pytest.raises(ValueError, match=r"a request of 32 \+ 400 tokens needs 434 of the pool's 433 KV entries"):
        run(replace(OFF, pool=433), replace(CLOSED, output=400))
    run(replace(OFF, pool=434), replace(CLOSED, output=400))
    peak = 32 + BUDGET.peak(400) + 2
    run(replace(RPC, pool=peak), replace(CLOSED, output=400))
    with pytest.raises(ValueError, match="larger pool"):
        run(replace(RPC, pool=peak - 1), replace(CLOSED, output=400))


def test_sglang_s_reservation_is_clipped():
    job = Job(0, 0.0, 10, 3 * CLIP)
    assert OFF.plan(job, 1, 0, 0, 0, 1.0).remaining == CLIP
    assert RPC.plan(job, 1, 0, 0, 0, 1.0).remaining == 3 * CLIP - 1
    assert RPC.plan(replace(job, limit=1001), 1, 0, 0, 0, 0.5).remaining == 500


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"spread": float("nan")}, "spread must be at least 0"),
        ({"rate": 1.0}, "not both"),
        ({"clients": None}, "not neither"),
        ({"clients": 0}, "clients must be at least 1"),
        ({"clients": None, "rate": 0.0}, "rate must be above 0"),
        ({"shared": 32}, "shared must be below the prompt's 32 tokens"),
    ],
)
def test_loads_that_cannot_be_are_refused(changes, why):
    with pytest.raises(ValueError, match=why):
        replace(CLOSED, **changes)


def test_a_load_has_its_rate_and_its_lengths():
    jobs = Load(jobs=4000, prompt=8, output=500, spread=0.5, rate=20.0, groups=4).draw(1)
    assert jobs[-1].arrives == pytest.approx(200, rel=0.1)
    lengths = [job.output for job in jobs]
    assert sum(lengths) / 4000 == pytest.approx(500, rel=0.05)
    deviation = (sum((length - 500) ** 2 for length in lengths) / 4000) ** 0.5
    assert deviation == pytest.approx(250, rel=0.15)
    assert {job.group for job in jobs} == {0, 1, 2, 3}
    faster = Load(jobs=4000, prompt=8, output=500, spread=0.5, rate=40.0, groups=4).draw(1)
    assert [job.output for job in faster] == lengths


def test_the_fewest_steps_that_last_so_long():
    step = replace(STEP, entry=1 / 2**20)
    for seconds in (0.0, 0.01, 0.5, 1.0, 2.0, 9.0):
        by_hand = next((n for n in range(40) if step.decode(n, 3, 100) >= seconds), 40)
        assert step.steps_until(seconds, 40, 3, 100) == by_hand
