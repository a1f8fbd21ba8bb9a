"""Fakes of SGLang's objects against the Protocols that declare what RPC reads, calls and writes of those."""

import dataclasses
import inspect

import pytest
from typing_extensions import get_protocol_members

from sglang_rpc.contract.sglang import batches as declared_batches
from sglang_rpc.contract.sglang import disaggregation as declared_disaggregation
from sglang_rpc.contract.sglang import memory as declared_memory
from sglang_rpc.contract.sglang import model as declared_model
from sglang_rpc.contract.sglang import requests as declared_requests
from sglang_rpc.contract.sglang import scheduler as declared_scheduler
from sglang_rpc.contract.sglang import server as declared_server
from sglang_rpc.contract.targets import OURS
from sglang_rpc.hooks.runtime import SchedulerRPC
from tests.fakes import batches, disaggregation, memory, models, requests, runtime, scheduler

#: What fakes have beside the declared names: `rpc`, `rpc_...`, which RPC puts there itself, and what tests set or read.
OWN = {
    scheduler.DPAttnAdapter: {"asked"},
    scheduler.FutureMap: {"published"},
    memory.Allocator: {"free", "kvcache"},
    memory.ReqToTokenPool: {"rpc", "rpc_ring"},
    memory.Tree: {"evictable", "states"},
    models.KVCacheConfigurator: {"requests", "token_bytes"},
    models.ModelConfig: {"kv_heads"},
    models.ModelRunner: {"rpc", "rpc_draft"},
    requests.Req: {"rpc"},
    requests.ReqKvInfo: {"cursors"},
    scheduler.BeamCoordinator: {"retired"},
    scheduler.DraftWorker: {"runners"},
    scheduler.Scheduler: {"in_flight", "rpc"},
    scheduler.Sender: {"sent"},
}
PAIRS = [
    (getattr(declared, name), fake)
    for declared, fakes in (
        (declared_batches, batches),
        (declared_disaggregation, disaggregation),
        (declared_memory, memory),
        (declared_model, models),
        (declared_requests, requests),
        (declared_scheduler, scheduler),
        (declared_server, models),
    )
    for name, fake in vars(fakes).items()
    if inspect.isclass(fake) and fake.__module__ == fakes.__name__ and name in vars(declared)
    if vars(declared)[name].__module__ == declared.__name__
]


def names(cls: type) -> set[str]:
    """Fields, properties and methods, but those that Python itself gives a class."""
    fields = {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    functions = {
        name: value.fget if isinstance(value, property) else inspect.unwrap(value) if callable(value) else value
        for name, value in vars(cls).items()
    }
    own = {name for name, f in functions.items() if inspect.isfunction(f) and f.__module__ == cls.__module__}
    return fields | {name for name in own if not name.startswith("__")}


def test_every_fake_has_a_protocol():
    fakes = {
        fake
        for module in (batches, disaggregation, memory, models, requests, scheduler)
        for fake in vars(module).values()
        if inspect.isclass(fake) and fake.__module__ == module.__name__
    }
    assert fakes == {fake for _, fake in PAIRS}
    assert len(PAIRS) == len(fakes) > 15
    assert set(OWN) <= fakes


@pytest.mark.parametrize(("protocol", "fake"), PAIRS, ids=[fake.__name__ for _, fake in PAIRS])
def test_a_fake_has_the_declared_names_and_no_others(protocol, fake):
    declared = {name for name in get_protocol_members(protocol) if not name.startswith(OURS)}
    own = OWN.get(fake, set())
    assert names(fake) - own == declared
    assert own <= names(fake)
    for name in declared:
        method = getattr(protocol, name, None)
        if callable(method):
            assert [(p.name, p.kind) for p in inspect.signature(getattr(fake, name)).parameters.values()] == [
                (p.name, p.kind) for p in inspect.signature(method).parameters.values()
            ]


def test_the_fake_runtime_has_attributes_of_the_real_one():
    source = inspect.getsource(SchedulerRPC.__init__)
    for name in names(runtime.Runtime):
        assert f"self.{name}:" in source or f"self.{name} =" in source, name
