"""Positions, and where a step ends, through the hooks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sglang_rpc.hooks import draft_metadata, positions
from sglang_rpc.hooks.model import DraftRPC, ModelRPC
from sglang_rpc.hooks.query_slots import QuerySlots
from sglang_rpc.hooks.speculative import cut_at_due_date
from sglang_rpc.memory.query_ring import DraftQueries, QueryRing
from sglang_rpc.memory.speculative_rows import SpeculativeRows
from tests.fakes.batches import ForwardBatch, ForwardMode, SamplingInfo, ScheduleBatch
from tests.fakes.memory import ReqToTokenPool
from tests.fakes.models import ModelRunner
from tests.fakes.requests import Req
from tests.fakes.runtime import Runtime
from tests.fakes.scheduler import Scheduler
from tests.unit.test_positions import request

ROWS = torch.tensor([2, 5])


@pytest.fixture
def table() -> SpeculativeRows:
    made = SpeculativeRows(8, drafts=3, device="cpu")
    made.evict(5, 29)
    return made


@pytest.fixture
def pool(table) -> ReqToTokenPool:
    return ReqToTokenPool(rpc=Runtime(Scheduler(), speculative=table))


def drafting(pool: ReqToTokenPool) -> ModelRunner:
    """The runner of a draft model; `pool.ring` is its model's."""
    shape = dict(layers=1, heads=1, head_dim=1, dtype=torch.float32)
    pool.ring = QueryRing(slots=1, rows=8, window=4, device="cpu", drafts=3, **shape)
    draft = DraftRPC(DraftQueries(pool.ring, **shape), [])
    return ModelRunner(is_draft_worker=True, req_to_token_pool=pool, rpc_draft=draft)


def forward(
    mode: ForwardMode, runner: ModelRunner, counted: torch.Tensor, lens=(1, 1), evicted=29, axes=None
) -> ForwardBatch:
    """What the hook makes of a step's rows, of which the second has lost entries. SGLang `counted` their positions
    physically, and those of the three `axes` of mrope."""
    reqs = [request(10, 20, 30), request(10, 50, 31, evicted)]
    batch = ScheduleBatch(reqs, mode, extend_lens=list(lens), req_pool_indices=ROWS)

    def init_new(cls, batch, model_runner):
        return cls(
            mode, ROWS, counted, seq_lens=torch.tensor([30, 31]), orig_seq_lens=torch.tensor([10, 10]),
            extend_seq_lens=torch.tensor(lens), mrope_positions=axes,
        )  # fmt: skip

    return positions.make_logical(init_new, ForwardBatch, batch, runner)


def verifying(table, pool) -> ModelRunner:
    ring = QueryRing(
        layers=1, slots=1, rows=8, window=4, heads=1, head_dim=1, dtype=torch.float32, device="cpu", drafts=3
    )
    model = ModelRPC(ring, [], False, QuerySlots(1, 1, 0), speculative=table)
    return ModelRunner(rpc=model, req_to_token_pool=pool)


def test_rows_that_verify_count_their_text(table, pool):
    counted = torch.tensor([30, 31, 32, 31, 32, 33])
    found = forward(ForwardMode.TARGET_VERIFY, verifying(table, pool), counted).positions
    assert found.tolist() == [30, 31, 32, 60, 61, 62]
    assert counted.tolist() == [30, 31, 32, 31, 32, 33]  # SGLang's own tensor is another's, too


@pytest.mark.parametrize(
    ("mode", "lens", "counted", "logical"),
    [
        (ForwardMode.DECODE, (1, 1), [30, 31], [30, 60]),
        (ForwardMode.DRAFT_EXTEND_V2, (2, 2), [30, 31, 31, 32], [30, 31, 60, 61]),
        (ForwardMode.EXTEND, (3, 1), [27, 28, 29, 30], [27, 28, 29, 59]),
    ],
)
def test_so_does_the_draft(pool, mode, lens, counted, logical):
    draft = drafting(pool)
    assert forward(mode, draft, torch.tensor(counted), lens).positions.tolist() == logical


def test_all_axes_of_mrope_count_the_text(table, pool):
    """After an image of 7 tokens that takes 3 positions, SGLang counts 4 less on each axis."""
    for mode, runner in (
        (ForwardMode.TARGET_VERIFY, verifying(table, pool)),
        (ForwardMode.DRAFT_EXTEND_V2, drafting(pool)),
    ):
        axes = torch.tensor([[26, 27, 28, 27, 28, 29]] * 3)
        found = forward(mode, runner, torch.tensor([30, 31, 32, 31, 32, 33]), (3, 3), axes=axes)
        assert found.positions.tolist() == [30, 31, 32, 60, 61, 62]
        assert found.mrope_positions.tolist() == [[26, 27, 28, 56, 57, 58]] * 3
        assert axes.tolist() == [[26, 27, 28, 27, 28, 29]] * 3


