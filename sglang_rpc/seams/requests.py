"""One request's options: checked at the door, attached where the scheduler takes it in."""

from __future__ import annotations

from typing import Any

from sglang_rpc.config import RequestOptions
from sglang_rpc.errors import ConfigError
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.seams import refusals
from sglang_rpc.seams.settings import config_of


def validate(tokenizer_manager: Any, obj: Any, *args: Any, **kwargs: Any) -> None:
    """BEFORE TokenizerManager._validate_one_request. Raises ValueError, which every endpoint turns into HTTP 400."""
    config = config_of(tokenizer_manager.server_args)
    sampling_params = getattr(obj, "sampling_params", None)
    if config is None or not isinstance(sampling_params, dict):
        return
    # Whether think tokens are known is the scheduler's to say; it refuses there what passes here.
    RequestOptions.from_custom_params(sampling_params.get("custom_params"), config)
    refusal = refusals.refuse_request(obj)
    if refusal is not None and refusal.severity is refusals.Severity.REJECT:
        raise ConfigError(refusal.sentence)


def attach_state(_result: Any, scheduler: Any, req: Any) -> None:
    """AFTER Scheduler.init_req_max_new_tokens: `req.rpc` holds RPC's state; wrong options end the request with 400."""
    if getattr(scheduler, "rpc", None) is None:
        return
    runtime = scheduler.rpc
    try:
        options = RequestOptions.from_custom_params(
            req.sampling_params.custom_params, runtime.config, can_gate=runtime.compressor.markers is not None
        )
        refusal = refusals.refuse_request(req, options.asked and options.enabled)
        if refusal is not None and refusal.severity is refusals.Severity.REJECT:
            raise ConfigError(refusal.sentence)
    except ConfigError as error:
        req.rpc = None
        req.set_finish_with_abort(str(error))
        return
    req.rpc = RequestState(options, refused=None if refusal is None else refusal.sentence)
