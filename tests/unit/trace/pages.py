"""A traced request, and what its page embeds."""

import base64
import json
import re
import zlib

import numpy as np

from eval.trace_view import reader
from tests.loops.decode_loop import END, MARKERS, START, config
from tests.loops.traced_loop import Traced

ODD = ["</script><script>alert(1)</script>", "<!--", "&lt;", '"', "\n", "\t", "\0", "\u202e", "\u2028", "a<b", "]]>"]


def traced(folder, steps=90, prompt=7, **settings) -> reader.Trace:
    run = Traced(folder, config(**settings), markers=MARKERS)
    thoughts = [START, *range(300, 366), END]
    request = run.loop.add(prompt=prompt, output=[*range(200, 220), *thoughts, *[5] * 600])
    run.loop.run(steps)
    run.finish(request)
    return run.only()


def embedded(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL).group(1))


def held(data: dict, stage: int) -> np.ndarray:
    """bool [sets, generated], from nothing but what the page embeds."""
    at = data["stages"][stage]
    epoch = data["epochs"][at["epoch"]]
    raw = zlib.decompress(base64.b64decode(epoch["dropped"]))
    dropped = np.frombuffer(raw, f"<u{data['bytes']}").reshape(data["layers"] * data["heads"], epoch["tokens"])
    return dropped[:, : at["generated"]] > stage
