"""A decode loop that plans a step while the last one runs, and does not know yet how many tokens that one accepted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang_rpc.types import NEVER, Compression
from tests.loops.decode_loop import Loop, Request


class LoopAhead(Loop):
    """Of requests that verify drafts."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        table = self.compressor.speculative
        assert table is not None
        self.table = table
        table.schedule_ahead()
        self._unknown: dict[int, int] = {}  #: by row, what the step in flight accepted
        self.waits = 0  #: steps that were launched only after the last one's result

    def draft(self, accepts: Callable[[], int]) -> None:
        self.poll()
        if any(self._may_be_due(request) for request in self.requests):
            self.waits += 1
            self.settle()
        before = {request.row: request.generated for request in self.requests}
        self._verify(accepts)
        self._unknown = {request.row: request.generated - before[request.row] for request in self.requests}

    def settle(self) -> None:
        """What the step in flight accepted is known."""
        self._unknown.clear()
        self.poll()

    def poll(self) -> None:
        due: list[tuple[Request, Compression]] = []
        for r in sorted(self.requests, key=lambda r: r.state.recording.turn):
            unknown = self._unknown.get(r.row, 0)
            if r.length - unknown < r.state.clock.check_at:
                continue
            known, lag = r.generated - unknown, self.table.lag if unknown else 0
            r.polls.append(known)
            c = self.compressor.poll(r.state, r.row, r.prompt, known, r.output, lag)
            assert c is None or not lag, "what it would compress may be longer"
            due += [(r, c)] if c is not None else []
        if due:
            self._compress(due)

    def _may_be_due(self, r: Request) -> bool:
        unknown = self._unknown.get(r.row, 0)
        return unknown > 0 and r.length - unknown + self.table.lag >= self.table.stops.get(r.row, NEVER)
