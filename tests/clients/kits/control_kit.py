"""What a trainer does to a running server: pausing, flushing, and updating the weights while requests run."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tests.clients.target import Target, expect

PROMPT = "<bos> <K4> <N56> <last> A0 +3 A1 +7 A2 +1 A3 +5 <think>"
TOKENS = 1000
RUNNING = 8


def _post(target: Target, path: str, body: dict[str, Any]) -> Any:
    status, answer = target.call(path, body)
    expect(status == 200, answer)
    return answer


def _while_running(target: Target, act) -> list[dict[str, Any]]:
    """The answers of RUNNING greedy requests during which `act` was called."""
    with ThreadPoolExecutor(RUNNING) as pool:
        asked: list[Future] = [pool.submit(target.generate, PROMPT, TOKENS) for _ in range(RUNNING)]
        time.sleep(1)
        expect(not all(future.done() for future in asked), "the requests were done before anything was tried")
        act()
        return [future.result(timeout=600) for future in asked]


def _pause(target: Target, mode: str) -> list[dict[str, Any]]:
    def act() -> None:
        _post(target, "/pause_generation", {"mode": mode})
        time.sleep(1)
        _post(target, "/continue_generation", {})

    return _while_running(target, act)


def check_pause_in_place(target: Target) -> None:
    expect(all(answer["meta_info"]["completion_tokens"] == TOKENS for answer in _pause(target, "in_place")))


def check_pause_and_retract(target: Target) -> None:
    expect(all(answer["meta_info"]["completion_tokens"] == TOKENS for answer in _pause(target, "retract")))


def check_pause_and_abort(target: Target) -> None:
    reasons = [answer["meta_info"]["finish_reason"]["type"] for answer in _pause(target, "abort")]
    expect("abort" in reasons, reasons)


def check_flush(target: Target) -> None:
    target.generate(PROMPT, TOKENS)
    target.flush()
    expect(target.generate(PROMPT, 8)["meta_info"]["cached_tokens"] == 0)


def check_a_flush_amid_requests_is_refused(target: Target) -> None:
    statuses = []
    answers = _while_running(target, lambda: statuses.append(target.call("/flush_cache", method="POST")[0]))
    expect(statuses == [400] and len(answers) == RUNNING, statuses)


def check_weights_are_updated_when_idle(target: Target) -> None:
    target.flush()
    before = target.generate(PROMPT, TOKENS)["text"]
    _update(target)
    expect(target.generate(PROMPT, TOKENS)["text"] == before)


def check_weights_are_updated_amid_a_pause(target: Target) -> None:
    def act() -> None:
        _post(target, "/pause_generation", {"mode": "retract"})
        _update(target)
        _post(target, "/continue_generation", {})

    expect(all(answer["meta_info"]["completion_tokens"] == TOKENS for answer in _while_running(target, act)))


def check_weights_are_updated_after_an_abort(target: Target) -> None:
    answers = _while_running(target, lambda: _update(target, abort_all_requests=True))
    expect(len(answers) == RUNNING)
    expect(target.generate(PROMPT, TOKENS)["meta_info"]["completion_tokens"] == TOKENS)


def _update(target: Target, **more: Any) -> None:
    answer = _post(target, "/update_weights_from_disk", {"model_path": target.model, **more})
    expect(answer["success"], answer)
