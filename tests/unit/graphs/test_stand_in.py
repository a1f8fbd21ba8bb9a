"""What a replay does, and what a capture does not permit."""

from __future__ import annotations

import pytest
import torch

from tests.unit.graphs import stand_in
from tests.unit.graphs.memory import Freed
from tests.unit.graphs.stand_in import NotInCapture


@pytest.fixture
def device(monkeypatch):
    return stand_in.install(monkeypatch)


def captured(device, work):
    """`work`, warmed up and captured; and what it returned in the capture."""
    with device.warming_up():
        work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = work()
    return graph, made


def test_a_replay_takes_what_lies_there_then_and_a_capture_writes_nothing(device):
    rows, table, target = torch.tensor([1, 2]), torch.arange(5.0), torch.zeros(4)
    graph, made = captured(device, lambda: target[:2].add_(table[rows] * 2))
    assert made.data_ptr() == target.data_ptr()
    assert target.tolist() == [2.0, 4.0, 0.0, 0.0]  # the warm-up's
    graph.replay()
    assert target.tolist() == [4.0, 8.0, 0.0, 0.0]
    rows.copy_(torch.tensor([4, 3]))
    table += 1
    graph.replay()
    assert target.tolist() == [14.0, 16.0, 0.0, 0.0]


def test_views_and_lists_of_them_are_the_memory_that_they_show(device):
    wide = torch.arange(6.0)
    graph, (left, right) = captured(device, lambda: [part + 1 for part in wide.split(3)])
    wide.zero_()
    graph.replay()
    assert left.tolist() == right.tolist() == [1.0, 1.0, 1.0]


def test_branches_and_numbers_are_those_of_the_capture(device):
    target, state = torch.zeros(1), {"add": 1, "again": True}

    def work():
        target.add_(state["add"])
        if state["again"]:
            target.add_(10)

    graph, _ = captured(device, work)
    target.zero_()
    state.update(add=5, again=False)
    graph.replay()
    assert target.item() == 11


def test_memory_of_the_pool_is_garbage_until_it_is_written(device):
    source, kept = torch.ones(2, dtype=torch.int64), []
    first, made = captured(device, lambda: kept.append(source + 1) or kept[-1])
    target = torch.zeros(2, dtype=torch.int64)
    second, _ = captured(device, lambda: target.copy_(kept[1]))  # what the first one's capture allocated
    assert made[0] != 2
    first.replay()
    assert made.tolist() == [2, 2]
    second.replay()
    assert target[0] != 2


def test_memory_that_was_freed_is_not_used(device):
    source, target = [torch.ones(4)], torch.zeros(2)
    graph, _ = captured(device, lambda: target.copy_(source[0][2:]))
    graph.replay()
    assert target.all()
    source.clear()
    with pytest.raises(Freed):
        graph.replay()


FORBIDDEN = {
    "item": lambda x: x.sum().item(),
    "a branch": lambda x: bool(x.any()),
    "to the host": lambda x: x.cpu(),
    "to a list": lambda x: x.tolist(),
    "to NumPy": lambda x: x.numpy(),
    "from the host": lambda x: torch.tensor([1]),
    "a mask": lambda x: x[x > 0],
    "to a mask": lambda x: x.__setitem__(x > 0, x[:1]),
    "nonzero": lambda x: x.nonzero(),
    "equal": lambda x: torch.equal(x, x),
    "unique": lambda x: x.unique(),
    "synchronize": lambda _: torch.cuda.synchronize(),
}


@pytest.mark.parametrize("work", FORBIDDEN.values(), ids=FORBIDDEN)
def test_the_host_neither_waits_nor_copies(device, work):
    x = torch.arange(3)
    with pytest.raises(NotInCapture):
        captured(device, lambda: work(x))
    assert not torch.cuda.is_current_stream_capturing()


def test_the_hosts_memory_is_left_alone(device):
    lengths = torch.arange(3)
    device.on_host(lengths)
    with pytest.raises(NotInCapture, match="host's memory"):
        captured(device, lambda: lengths[1:] + 1)


def test_nothing_runs_for_the_first_time(device):
    x = torch.arange(3)
    with pytest.raises(NotInCapture, match="first time"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        x.mul(2)

    def kernel(target: torch.Tensor) -> None:
        target += 1

    with pytest.raises(NotInCapture, match="first time"):
        captured(device, lambda: device.launch(kernel, torch.cuda.is_current_stream_capturing(), x))


def test_a_kernel_is_kept_as_operators_are(device):
    target = torch.zeros(3, dtype=torch.int64)

    def kernel(target: torch.Tensor) -> None:
        target += target.tolist()[0] + 1  # a kernel may read what it likes

    graph, _ = captured(device, lambda: device.launch(kernel, (), target))
    assert target.tolist() == [1, 1, 1]  # the warm-up's
    graph.replay()
    assert target.tolist() == [3, 3, 3]
