"""A request that ends on a due date which no step has looked at."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sglang_rpc.config import RequestOptions
from sglang_rpc.hooks import last_date
from sglang_rpc.runtime.request_state import RequestState

P, R, PROMPT = 64, 8, 30


def compressed(monkeypatch, entries: int, output: int, reuse: str = "continue", slot: int | None = 1) -> list[int]:
    """Lengths at which it was compressed as it ended with so many entries, and tokens, after its prompt."""
    seen: list[int] = []
    state = RequestState(RequestOptions(True, P, R, 4, "all", reuse=reuse))
    state.recording.slot, state.recording.since = slot, P
    req = SimpleNamespace(
        rpc=state,
        origin_input_ids=[1] * PROMPT,
        output_ids=[2] * output,
        output_ids_through_stop=[2] * output,
        kv=SimpleNamespace(holds_kv=True, req_pool_idx=1, kv_committed_len=PROMPT + entries),
    )
    poll = SimpleNamespace(poll=lambda state, row, prompt, generated, ids: generated)
    pool = SimpleNamespace(rpc=SimpleNamespace(compressor=poll))
    monkeypatch.setattr(last_date, "compress_rows", lambda runtime, due: seen.extend(c for _, c in due))
    last_date.compress_at_the_end(SimpleNamespace(tree_cache=SimpleNamespace(req_to_token_pool=pool)), req)
    return seen


def test_it_is_compressed_before_others_go_on_from_it(monkeypatch):
    assert compressed(monkeypatch, entries=P + R, output=P + R + 1) == [P + R]


@pytest.mark.parametrize(
    ("entries", "output", "more"),
    [
        (P + R - 1, P + R, {}),
        (P + R, P + R, {}),  # nobody could go on after what it stands for
        (P + R, P + R + 1, {"reuse": "share"}),
        (P + R, P + R + 1, {"slot": None}),
    ],
    ids=["before its date", "its newest token has an entry", "share", "no queries"],
)
def test_otherwise_it_is_left_as_it_is(monkeypatch, entries, output, more):
    assert compressed(monkeypatch, entries, output, **more) == []
