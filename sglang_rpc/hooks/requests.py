"""One request's options: checked at the door, attached where the scheduler takes it in."""

from collections.abc import Callable

from sglang_rpc.config import RequestOptions
from sglang_rpc.contract.refusals.request import refuse_reach, refuse_request
from sglang_rpc.contract.settings import options_of
from sglang_rpc.contract.sglang.requests import GenerateReqInput, Req
from sglang_rpc.contract.sglang.scheduler import Scheduler
from sglang_rpc.contract.sglang.server import TokenizerManager
from sglang_rpc.contract.targets import AROUND, BEFORE, hook
from sglang_rpc.errors import ConfigError
from sglang_rpc.hooks.limits import fit_to_pool, refuse_prompt
from sglang_rpc.hooks.reuse import refuse_foreign_ids
from sglang_rpc.hooks.runtime import runtime_of
from sglang_rpc.runtime.request_state import RequestState


@hook(
    BEFORE,
    "sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request",
    "malformed custom_params.rpc becomes HTTP 400 before the request is queued",
)
def validate(tokenizer_manager: TokenizerManager, obj: GenerateReqInput, *_args: object, **_kwargs: object) -> None:
    """BEFORE TokenizerManager._validate_one_request, once per request, in the server's process.

    Raises ValueError, which every endpoint turns into HTTP 400.
    """
    config = options_of(tokenizer_manager.server_args)
    sampling_params = getattr(obj, "sampling_params", None)
    if config is None or not isinstance(sampling_params, dict):
        return
    # Whether think tokens are known is the scheduler's to say; it refuses there what passes here.
    RequestOptions.from_custom_params(sampling_params.get("custom_params"), config)
    refuse_request(obj)


@hook(
    AROUND,
    "sglang.srt.managers.scheduler.Scheduler.init_req_max_new_tokens",
    "every request passes here once between creation and the queue, and is clipped to what fits uncompressed",
)
def attach_state(original: Callable[..., None], scheduler: Scheduler, req: Req) -> None:
    """AROUND Scheduler.init_req_max_new_tokens, once per request: set `req.rpc`, and how many tokens it may generate.

    SGLang clips that number to what the pool holds uncompressed; RPC sets it to what the pool holds compressed. Wrong
    options, or more tokens than fit, end the request with HTTP 400.
    """
    runtime = runtime_of(scheduler)
    if runtime is None:
        original(scheduler, req)
        return
    asked, at_least = req.sampling_params.max_new_tokens, req.sampling_params.min_new_tokens
    original(scheduler, req)
    try:
        options = RequestOptions.from_custom_params(
            req.sampling_params.custom_params, runtime.config, knows_markers=runtime.compressor.markers is not None
        )
        state = RequestState(options, refused=refuse_request(req, options.asked and options.enabled))
        if runtime.config.reuse != "off":  # also where the request's is: the tree is the same
            refuse_foreign_ids(req)
        if state.active:
            refuse_reach(options, runtime.compressor.reach, runtime.compressor.page)
        runtime.compressor.begin(state, req.origin_input_ids)
        if state.active and state.thoughts is None:  # else nobody knows what it holds, and SGLang's clip is right
            fit_to_pool(scheduler, req, state, asked, at_least)
        refuse_prompt(scheduler, req)
    except ConfigError as error:
        req.rpc = None
        req.set_finish_with_abort(str(error))
        return
    req.rpc = state
