"""Which queries a step stores in the query ring."""

import dataclasses
import enum

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sglang_rpc.hooks import capture
from sglang_rpc.hooks.model import ModelRPC
from sglang_rpc.hooks.query_slots import QuerySlots
from sglang_rpc.hooks.step import SingleRows, carrying
from sglang_rpc.memory.query_ring import QueryRing
from tests.fakes.batches import ForwardBatch, ForwardMode, none
from tests.fakes.models import LatentAttention, ModelRunner, PrefillCudaGraphRunner


def decode_step(rows: list[int], positions: list[int]) -> ForwardBatch:
    return ForwardBatch(ForwardMode.DECODE, torch.tensor(rows), torch.tensor(positions))


def extend_step(rows: SingleRows | None) -> ForwardBatch:
    return carrying(ForwardBatch)(ForwardMode.EXTEND, rpc=rows)


def single_rows(tokens: list[int], where: tuple[torch.Tensor, torch.Tensor] | None) -> SingleRows:
    return SingleRows(torch.tensor(tokens), rows=none(), where=where)


class Operators(TorchDispatchMode):
    """Counts what PyTorch runs."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_an_eager_step_stores_only_while_somebody_records():
    ring = QueryRing(layers=2, slots=2, rows=4, window=4, heads=2, head_dim=3, dtype=torch.float32, device="cpu")
    hooks = [capture.Capture(ring, layer, lambda: False) for layer in range(2)]
    queries = torch.randn(2, 6)
    step = decode_step([2, 3], [9, 14])
    with Operators() as operators:
        for hook in hooks:
            hook(None, (queries, None, None, step), {})
    assert operators.count == 0
    assert not hasattr(step, "rpc_where")

    slot = ring.acquire(3)
    for hook in hooks:
        hook(None, (), {"q": queries, "forward_batch": step})
    for layer in range(2):
        assert torch.equal(ring.buffer[layer, slot, 14 % 4], queries[1].view(2, 3))
        others = ring.buffer[layer, slot].clone()
        others[14 % 4] = 0
        assert not others.any()
        assert not ring.buffer[layer, [s for s in (1, 2) if s != slot]].any()


def test_a_capture_and_its_warm_ups_store_though_nobody_records():
    ring = QueryRing(layers=2, slots=2, rows=4, window=4, heads=2, head_dim=3, dtype=torch.float32, device="cpu")
    queries = torch.randn(2, 6)
    step = decode_step([0, 0], [0, 0])
    for layer in range(2):
        capture.Capture(ring, layer, lambda: True)(None, (queries, None, None, step), {})
    assert ring.buffer[:, 0, 0].all()
    assert not ring.buffer[:, 1:].any()


def test_of_an_extend_only_the_rows_of_one_token_are_stored():
    ring = QueryRing(layers=1, slots=2, rows=4, window=4, heads=1, head_dim=2, dtype=torch.float32, device="cpu")
    slot = ring.acquire(1)
    queries = torch.arange(10.0).view(5, 2)
    hook = capture.Capture(ring, 0, lambda: False)
    where = ring.where(torch.tensor([1]), torch.tensor([6]))
    hook(None, (queries, None, None, extend_step(single_rows([4], where))), {})
    assert torch.equal(ring.buffer[0, slot, 2, 0], queries[4])
    before = ring.buffer.clone()
    hook(None, (queries + 1, None, None, extend_step(single_rows([4], None))), {})  # nobody records
    hook(None, (queries + 1, None, None, extend_step(None)), {})
    assert torch.equal(ring.buffer, before)


def test_absorbed_and_roped_queries_make_one_entry():
    ring = QueryRing(layers=1, slots=1, rows=3, window=4, heads=2, head_dim=7, dtype=torch.float32, device="cpu")
    slot = ring.acquire(1)
    # As the absorbing product leaves them: heads outermost in memory.
    absorbed, roped = torch.randn(2, 2, 5).transpose(0, 1), torch.randn(2, 2, 2)
    hook = capture.Capture(ring, 0, lambda: False)
    hook(None, (absorbed, None, None, decode_step([2, 1], [8, 3])), {"q_rope": roped})
    assert torch.equal(ring.buffer[0, slot, 3], torch.cat([absorbed, roped], -1)[1])

    where = ring.where(torch.tensor([1]), torch.tensor([4]))
    hook(None, (absorbed, None, None, extend_step(single_rows([0], where))), {"q_rope": roped})
    assert torch.equal(ring.buffer[0, slot, 0], torch.cat([absorbed, roped], -1)[0])


@pytest.mark.parametrize("padding", [0, 3])
def test_a_decode_step_that_is_labelled_an_extend_is_recorded_as_what_it_is(padding):
    """With DP attention: a peer's step is an extend, and all tokens are padded to the longest one's."""
    ring = QueryRing(layers=2, slots=2, rows=4, window=4, heads=2, head_dim=3, dtype=torch.float32, device="cpu")
    slot = ring.acquire(3)
    queries = torch.randn(2 + padding, 6)
    step = dataclasses.replace(
        carrying(ForwardBatch)(ForwardMode.DECODE, torch.tensor([2, 3]), torch.tensor([9, 14] + [0] * padding)),
        forward_mode=ForwardMode.EXTEND,
        _original_forward_mode=ForwardMode.DECODE,
    )
    for layer in range(2):
        capture.Capture(ring, layer, lambda: False)(None, (queries, None, None, step), {})
        assert torch.equal(ring.buffer[layer, slot, 14 % 4], queries[1].view(2, 3))
    assert int(ring.buffer[:, slot].any(-1).any(-1).sum()) == 2  # one entry a layer


class Method(enum.Enum):
    MHA = 1
    MHA_ONE_SHOT = 2
    MLA = 3
    MLA_FUSED_ROPE_CPU = 4


STEPS = {
    "no single rows": (extend_step(None), False),
    "single rows, nothing recorded": (extend_step(single_rows([0], None)), False),
    "rows to record": (extend_step(single_rows([0], (none(), none()))), True),
    "made for a capture": (ForwardBatch(ForwardMode.EXTEND), False),
}


#: With DP attention, beside a peer's prefill.
LABELLED = ForwardBatch(ForwardMode.EXTEND, _original_forward_mode=ForwardMode.DECODE)


@pytest.mark.parametrize(("step", "recording"), [*STEPS.values(), (LABELLED, True)], ids=[*STEPS, "decodes, labelled"])
@pytest.mark.parametrize("method", Method)
def test_latents_are_not_expanded_in_a_step_with_rows_to_record(step, recording, method):
    attention = LatentAttention("fa3")
    absorbed = Method.MLA if method.name.startswith("MHA") else method
    assert capture.absorb(lambda *_: method, attention, step) is (absorbed if recording else method)
    attention.current_attention_backend = "torch_native"
    assert capture.absorb(lambda *_: method, attention, step) is absorbed


@pytest.mark.parametrize(("step", "recording"), STEPS.values(), ids=STEPS)
def test_a_prefill_with_rows_to_record_replays_no_graph(step, recording):
    ring = QueryRing(layers=1, slots=1, rows=1, window=1, heads=1, head_dim=1, dtype=torch.float32, device="cpu")

    def asked(model: ModelRPC | None) -> bool:
        runner = PrefillCudaGraphRunner(ModelRunner(rpc=model))
        return capture.eager_while_recording(lambda *_: True, runner, step)

    assert asked(ModelRPC(ring, [], False, QuerySlots(1, 1, 0))) is not recording
    assert asked(ModelRPC(ring, [], True, QuerySlots(1, 1, 0))) is False
    assert asked(None) is not recording  # a draft's runner
