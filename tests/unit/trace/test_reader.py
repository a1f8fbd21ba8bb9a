"""Reading trace files: what is no trace is refused in a sentence."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from eval.accuracy.errors import EvalError
from eval.trace_view import holdings, reader
from sglang_rpc.trace.writer import pack
from tests.loops.decode_loop import config
from tests.loops.traced_loop import Traced


@pytest.mark.parametrize(("sets", "candidates", "keep"), [(1, 1, 1), (3, 8, 2), (5, 9, 9), (2, 1000, 0), (28, 77, 30)])
def test_packed_bits_come_back(sets, candidates, keep):
    chosen = np.sort(np.random.default_rng(0).permuted(np.tile(np.arange(candidates), (sets, 1)), axis=1)[:, :keep])
    bits = reader.unpack(pack(chosen, candidates), sets, candidates)
    assert [np.flatnonzero(row).tolist() for row in bits] == chosen.tolist()
    for wrong in ((sets + 1, candidates), (sets, candidates + 8), (sets, max(0, candidates - 8))):
        assert reader.unpack(pack(chosen, candidates), *wrong) is None
    assert reader.unpack(pack(chosen, candidates)[:-8], sets, candidates) is None


def test_bits_that_swell_are_not_unpacked():
    bomb = pack(np.zeros((1, 1), int), 2**27)
    tracemalloc.start()
    try:
        assert reader.unpack(bomb, 3, 100) is None
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> list[dict]:
    traced = Traced(tmp_path_factory.mktemp("good"), config())
    request = traced.loop.add()
    traced.loop.run(45)
    traced.finish(request)
    (file,) = traced.files()
    return [json.loads(line) for line in file.read_text().splitlines()]


def refusal(path: Path, lines: list[dict] | bytes) -> str:
    content = lines if isinstance(lines, bytes) else "".join(json.dumps(line) + "\n" for line in lines).encode()
    path.write_bytes(content)
    with pytest.raises(EvalError) as refused:
        holdings.compose(reader.read(path))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_is_no_trace_is_refused(tmp_path, good):
    file = tmp_path / "a.jsonl"
    for content in (
        b"",
        b"\n",
        b"hello\n",
        b"[1]\n",
        b"{}\n",
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b'{"kind": "end"}\n',
    ):
        assert "is no trace" in refusal(file, content)
    assert "reads format 1" in refusal(file, [{**good[0], "format": 2}])
    with pytest.raises(EvalError, match="cannot be read"):
        reader.read(tmp_path / "nowhere.jsonl")
    with pytest.raises(EvalError, match="cannot be read"):
        reader.read(tmp_path)


WRONG = {
    "no layers": lambda t: t[0].pop("layers"),
    "too many layers": lambda t: t[0].update(layers=2**17),
    "half a layer": lambda t: t[0].update(layers=1.5),
    "a prompt of text": lambda t: t[0].update(prompt="abc"),
    "true is no id": lambda t: t[0].update(prompt=[True]),
    "an unknown line": lambda t: t[1].update(kind="gossip"),
    "an output that is none": lambda t: t[1].update(output=None),
    "more generated than told": lambda t: t[1].update(generated=400),
    "another prompt": lambda t: t[1].update(prompt_length=4),
    "a row that ends before it begins": lambda t: t[1].update(end=3),
    "more kept than there are": lambda t: t[1].update(keep=99),
    "other bits": lambda t: t[1].update(kept=t[2]["kept"]),
    "bits of nothing": lambda t: t[1].update(kept="?"),
    "one too few kept": lambda t: t[1].update(keep=t[1]["keep"] - 1),
    "a bomb": lambda t: t[1].update(kept=pack(np.zeros((1, 1), int), 10**8)),
    "think that is no pair": lambda t: t[1].update(think=[1]),
    "a receipt without counts": lambda t: t[-1].update(receipt={"held": 3}),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_line_that_is_wrong_is_named(tmp_path, good, change):
    lines = json.loads(json.dumps(good))
    change(lines)
    assert "a.jsonl: line " in refusal(tmp_path / "a.jsonl", lines)


def test_lines_that_do_not_follow_are_refused(tmp_path, good):
    file = tmp_path / "a.jsonl"
    assert "does not follow" in refusal(file, [good[0], {**good[2], "output": good[1]["output"] + good[2]["output"]}])
    assert "nothing to see yet" in refusal(file, good[:1])
    assert "line 5 stands behind the last line" in refusal(file, [*good, good[-1]])
    end = {**good[-1], "receipt": {**good[-1]["receipt"], "held": good[-1]["receipt"]["held"] + 1}}
    assert "its receipt says" in refusal(file, [*good[:-1], end])


def test_every_cut_is_read_or_refused(tmp_path, good):
    """A file of an aborted request, of a full disk, or just now being written."""
    whole = "".join(json.dumps(line) + "\n" for line in good).encode()
    first_line = whole.index(b"\n") + 1
    file, seen = tmp_path / "a.jsonl", set()
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        if length < first_line:
            with pytest.raises(EvalError, match="is no trace"):
                reader.read(file)
            continue
        trace = reader.read(file)
        assert trace.cut == (whole[:length][-1:] != b"\n")
        seen.add(len(trace.compressions))
        if trace.compressions:
            assert len(holdings.compose(trace).stages) == len(trace.compressions) + 1
    assert seen == {0, 1, 2}
