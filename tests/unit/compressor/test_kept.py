"""What is kept, by each setting: every compression is checked entry by entry by the loop's oracle."""

import threading

import pytest
import torch

from tests.loops.decode_loop import Loop, config
from tests.unit.compressor.checks import assert_all_slots_are_back


@pytest.mark.parametrize("aggregation", ["all", "group"])
@pytest.mark.parametrize("selector", ["official", "paper"])
@pytest.mark.parametrize(("pooling", "kernel"), [("avg", 7), ("avg", 1), ("max", 1), ("avg", 11)])
def test_what_is_kept_equals_the_oracle(aggregation, selector, pooling, kernel):
    settings = config(aggregation=aggregation, selector=selector, pooling=pooling, kernel_size=kernel)
    loop = Loop(settings)
    request = loop.add()
    loop.run(90)
    assert len(request.done) == 5
    layers = loop.held(request)
    assert layers[0] != layers[1]  # each layer chooses for itself
    assert (layers[0][0] == layers[0][1]) == (aggregation == "all")


@pytest.mark.parametrize("aggregation", ["all", "group"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (8, 1), (1, 1)])
def test_other_head_layouts_and_a_logit_cap(aggregation, heads, kv_heads):
    loop = Loop(config(aggregation=aggregation), heads=heads, kv_heads=kv_heads, logit_cap=0.8)
    request = loop.add()
    loop.run(60)
    assert len(request.done) == 3


@pytest.mark.parametrize("aggregation", ["all", "group"])
def test_latents_that_are_key_and_value_in_one_move_once(aggregation):
    # One head for all: there is nothing to keep apart.
    loop = Loop(config(aggregation=aggregation), heads=4, kv_heads=1, latent=True)
    request = loop.add()
    loop.run(100)
    assert len(request.done) > 2


@pytest.mark.parametrize("keys_as", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("aggregation", ["all", "group"])
def test_keys_in_other_dtypes_are_scored_by_what_they_stand_for(keys_as, aggregation):
    loop = Loop(config(aggregation=aggregation), keys_as=keys_as)
    request = loop.add()
    loop.run(60)
    assert len(request.done) == 3


def test_requests_due_in_one_step_are_compressed_together_as_alone():
    together = Loop(config())
    requests = [together.add(row, prompt=3 * row) for row in (0, 1, 3)]
    calls = []
    compress = together.compressor.compress
    together.compressor.compress = lambda cs: (calls.append(len(cs)), compress(cs))
    together.run(60)
    assert calls == [3, 3, 3]
    for request in requests:
        alone = Loop(config())
        same = alone.add(request.row, prompt=3 * request.row)
        alone.run(60)
        assert alone.held(same) == together.held(request)
    assert together.compressor.counters.requests_compressed == 3
    assert_all_slots_are_back(together)


def test_a_window_below_the_servers():
    loop = Loop(config(interval=32, window=16))
    small, own, default = (
        loop.add(row, **options)
        for row, options in ((0, {"window": 3}), (1, {"interval": 12, "window": 5, "ratio": 3}), (2, {}))
    )
    loop.run(110)
    assert [g for g, _, _ in small.done] == [35, 67, 99]
    assert [g for g, _, _ in own.done] == [17, 29, 41, 53, 65, 77, 89, 101]
    assert [g for g, _, _ in default.done] == [48, 80]
    assert_all_slots_are_back(loop)


def test_two_ranks_that_add_their_scores_select_as_one():
    whole = Loop(config(), heads=8, kv_heads=4)
    request = whole.add()
    whole.run(70)

    barrier, given = threading.Barrier(2, timeout=30), {}

    def reduce_for(rank):
        def reduce(scores):
            given[rank] = scores
            barrier.wait()
            total = given[0] + given[1]
            barrier.wait()
            return total

        return reduce

    ranks, errors = [], []
    for rank in range(2):
        share = slice(2 * rank, 2 * rank + 2)
        loop = Loop(config(), heads=8, kv_heads=4, heads_of=share, reduce=reduce_for(rank), check=False)
        ranks.append((loop, loop.add()))

    def play(loop):
        try:
            loop.run(70)
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=play, args=(loop,)) for loop, _ in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    for (loop, part), heads in zip(ranks, (slice(0, 2), slice(2, 4)), strict=True):
        assert part.done == request.done
        assert len(part.done) == 4
        assert loop.held(part) == [layer[heads] for layer in whole.held(request)]
