"""Trace files: written in a played decode loop, read back, and composed into what the loop's pool really holds."""

import json
import logging
import threading
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eval.accuracy.errors import EvalError
from eval.trace_view import holdings, reader
from sglang_rpc.config import RequestOptions
from sglang_rpc.errors import ConfigError
from sglang_rpc.hooks import runtime as hooks_runtime
from sglang_rpc.memory.host_backup import HostBackup
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.trace import writer as recorder
from sglang_rpc.trace.tracer import Tracer
from sglang_rpc.trace.writer import check_folder, pack
from sglang_rpc.types import Compression
from tests.loops.decode_loop import END, LAYERS, MARKERS, START, WORD, Loop, config
from tests.loops.traced_loop import Traced


@pytest.mark.parametrize("aggregation", ["all", "group"])
@pytest.mark.parametrize("policy", ["rpc", "random", "streaming"])
def test_what_is_composed_is_what_the_pool_holds(tmp_path, aggregation, policy):
    traced = Traced(tmp_path, config(aggregation=aggregation, policy=policy), check=False)
    request = traced.loop.add(prompt=7)
    traced.loop.run(90)
    traced.finish(request)
    trace = traced.only()
    assert (trace.layers, trace.heads) == (LAYERS, 2 if aggregation == "group" else 1)
    assert trace.prompt == request.prompt and trace.output == request.output[:90]
    found = traced.check(request, trace)
    receipt = request.state.receipt(90)
    end = found.stages[-1]
    assert trace.receipt == receipt and trace.finish == {"type": "stop"} and not trace.cut
    assert (end.generated, end.held, end.evicted) == (receipt["generated"], receipt["held"], receipt["evicted"])
    assert len(trace.compressions) == receipt["compressions"] == 5
    assert [c.event for c in trace.compressions] == [1, 2, 3, 4, 5]


def test_latents_have_one_set_a_layer(tmp_path):
    traced = Traced(tmp_path, config(aggregation="group"), heads=4, kv_heads=1, latent=True)
    request = traced.loop.add()
    traced.loop.run(60)
    traced.finish(request)
    traced.check(request, traced.only())


def test_requests_compressed_together_have_a_file_each(tmp_path):
    traced = Traced(tmp_path, config())
    requests = [traced.loop.add(row, prompt=3 * row, **more) for row, more in ((0, {}), (1, {"ratio": 2}), (3, {}))]
    idle = traced.loop.add(2, enabled=False)
    for request in requests:
        traced.rids[id(request)] = f"row-{request.row}"
    traced.loop.run(60)
    for request in [*requests, idle]:
        traced.finish(request)
    traces = {trace.header["rid"]: trace for trace in map(reader.read, traced.files())}
    assert sorted(traces) == ["row-0", "row-1", "row-3"]  # none of one that was not compressed
    for request in requests:
        traced.check(request, traces[f"row-{request.row}"])
    assert traces["row-1"].header["options"]["ratio"] == 2


def test_a_compression_that_keeps_no_candidate(tmp_path):
    tracer = Tracer(str(tmp_path), {"layers": 3, "heads": 1, "config": {}}, None, torch.device("cpu"))
    options = RequestOptions.from_custom_params(None, config(), knows_markers=False)
    c = Compression(row=1, slot=0, prompt_length=2, generated=9, window=3, begin=4, end=11, keep=0, event=1, late=False)
    tracer.observer([c], torch.empty(3, 1, 1, 0, dtype=torch.int32))
    tracer.compressed(RequestState(options), c, "rid", [1, 2], list(range(20)))
    tracer.flush()
    (file,) = tmp_path.iterdir()
    held = holdings.compose(reader.read(file)).held(1)
    assert [np.flatnonzero(row).tolist() for row in held] == [[0, 1, 6, 7, 8]] * 3


def test_a_request_that_never_ends_can_be_seen_as_far_as_it_went(tmp_path):
    traced = Traced(tmp_path, config())
    request = traced.loop.add(output=list(range(1000, 1640)))
    traced.loop.run(45)
    trace = traced.only()
    assert trace.receipt is None and trace.output == list(range(1000, 1036))
    traced.check(request, trace)


def test_a_row_rebuilt_from_tokens_is_whole_again(tmp_path):
    traced = Traced(tmp_path, config())
    request = traced.loop.add()
    traced.loop.run(40)
    traced.loop.retract(request)
    traced.loop.run(40)
    traced.loop.retract(request)
    traced.truth[id(request)].append(traced.loop.held(request))
    receipt = request.state.receipt(80)
    request.state.hooks.trace.finish(request.output[:80], {"type": "abort"}, receipt)
    trace = traced.only()
    found = traced.check(request, trace)
    assert [stage.rebuilt for stage in found.stages] == [False, False, False, True, False, False, True]
    assert found.stages[-1].held == receipt["held"] == 80 and found.stages[-1].evicted == receipt["evicted"] > 0
    assert len(found.epochs) == 3 and [c.late for c in trace.compressions] == [False, False, True, False, False]


