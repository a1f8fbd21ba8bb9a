"""A forward step's batches, as the hooks of positions leave them."""

from __future__ import annotations

import dataclasses

import torch

from sglang_rpc.hooks import positions
from sglang_rpc.hooks.model import ModelRPC
from sglang_rpc.hooks.query_slots import QuerySlots
from sglang_rpc.memory.query_ring import QueryRing
from tests.fakes.batches import ForwardBatch, ForwardMode, ScheduleBatch
from tests.fakes.models import ModelRunner
from tests.fakes.requests import Req


def step(
    mode: ForwardMode, rows: list[tuple[Req, int]], ring: QueryRing, mrope: torch.Tensor | None = None
) -> ForwardBatch:
    """`rows`: (request, tokens of this step). Runs the hooks as SGLang does; returns the forward batch.

    `mrope`: what SGLang computes from physical lengths, [3, tokens].
    """
    reqs, lengths = [req for req, _ in rows], [length for _, length in rows]
    ends = [req.extend_end for req in reqs]
    batch = ScheduleBatch(
        reqs,
        mode,
        extend_lens=lengths,
        orig_seq_lens=torch.tensor(
            [max(end, len(req.origin_input_ids)) for end, req in zip(ends, reqs, strict=True)], dtype=torch.int32
        ),
    )
    positions.count_logically(None, batch)

    def init_new(cls, batch, model_runner):
        return cls(
            forward_mode=mode,
            seq_lens=torch.tensor(ends),
            orig_seq_lens=batch.orig_seq_lens,
            extend_seq_lens=torch.tensor(lengths, dtype=torch.int32),
            req_pool_indices=torch.arange(1, len(reqs) + 1),
            positions=torch.cat([torch.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]),
            mrope_positions=mrope,
        )

    made = positions.make_logical(
        init_new, ForwardBatch, batch, ModelRunner(rpc=ModelRPC(ring, [], False, QuerySlots(1, 1, 0)))
    )
    return dataclasses.replace(made)  # as SGLang copies it before the forward
