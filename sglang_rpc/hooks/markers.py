"""A model's think markers: from the flags, else from SGLang's reasoning parser."""

import logging

from sglang_rpc.config import RPCConfig
from sglang_rpc.contract.sglang.scheduler import Scheduler, Tokenizer
from sglang_rpc.contract.sglang.server import ReasoningDetector, ServingArgs
from sglang_rpc.errors import ConfigError, UnsupportedError
from sglang_rpc.policy.lightthinker import Gists
from sglang_rpc.runtime.segment import Marker, TextMarker, ThinkMarkers, TokenMarker

logger = logging.getLogger(__name__)


def find_markers(scheduler: Scheduler, config: RPCConfig) -> ThinkMarkers | None:
    """The markers; None if no end marker is known, which makes every request's scope `all`. Raises UnsupportedError."""
    tokenizer = scheduler.tokenizer
    start, end = config.think_start, config.think_end
    if start is None or end is None:
        parsed_start, parsed_end = _from_reasoning_parser(scheduler, config.scope)
        start = parsed_start if start is None else start
        end = parsed_end if end is None else end
    if end is None:
        if config.scope == "think":
            logger.info(
                "RPC: no think tokens known (no --reasoning-parser, no --rpc-think-end): every generated token may be "
                "compressed, as with --rpc-scope all"
            )
        return None
    return ThinkMarkers(None if start is None else _marker(start, tokenizer), _marker(end, tokenizer))


def find_gists(scheduler: Scheduler, config: RPCConfig) -> Gists | None:
    """Policy lightthinker's tokens, by id; None of any other policy. Raises UnsupportedError, ConfigError."""
    if config.gist_tokens is None:
        return None
    ids = tuple(_one_token(token, "--rpc-gist-tokens", scheduler.tokenizer) for token in config.gist_tokens)
    resume = config.gist_resume
    resumes = None if resume is None else _one_token(resume, "--rpc-gist-resume", scheduler.tokenizer)
    if resumes in ids:
        raise ConfigError(f"gist_resume must be none of the gist tokens, got {resume!r}", "config.gist_resume")
    return Gists(ids, resumes)


def _one_token(value: str | int, flag: str, tokenizer: Tokenizer | None) -> int:
    if isinstance(value, int):
        return value
    assert tokenizer is not None  # else the server's arguments were refused
    ids = tokenizer.encode(value, add_special_tokens=False)
    if len(ids) != 1:
        raise UnsupportedError(
            f"{flag} {value!r} is {len(ids)} tokens of this model's, and a gist token is one: the model has not been "
            "trained with it; name those that it was trained with",
            "unsupported.gist_tokens",
        )
    return ids[0]


def _from_reasoning_parser(scheduler: Scheduler, scope: str) -> tuple[str | None, str | None]:
    from sglang.srt.runtime_context import get_serving

    serving: ServingArgs = get_serving()
    name = serving.reasoning_parser
    if not name or scheduler.tokenizer is None:
        return None, None
    from sglang.srt.parser.reasoning_parser import ReasoningParser

    parser = ReasoningParser(model_type=name, stream_reasoning=False, tokenizer=scheduler.tokenizer)
    detector: ReasoningDetector = parser.detector
    if getattr(detector, "request_selectable_think_end_tokens", ()):
        if scope == "all":
            return None, None
        raise UnsupportedError(
            f"--reasoning-parser {name} lets each request choose its think tokens, which --rpc-scope think cannot "
            "follow; use --rpc-scope all, or give --rpc-think-start and --rpc-think-end",
            "unsupported.reasoning_parser",
        )
    return detector.think_start_token, detector.think_end_token


def _marker(value: str | int, tokenizer: Tokenizer | None) -> Marker:
    if isinstance(value, int):
        return TokenMarker(value)
    assert tokenizer is not None  # else the server's arguments were refused
    ids = tokenizer.encode(value, add_special_tokens=False)
    return TokenMarker(ids[0]) if len(ids) == 1 else TextMarker(value, tokenizer.decode)
