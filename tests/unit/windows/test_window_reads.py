"""SGLang's attention in PyTorch, over two pools: each layer reads where it has written."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sglang_rpc.startup import cpu
from sglang_rpc.startup.cpu.window_reads import read_where_written

HEADS, DIM, WINDOW = 2, 4, 3


@pytest.fixture
def backend():
    """Rows 1 and 3 of 6 and 4 entries, whose slots in the window layers' pool lie in another order."""
    cpu.prepare()
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

    generator = torch.Generator().manual_seed(0)
    mapping = torch.zeros(30, dtype=torch.int64)
    mapping[1:21] = torch.randperm(20, generator=generator) + 1
    made = object.__new__(TorchNativeAttnBackend)
    made.use_sliding_window_kv_pool = True
    made.token_to_kv_pool = SimpleNamespace(translate_loc_from_full_to_swa=lambda slots: mapping[slots])
    made.mapping = mapping
    made.rows = torch.randint(1, 21, (5, 8), generator=generator, dtype=torch.int32)
    made.kv = torch.randn(2, 30, HEADS, DIM, generator=generator)
    return made


def attend(backend, decode: bool, window: int | None, read=None):
    """Of the newest token of each row, or of all of its tokens; `read` is put around SGLang's function."""
    rows, lengths = torch.tensor([1, 3]), torch.tensor([6, 4])
    queries = torch.randn(2 if decode else 10, HEADS, DIM, generator=torch.Generator().manual_seed(1))
    output = torch.empty_like(queries)
    kind = type(backend)
    original = kind._run_sdpa_forward_decode if decode else kind._run_sdpa_forward_extend
    more = (lengths, None) if decode else (lengths, torch.zeros_like(lengths), lengths, None)
    given = (backend, queries, output, *backend.kv, backend.rows, rows, *more)
    options = dict(scaling=0.5, enable_gqa=False, causal=not decode, is_cross_attn=False, sliding_window_size=window)
    (original if read is None else lambda *args, **kw: read(original, *args, **kw))(*given, **options)
    return output


@pytest.mark.parametrize("decode", [True, False])
def test_a_window_layer_reads_its_own_slots(backend, decode):
    wrong = attend(backend, decode, WINDOW)
    right = attend(backend, decode, WINDOW, read_where_written)
    backend.rows = backend.mapping[backend.rows.long()].int()
    assert torch.equal(right, attend(backend, decode, WINDOW))
    assert not torch.equal(right, wrong)


@pytest.mark.parametrize("decode", [True, False])
def test_other_layers_and_other_pools_are_left_alone(backend, decode):
    assert torch.equal(attend(backend, decode, None, read_where_written), attend(backend, decode, None))
    backend.use_sliding_window_kv_pool = False
    assert torch.equal(attend(backend, decode, WINDOW, read_where_written), attend(backend, decode, WINDOW))


def test_entries_that_have_left_the_window_need_no_slot(backend):
    right = attend(backend, True, WINDOW, read_where_written)
    slots = backend.rows[1, :2].long()
    rest = set(backend.rows[[1, 3]].flatten().tolist()) - set(slots.tolist())
    backend.mapping[[slot for slot in slots.tolist() if slot not in rest]] = 0
    assert torch.equal(right[:1], attend(backend, True, WINDOW, read_where_written)[:1])
