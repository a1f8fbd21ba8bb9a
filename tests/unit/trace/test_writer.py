"""Names and folders of trace files, and a disk that is full, slow or hangs."""

import logging
import threading
import time
from pathlib import Path

import pytest

from eval.trace_view import holdings, reader
from sglang_rpc.errors import ConfigError
from sglang_rpc.hooks import runtime as hooks_runtime
from sglang_rpc.trace import writer as recorder
from sglang_rpc.trace.writer import check_folder
from tests.fakes.models import GroupCoordinator
from tests.fakes.scheduler import Scheduler
from tests.loops.decode_loop import LAYERS, Loop, config
from tests.loops.traced_loop import Traced

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
    assert file.name.isascii()
    assert len(file.name) < 140
    assert file.suffix == ".jsonl"
    assert not set(file.name) & set('/\\ "')
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
    assert (tmp_path / "a" / "b").is_dir()
    assert not list((tmp_path / "a" / "b").iterdir())
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
    assert said.levelno == logging.ERROR
    assert "No space left" in said.getMessage()
    assert said.exc_info is None
    after = traced.only()
    assert after.cut
    assert not before.cut
    assert len(after.compressions) == 1
    assert after.receipt is None
    traced.truth[id(request)] = traced.truth[id(request)][:1]
    traced.check(request, after)


def test_a_slow_writer_leaves_kept_sets_out_and_says_so(tmp_path, monkeypatch, caplog):
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
    result = holdings.compose(trace)
    assert [stage.epoch for stage in result.stages] == [0, 0, 0, None, None, 1, 1]
    assert result.held(3) is None
    assert result.held(5).sum(1).tolist() == [result.stages[5].held] * LAYERS
    receipt = request.state.receipt(request.generated)
    assert (result.stages[-1].held, result.stages[-1].evicted) == (receipt["held"], receipt["evicted"])
    assert sum("cannot keep up" in record.getMessage() for record in caplog.records) == 1


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
    assert loop.compressor._backend.observer is None
    assert request.state.hooks.trace is None


@pytest.mark.parametrize(
    ("aggregation", "rank", "traces"), [("all", None, True), ("group", None, True), ("all", 0, True), ("all", 1, False)]
)
def test_one_rank_of_those_that_keep_the_same_writes(tmp_path, aggregation, rank, traces):
    group = None if rank is None else GroupCoordinator(rank, 2)
    asked = config(aggregation=aggregation, trace=str(tmp_path))
    compressor = Loop(asked, reduce=None if group is None else lambda scores: scores).compressor
    tracer = hooks_runtime._tracer(Scheduler(), asked, compressor, group)
    assert (tracer is not None) == traces == (compressor._backend.observer is not None)


def test_not_asked_for_there_is_none():
    assert hooks_runtime._tracer(None, config(), None, GroupCoordinator(0, 2)) is None


def test_a_text_is_its_owners_alone(tmp_path):
    traced = Traced(tmp_path / "new", config())
    request = traced.loop.add()
    traced.loop.run(30)
    traced.finish(request)
    (file,) = traced.files()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


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
    assert "more than 50 token ids wait" in caplog.text
    assert caplog.text.count("--rpc-trace stops") == 1
    assert len(request.done) == 5  # serving went on
