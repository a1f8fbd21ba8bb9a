"""SGLang versions: that all of them are pinned, required and told apart, and that what is said of each is so."""

from __future__ import annotations

import inspect
import json
import tomllib
from array import array
from pathlib import Path
from types import SimpleNamespace

import pytest

from sglang_rpc import doctor
from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.contract import pins, versions
from sglang_rpc.contract.refusals.server import SERVER_ROWS, Arguments
from sglang_rpc.errors import IncompatibleSGLangError
from sglang_rpc.hooks import unresumable
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.startup import cpu
from tests.fakes.requests import Req
from tests.fakes.scheduler import Scheduler

ROOT = Path(__file__).resolve().parents[2]
NEWEST = list(versions.VERSIONS)[-1]


def order(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def test_every_version_is_pinned_and_the_newest_is_last():
    pinned = [json.loads(path.read_text())["sglang"] for path in (ROOT / "patches").glob("sglang-*.json")]
    assert sorted(pinned, key=order) == list(versions.VERSIONS)


def test_the_requirement_allows_them_and_no_other():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert f"sglang>={next(iter(versions.VERSIONS))},<={NEWEST}" in project["project"]["dependencies"]


@pytest.mark.parametrize("name", versions.VERSIONS)
def test_a_version_is_found_by_its_name(name):
    assert versions.of(name).name == versions.of(f"{name}+cu130").name == name


def test_another_version_is_taken_for_the_newest():
    assert versions.of("0.4.1") is versions.of("9.0") is versions.VERSIONS[NEWEST]


def test_an_absent_argument_has_its_value_and_any_other_is_missed():
    arguments = Arguments(SimpleNamespace(there=3, both=4), {"gone": False, "both": 5})
    assert (arguments.there, arguments.gone, arguments.both) == (3, False, 4)
    with pytest.raises(IncompatibleSGLangError, match=rf"no lost, .* install SGLang {versions.SUPPORTED}, or "):
        arguments.lost  # noqa: B018


@pytest.mark.parametrize("version", versions.VERSIONS.values(), ids=versions.VERSIONS)
def test_what_is_absent_is_read_by_a_refusal_and_refuses_nothing(version):
    read = set()

    class Reader:
        def __getattr__(self, name):
            read.add(name)
            raise AttributeError(name)

    for row in SERVER_ROWS:
        try:
            given = row.given(Arguments(Reader(), version.absent_arguments))
        except IncompatibleSGLangError:
            continue  # it looks at more than what is absent
        assert not given, row.name
    assert set(version.absent_arguments) <= read


def test_only_targets_of_hooks_move():
    declared = {hook.target for hook in doctor.every_hook()}
    for version in versions.VERSIONS.values():
        assert set(version.moved_targets) <= declared
        assert len({version.here(hook).target for hook in doctor.every_hook()}) == len(declared)


# ---- the SGLang that is installed -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here():
    cpu.prepare()
    import sglang

    version = versions.current()
    assert version.name == pins.public(sglang.__version__)
    return version


def test_it_lacks_the_arguments_that_it_is_said_to_lack(here):
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.server_args import ServerArgs

    arguments = resolving_view(ServerArgs(model_path="dummy"))
    assert arguments.model_path == "dummy"
    assert not [name for name in here.absent_arguments if hasattr(arguments, name)]


def test_a_request_that_ends_while_it_waits_is_answered_where_sglang_answers_it(here, monkeypatch):
    from sglang.srt.managers import scheduler as module

    sglangs = getattr(module.Scheduler, "send_abort_output", module.Scheduler._abort_on_queued_limit)
    assert "self.ipc_channels.send_to_tokenizer.send_output(" in inspect.getsource(sglangs)
    monkeypatch.setattr(module, "_make_abort_req", lambda req, finished_reason: (req.rid, finished_reason))
    state = RequestState(RequestOptions.from_custom_params(None, RPCConfig()))
    state.hooks.ended = "why"
    req = Req(rpc=state, is_retracted=True, output_ids=array("q", [1]))
    scheduler = Scheduler()
    assert unresumable.end_if_unresumable(SimpleNamespace(scheduler=scheduler), req)
    answer = {"type": "abort", "status_code": 503, "message": "why"}
    assert scheduler.ipc_channels.send_to_tokenizer.sent == [(("rid", answer), req)]
    assert scheduler.beam_coordinator.retired == [req]
