"""The KV of a retracted request, on the host while it waits to come back."""

import logging

from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.hooks import rows
from sglang_rpc.hooks.runtime import SchedulerRPC
from sglang_rpc.memory.host_backup import Backup
from sglang_rpc.runtime.request_state import RequestState

logger = logging.getLogger(__name__)


def is_worth_it(state: RequestState) -> bool:
    """Whether a retracted request is saved, and not simply computed again."""
    return bool(state.active or state.evicted or state.taken)


def save(runtime: SchedulerRPC, req: Req, state: RequestState) -> Backup | None:
    """Copy `req`'s row to the host; None if there is nothing worth it, or no room for it. Counts and logs a refusal."""
    prompt = len(req.origin_input_ids)
    entries = state.clock.physical(rows.known(req, state) - 1, state.front(prompt))
    if runtime.never_backed_up or not is_worth_it(state):
        return None
    if len(req.output_ids) == 0 or not req.kv.holds_kv:
        return None
    if not entries <= req.kv.kv_committed_len <= entries + 1 or req.input_embeds is not None:
        return None  # still being prefilled
    if runtime.backups.has_states and req.kv.kv_committed_len != entries:
        return None  # its state is of a token more, which cannot be taken out of it
    if req.return_logprob and 0 <= req.logprob_start_len < prompt:
        return None  # SGLang wants the prompt's log probabilities again, and so its prefill
    # The forward in flight may still write the row's last entry and, in its query slot, the newest query. Both belong
    # to the token whose result is thrown away and computed again; that query replaces one that no window needs.
    runtime.fence()
    row = runtime.scheduler.req_to_token_pool.req_to_token[req.kv.req_pool_idx, :entries].long()
    recording = state.recording
    queries = None if recording.slot is None or recording.ahead else runtime.ring.of(recording.slot)
    state_slot = None
    if runtime.backups.has_states:
        assert req.kv.mamba_pool_idx is not None, f"{req.rid} holds a row and no recurrent state"
        state_slot = req.kv.mamba_pool_idx.view(1)
    key = req.extra_key, tuple(req.origin_input_ids)
    backup = runtime.backups.save(row, state.fixed(prompt), key, queries, state_slot)
    if backup is None:
        runtime.compressor.counters.backups_refused += 1
        logger.warning(
            "RPC %s: no room for its KV among the host backups (%.2f of %.2f GB in use); it will be prefilled again",
            req.rid, runtime.backups.used / 1e9, runtime.backups.limit / 1e9,
        )  # fmt: skip
    return backup


def forget(runtime: SchedulerRPC, req: Req) -> None:
    """Drop `req`'s backup, if it has one."""
    state = req.rpc
    if state is not None and state.hooks.saved is not None:
        runtime.backups.drop(state.hooks.saved.backup)
        state.hooks.saved = None
        runtime.report_backups()
