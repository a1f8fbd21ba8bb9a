"""States of one request."""

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.memory.arena import HostBytes
from sglang_rpc.memory.host_backup import Backup, HostKV
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.runtime.segment import SegmentTracker, ThinkMarkers, TokenMarker

START, END, WORD = 900, 901, 1
MARKERS = ThinkMarkers(TokenMarker(START), TokenMarker(END))
SETTINGS = {"interval": 64, "window": 8, "ratio": 4, "min_kept": 0, "scope": "think"}


def state(**given) -> RequestState:
    return RequestState(RequestOptions.from_custom_params({"rpc": given}, RPCConfig(**SETTINGS)))


def thinking(prompt: list[int], output: list[int], **given) -> RequestState:
    result = state(**given)
    result.segment = SegmentTracker(MARKERS, prompt)
    result.segment.advance(output, len(output))
    return result


def backup(queries: bool = False) -> Backup:
    empty = HostBytes(())
    none = HostKV(empty, 0)
    return Backup(none, "prompt", none, empty if queries else None, empty)
