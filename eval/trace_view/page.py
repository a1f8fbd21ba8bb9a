"""One trace as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.trace_view.holdings import NEVER, Holdings, Stage, compose
from eval.trace_view.reader import Trace
from eval.trace_view.tokens import pieces, visible

HERE = Path(__file__).parent
#: Of the server's configuration, beside the request's own options.
SHOWN = ("policy", "aggregation", "selector", "pooling", "kernel_size", "when", "pressure")


def page(trace: Trace, tokenizer: Any | None) -> str:
    """The page's text. Raises EvalError if the trace does not add up."""
    # `<` does not stand in it, so nothing that a token spells can end the element it stands in.
    data = json.dumps(page_data(trace, tokenizer)).replace("<", "\\u003c")
    text = (HERE / "page.html").read_text(encoding="utf-8")
    for place, content in (("page.css", ""), ("page.js", ""), ("data", data)):
        text = text.replace(f"@@{place}@@", content or (HERE / place).read_text(encoding="utf-8"), 1)
    return text


def page_data(trace: Trace, tokenizer: Any | None) -> dict[str, Any]:
    """What the page draws, as JSON."""
    found = compose(trace)
    width = _width(len(found.stages))
    return {
        "request": _request(trace),
        "receipt": trace.receipt,
        "finish": trace.finish,
        "notes": _notes(trace, found, tokenizer),
        "layers": trace.layers,
        "heads": trace.heads,
        "prompt": {"ids": trace.prompt, "texts": _texts(trace.prompt, tokenizer)},
        "output": {"ids": trace.output, "texts": _texts(trace.output, tokenizer)},
        "think": trace.think,
        "stages": [_stage(stage, index, trace, len(found.stages)) for index, stage in enumerate(found.stages)],
        "curve": curve(found.stages),
        "bytes": width,
        "epochs": [{"tokens": dropped.shape[1], "dropped": pack_stages(dropped, width)} for dropped in found.epochs],
    }


def curve(stages: Sequence[Stage]) -> list[tuple[int, int]]:
    """(generated, held) along the request: entries grow by one a token, and fall at once."""
    points = [(0, 0)]
    for stage in stages:
        generated, held = points[-1]
        points.append((stage.generated, held + stage.generated - generated))
        if stage.rebuilt:  # some time before; it shows here
            points.append((stage.generated, stage.generated))
        points.append((stage.generated, stage.held))
    return [point for index, point in enumerate(points) if index == 0 or point != points[index - 1]]


def pack_stages(dropped: np.ndarray, width: int) -> str:
    """base64 of zlib of `width`-byte little-endian integers, of which the largest stands for NEVER."""
    never = 256**width - 1
    return base64.b64encode(zlib.compress(np.where(dropped == NEVER, never, dropped).astype(f"<u{width}"))).decode()


def _width(stages: int) -> int:
    return next(width for width in (1, 2, 4) if stages < 256**width - 1)


def _texts(ids: Sequence[int], tokenizer: Any | None) -> list[str]:
    return [visible(piece) for piece in pieces(ids, tokenizer)]


def _request(trace: Trace) -> dict[str, Any]:
    header = trace.header
    options = {name: header["options"].get(name) for name in ("interval", "window", "ratio", "scope")}
    server = {name: header["config"].get(name) for name in SHOWN}
    if header["config"].get("policy_seed"):
        server["policy_seed"] = header["config"]["policy_seed"]
    about = {name: header.get(name) for name in ("model", "scoring", "began", "version")}
    return {"rid": header["rid"], "options": {**options, **server}, "about": about}


def _stage(stage: Stage, index: int, trace: Trace, stages: int) -> dict[str, Any]:
    c = stage.compression
    last = trace.receipt is not None and index == stages - 1
    name = "before the first compression" if index == 0 else "at the end" if last else f"after compression {index}"
    said = []
    if c is not None and c.late:
        said.append("after its due date")
    if c is not None and c.early:
        said.append("before its due date, for want of memory")
    if stage.rebuilt:
        said.append("the row was rebuilt from its tokens since the stage before, so everything was held again")
    if stage.epoch is None:
        said.append("which tokens are held is not known: the server could not keep up with writing it down")
    return {
        "name": name,
        "said": "; ".join(said),
        "generated": stage.generated,
        "held": stage.held,
        "evicted": stage.evicted,
        "epoch": stage.epoch,
        "compressions": index - last,
    }


def _notes(trace: Trace, found: Holdings, tokenizer: Any | None) -> list[str]:
    notes = []
    if tokenizer is None:
        notes.append(
            "Token ids stand for the text: no tokenizer was found on this machine at the path the trace names; "
            "--tokenizer PATH names one."
        )
    if trace.receipt is None:
        notes.append(
            "The trace has no last line: the request was aborted, is not finished, or the server stopped tracing. "
            "What it generated after its last compression is not in it."
        )
    if trace.cut:
        notes.append("The file ends within a line, which is left out: it was being written, or the disk was full.")
    if any(stage.epoch is None for stage in found.stages):
        notes.append("The server could not keep up with writing: some kept sets are missing from the trace.")
    if trace.think is None:
        notes.append("Thoughts and answer are not told apart: the server knew no think markers.")
    return notes