def test_a_draft_steps_on_along_the_axes(pool):
    """SGLang adds 1 to them in place with each step, which must reach no tensor of another's."""
    axes = torch.tensor([[26, 27]] * 3)
    found = forward(ForwardMode.DECODE, drafting(pool), torch.tensor([30, 31]), axes=axes)
    found.mrope_positions.add_(1)
    assert found.mrope_positions.tolist() == [[27, 57]] * 3
    assert axes.tolist() == [[26, 27]] * 3


def test_nothing_is_added_where_nobody_is_compressed(pool):
    counted = torch.tensor([30, 31])
    assert forward(ForwardMode.DECODE, drafting(pool), counted, evicted=0).positions is counted


def test_a_model_runner_without_rpc_is_left_alone():
    counted = torch.tensor([30, 31])
    assert forward(ForwardMode.DECODE, ModelRunner(), counted).positions is counted


def test_a_draft_records_a_restored_row_as_its_model_does(pool):
    """A row of one token after its prompt, beside a prompt's chunk; its query goes where a verify's would."""
    runner = drafting(pool)
    queries = runner.rpc_draft.queries
    slot = pool.ring.acquire(5)
    restored = request(10, 50, 31, 29)
    restored.rpc.recording.slot = slot
    batch = ScheduleBatch([request(10, 9, 9), restored], ForwardMode.EXTEND, extend_lens=[3, 1], req_pool_indices=ROWS)

    def init_new(cls, batch, model_runner):
        lens = torch.tensor([3, 1])
        return cls(
            ForwardMode.EXTEND, ROWS, torch.tensor([6, 7, 8, 30]), seq_lens=torch.tensor([9, 31]),
            orig_seq_lens=torch.tensor([9, 60]), extend_seq_lens=lens,
        )  # fmt: skip

    step = positions.make_logical(init_new, ForwardBatch, batch, runner)
    assert step.rpc.tokens.tolist() == [3]
    slots, entries = step.rpc.where
    assert (slots.tolist(), entries.tolist()) == ([slot], [59 % queries.entries])


class Sampled:
    """SGLang's `eagle_sample`: accepts all, and notes the lengths that it draws by."""

    def __call__(self, verify_input, batch, logits, mask=None, *, watermark_state=None):
        self.lengths = batch.seq_lens.tolist()
        index = torch.arange(6, dtype=torch.int32).view(2, 3)
        return torch.arange(6), torch.tensor([3, 3], dtype=torch.int32), index


@pytest.mark.parametrize(("seed", "drawn_by"), [(None, [30, 31]), (torch.tensor([1, 2]), [30, 60])])
def test_a_step_is_cut_and_draws_by_the_text(table, pool, seed, drawn_by):
    table.stop_at(5, 33)
    batch = ScheduleBatch(
        [Req(), Req()], ForwardMode.TARGET_VERIFY, seq_lens=torch.tensor([30, 31]), req_pool_indices=ROWS,
        req_to_token_pool=pool, sampling_info=SamplingInfo(seed),
    )  # fmt: skip
    sampled = Sampled()
    predict, lens, index = cut_at_due_date(sampled, None, batch, None, None, watermark_state=None)
    assert sampled.lengths == drawn_by
    assert batch.seq_lens.tolist() == [30, 31]
    assert (predict.tolist(), lens.tolist(), index.tolist()) == (list(range(6)), [3, 2], [[0, 1, 2], [3, 4, -1]])


def test_a_batch_without_rpc_is_not_cut():
    batch = ScheduleBatch(seq_lens=torch.tensor([30, 31]), req_pool_indices=ROWS)
    assert cut_at_due_date(Sampled(), None, batch, None)[1].tolist() == [3, 3]


def test_metadata_of_draft_steps_counts_entries(pool):
    logical = torch.tensor([30, 60, 0])
    batch = ForwardBatch(ForwardMode.DECODE, torch.tensor([2, 5, 0]), logical)
    seen = []

    def common_template(steps, forward_batch, buffer, call):
        seen.append((forward_batch.positions.tolist(), buffer))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        draft_metadata.count_entries(common_template, SimpleNamespace(req_to_token_pool=pool), batch, "buffer", None)
    assert seen == [([30, 31, 0], "buffer")]
    assert batch.positions is logical


def test_metadata_without_rpc_is_left_alone():
    batch, seen = ForwardBatch(ForwardMode.DECODE, ROWS, torch.tensor([30, 60])), []
    steps = SimpleNamespace(req_to_token_pool=ReqToTokenPool())
    draft_metadata.count_entries(lambda steps, batch: seen.append(batch.positions.tolist()), steps, batch)
    assert seen == [[30, 60]]