def test_a_row_that_came_back_as_it_was_goes_on(tmp_path):
    traced = Traced(tmp_path, config())
    loop, backups = traced.loop, HostBackup(traced.loop.layers, 10**9)
    request = loop.add(prompt=9)
    loop.run(44)
    loop.leave(request, backups)
    loop.come_back(request, 2, backups)
    loop.run(30)
    traced.finish(request)
    found = traced.check(request, traced.only())
    assert not any(stage.rebuilt for stage in found.stages) and len(found.epochs) == 1


def test_early_compressions(tmp_path):
    traced = Traced(tmp_path, config())
    request = traced.loop.add()
    assert traced.loop.record_ahead(request)
    traced.loop.run(15)
    assert traced.loop.evict_early(request, 4) is not None
    traced.loop.run(30)
    traced.finish(request)
    trace = traced.only()
    assert [c.early for c in trace.compressions] == [True, False, False]
    traced.check(request, trace)


@pytest.mark.parametrize("scope", ["think", "all"])
def test_thoughts_and_answer_are_told_apart(tmp_path, scope):
    traced = Traced(tmp_path, config(scope=scope), markers=MARKERS)
    output = [WORD] * 3 + [START] + [WORD] * 50 + [END] + [WORD] * 9
    request = traced.loop.add(output=[*output, *[WORD] * 600])
    traced.loop.run(30)
    traced.tracer.flush()
    assert traced.only().think == (4, None)
    traced.loop.run(len(output) - 30)
    traced.finish(request)
    trace = traced.only()
    assert trace.think == (4, 55)
    traced.check(request, trace)


def test_without_markers_nothing_is_said_of_thoughts(tmp_path):
    traced = Traced(tmp_path, config())
    traced.loop.add()
    traced.loop.run(30)
    assert traced.only().think is None


# --- names, folders, failures -----------------------------------------------------------------------------------

NAMES = ["../../etc/passwd", "a/b", "..", "", "\0", "x" * 5000, "\n{}", "\ud800", "Größe", "C:\\x", "-rf", "%s%d"]


@pytest.mark.parametrize("rid", NAMES, ids=repr)
def test_a_users_own_rid_stays_in_the_folder(tmp_path, rid):
    folder = tmp_path / "traces"
    folder.mkdir()
    traced = Traced(folder, config())
    request = traced.loop.add()
    traced.rids[id(request)] = rid
    traced.loop.run(25)
    (file,) = traced.files()
    assert (
        file.name.isascii() and len(file.name) < 140 and file.suffix == ".jsonl" and not set(file.name) & set('/\\ "')
    )
    assert list(tmp_path.iterdir()) == [folder]
    assert reader.read(file).header["rid"] == rid
    assert file.read_bytes().isascii()


def test_two_requests_of_one_name_have_two_files(tmp_path):
    traced = Traced(tmp_path, config())
    for row in (0, 1):
        traced.loop.add(row)
    traced.loop.run(25)
    assert len(traced.files()) == 2


