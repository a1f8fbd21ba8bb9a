"""What a trace says of a request whose prompt was taken over: positions as if its row held the whole prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sglang_rpc.trace.tracer import RequestTrace
from sglang_rpc.trace.writer import Line
from sglang_rpc.types import Compression


@dataclass
class Lines:
    put_down: list[Line] = field(default_factory=list)

    def put(self, line: Line) -> None:
        self.put_down.append(line)


def test_numbers_count_from_the_whole_prompt():
    lines = Lines()
    trace = RequestTrace(lines, Path("trace"), None)
    c = Compression(row=1, generated=72, window=8, begin=20, end=92, keep=16, prompt_length=60, offset=40)
    trace.compressed(c, None, range(80))
    said = lines.put_down[0].fields
    assert (said["prompt_length"], said["begin"], said["end"], said["keep"]) == (60, 60, 132, 16)
    assert len(said["output"]) == 72
