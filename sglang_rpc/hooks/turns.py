"""A turn of a session that replaces another one is made of that one's real ids, also while it runs."""

from collections.abc import Callable

from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.contract.targets import AROUND, REUSE, hook
from sglang_rpc.hooks import reuse


@hook(
    AROUND,
    "sglang.srt.session.session_controller.Session._concat_token_arrays",
    "a turn that still runs or waits has a prompt of ids that name compressed KV, which no new request may send",
    REUSE,
)
def of_real_ids(original: Callable[..., object], last_req: Req, *args: object, **kwargs: object) -> object:
    """AROUND Session._concat_token_arrays, which copies the ids of the turn before; for the call, it has its own."""
    shown, last_req.origin_input_ids = last_req.origin_input_ids, reuse.text_of(last_req)
    try:
        return original(last_req, *args, **kwargs)
    finally:
        last_req.origin_input_ids = shown