def test_a_folder_is_made_and_one_that_cannot_be_written_is_refused(tmp_path):
    check_folder(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir() and not list((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/traces")):
        with pytest.raises(ConfigError, match="--rpc-trace must name a folder that can be written in") as refused:
            check_folder(str(wrong))
        assert "\n" not in str(refused.value)


def test_a_full_disk_stops_tracing_and_nothing_else(tmp_path, monkeypatch, caplog):
    traced = Traced(tmp_path, config())
    request = traced.loop.add()
    traced.loop.run(25)
    traced.tracer.flush()
    before = traced.only()
    write = recorder.Line.write

    def full(line):
        with line.path.open("ab") as file:
            file.write(b'{"kind": "compr')
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recorder.Line, "write", full)
    traced.loop.run(16)
    traced.tracer.flush()
    monkeypatch.setattr(recorder.Line, "write", write)
    traced.loop.run(40)
    traced.finish(request)
    assert request.state.totals.compressions == 4
    (said,) = [record for record in caplog.records if "--rpc-trace stops" in record.getMessage()]
    assert said.levelno == logging.ERROR and "No space left" in said.getMessage() and said.exc_info is None
    after = traced.only()
    assert after.cut and not before.cut and len(after.compressions) == 1 and after.receipt is None
    traced.truth[id(request)] = traced.truth[id(request)][:1]
    traced.check(request, after)


def test_a_writer_that_falls_behind_leaves_kept_sets_out_and_says_so(tmp_path, monkeypatch, caplog):
    traced = Traced(tmp_path, config())
    request = traced.loop.add()
    traced.loop.run(25)
    traced.tracer.flush()
    segment, write = threading.Event(), recorder.Line.write
    monkeypatch.setattr(recorder.Line, "write", lambda line: (segment.wait(30), write(line)))
    monkeypatch.setattr(recorder, "PENDING_BYTES", LAYERS * 8 * 8)  # the second one's eight kept candidates, int64
    began = time.monotonic()
    traced.loop.run(32)  # the second waits, the third finds no room
    assert time.monotonic() - began < 10
    segment.set()
    traced.tracer.flush()
    monkeypatch.setattr(recorder, "PENDING_BYTES", 2**20)
    traced.loop.run(16)  # there is room again, and nothing to compose it with
    traced.loop.retract(request)
    traced.loop.run(8)
    traced.finish(request)
    trace = traced.only()
    assert [c.kept is None for c in trace.compressions] == [False, False, True, False, False]
    found = holdings.compose(trace)
    assert [stage.epoch for stage in found.stages] == [0, 0, 0, None, None, 1, 1]
    assert found.held(3) is None and found.held(5).sum(1).tolist() == [found.stages[5].held] * LAYERS
    receipt = request.state.receipt(request.generated)
    assert (found.stages[-1].held, found.stages[-1].evicted) == (receipt["held"], receipt["evicted"])
    assert sum("falls behind" in record.getMessage() for record in caplog.records) == 1


def test_a_writer_that_hangs_holds_a_bounded_number_of_lines(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(recorder, "PENDING_LINES", 3)
    segment = threading.Event()
    monkeypatch.setattr(recorder.Line, "write", lambda line: segment.wait(30))
    traced = Traced(tmp_path, config())
    traced.loop.add()
    traced.loop.run(120)
    assert "3 lines wait to be written" in caplog.text
    segment.set()
    traced.tracer.flush()


def test_without_a_tracer_nothing_is_shown():
    loop = Loop(config())
    request = loop.add()
    loop.run(40)
    assert loop.compressor._backend.observer is None and request.state.hooks.trace is None


class Group:
    """Tensor-parallel ranks, as SGLang's group says it."""

    def __init__(self, rank: int):
        self.rank_in_group, self.world_size = rank, 2


@pytest.mark.parametrize(
    ("aggregation", "rank", "traces"), [("all", None, True), ("group", None, True), ("all", 0, True), ("all", 1, False)]
)
def test_one_rank_of_those_that_keep_the_same_writes(tmp_path, aggregation, rank, traces):
    group = None if rank is None else Group(rank)
    asked = config(aggregation=aggregation, trace=str(tmp_path))
    compressor = Loop(asked, reduce=None if group is None else lambda scores: scores).compressor
    args = SimpleNamespace(model_path="a model", tokenizer_path=None)
    tracer = hooks_runtime._tracer(SimpleNamespace(server_args=args), asked, compressor, group)
    assert (tracer is not None) == traces == (compressor._backend.observer is not None)


def test_not_asked_for_there_is_none():
    assert hooks_runtime._tracer(None, config(), None, Group(0)) is None


# --- reading ----------------------------------------------------------------------------------------------------


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
    file, seen = tmp_path / "a.jsonl", set()
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        try:
            trace = reader.read(file)
        except EvalError as error:
            assert "is no trace" in str(error)
            continue
        assert trace.cut == (whole[:length][-1:] != b"\n")
        seen.add(len(trace.compressions))
        if trace.compressions:
            assert len(holdings.compose(trace).stages) == len(trace.compressions) + 1
    assert seen == {0, 1, 2}


def test_a_text_is_its_owners_alone(tmp_path):
    traced = Traced(tmp_path / "new", config())
    request = traced.loop.add()
    traced.loop.run(30)
    traced.finish(request)
    (file,) = traced.files()
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700


def test_texts_that_wait_for_a_slow_disk_are_bounded_too(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(recorder, "PENDING_IDS", 50)
    segment = threading.Event()
    write = recorder.Line.write
    monkeypatch.setattr(recorder.Line, "write", lambda line: (segment.wait(30), write(line)))
    traced = Traced(tmp_path, config())
    request = traced.loop.add(prompt=7)
    with caplog.at_level(logging.ERROR):
        traced.loop.run(90)
    segment.set()
    traced.tracer.flush()
    assert "more than 50 token ids wait" in caplog.text and caplog.text.count("--rpc-trace stops") == 1
    assert len(request.done) == 5  # serving went on
