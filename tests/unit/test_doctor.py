"""The doctor: what it says, and its exit status, with the real SGLang as it is and made to differ."""

import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sglang_rpc import doctor
from sglang_rpc.contract import versions
from sglang_rpc.contract.pins import Finding, State
from sglang_rpc.startup import cpu, machine
from sglang_rpc.startup.machine import Fact

ROOT = Path(__file__).resolve().parents[2]
VERSION = importlib.metadata.version("sglang")
PINS = ROOT / "patches" / f"sglang-{VERSION}.json"
NEEDS = doctor.needs(VERSION)
PLACES = len(NEEDS)


def python(*arguments, timeout=600):
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("pins")


@pytest.fixture(scope="module")
def said(scratch):
    """What the doctor said under each circumstance of the driver."""
    done = python(Path(__file__).with_name("doctor_driver.py"), scratch)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# ---- with SGLang --------------------------------------------------------------------------------------------


def test_passes_here(said):
    status, text = said["as it is"]
    assert status == 0, text
    assert text.splitlines()[-1] == f"RPC can run here: all {PLACES} places in SGLang are as pinned"
    for hook in doctor.every_hook():
        assert versions.current().here(hook).target.removeprefix("sglang.") in text


def test_json_has_every_place(said):
    status, text = said["as json"]
    report = json.loads(text)
    assert status == 0
    assert report["can_run"] is True
    assert len(report["places"]) == PLACES
    assert {entry["state"] for entry in report["places"]} == {"ok"}
    assert {fact["name"] for fact in report["machine"]} >= {"SGLang", "Python", "PyTorch", "Device", "Plugin"}


def test_pinning_what_is_here_gives_the_pins_of_the_project(said, scratch):
    status, text = said["pin"]
    assert status == 0
    assert text.endswith(f" in {scratch / PINS.name}\n")
    assert text.startswith(f"pinned {PLACES} targets")
    assert (scratch / PINS.name).read_text() == PINS.read_text()


@pytest.mark.parametrize(
    ("circumstance", "target", "state"),
    [
        ("renamed", "sglang.srt.managers.schedule_batch.Req.reset_for_retract", "missing"),
        ("other arguments", "sglang.srt.managers.scheduler.Scheduler.get_next_batch_to_run", "signature changed"),
        ("assumed renamed", "sglang.srt.managers.schedule_batch.Req.set_finish_with_abort", "missing"),
    ],
)
def test_what_breaks_rpc_is_named(said, circumstance, target, state):
    status, text = said[circumstance]
    assert status == 1
    assert f"RPC can't run here: {target}" in text
    line, _verdict = (line for line in text.splitlines() if line.endswith(target.removeprefix("sglang.")))
    assert line.strip().startswith(state)


@pytest.mark.parametrize(
    ("circumstance", "status", "sentence"),
    [
        ("a dense model", 0, "LlamaForCausalLM: full attention; RPC serves it\n"),
        (
            "a draft model",
            1,
            "LlamaForCausalLMEagle is a draft model of speculative decoding and does not work",
        ),
        ("a model with chunks", 1, "Llama4ForCausalLM: full attention and chunked attention; RPC refuses it once "),
        (
            "a model that may have windows",
            0,
            "checked once it is loaded, and it depends on `sliding_window`",
        ),
        ("a model of another package", 0, "SomeForCausalLM: no architecture that RPC knows; its layers are checked"),
        ("no model", 1, "sglang-rpc doctor: SGLang can't read the configuration of "),
    ],
)
def test_it_answers_for_a_model_by_its_configuration(said, circumstance, status, sentence):
    assert said[circumstance][0] == status
    assert sentence in said[circumstance][1]


def test_another_body_is_a_warning(said):
    status, text = said["other body"]
    assert status == 0
    assert "1 warning: sglang.srt.managers.scheduler.Scheduler.get_next_batch_to_run" in text
    assert "body changed" in text


def test_another_version(said):
    status, text = said["unpinned version"]
    assert status == 1
    assert "RPC can't run here: SGLang" in text
    assert f"install SGLang {versions.SUPPORTED}, or set SGLANG_RPC_ALLOW_VERSION=1" in text
    status, text = said["unpinned version allowed"]
    assert status == 0
    assert "RPC can run here, with 1 warning: SGLang" in text


def test_a_list_of_plugins_without_ours_is_a_warning(said):
    status, text = said["not on the list"]
    assert status == 0
    assert "1 warning: SGLANG_PLUGINS" in text


def test_hooked_places_are_still_as_pinned(said):
    status, text = said["hooked"]
    assert status == 0
    assert "are as pinned" in text


def test_install_hooks_all_once_and_beside_other_plugins(said):
    assert said["install"][1] == {
        "installed": True,
        "once": True,
        "bindings": ["classmethod", "staticmethod", "function"],
        "hooks_on_a_shared_target": 2,
    }


def test_the_command_on_a_changed_sglang(tmp_path):
    """Pins that say something else are to the doctor what a changed SGLang is."""
    content = json.loads(PINS.read_text())
    of = {pin["target"]: pin for pin in content["pins"]}
    content["modules"]["sglang.srt.managers.scheduler"] = "0" * 64
    of["sglang.srt.managers.scheduler.Scheduler._collect_inflight_batches"]["fingerprint"] = "0" * 64
    of["sglang.srt.managers.schedule_batch.Req.reset_for_retract"]["signature"] = "(self, mode)"
    (tmp_path / PINS.name).write_text(json.dumps(content))
    done = python("-m", "sglang_rpc.doctor", "--pins", tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert "takes (self), pinned (self, mode); needed: the row is rebuilt from tokens" in done.stdout
    assert "body changed       assumed  srt.managers.scheduler.Scheduler._collect_inflight_batches" in done.stdout
    counts, last = done.stdout.splitlines()[-2:]
    assert counts == f"Places: {PLACES - 2} ok, 1 signature changed, 1 body changed"
    assert last == "RPC can't run here: sglang.srt.managers.schedule_batch.Req.reset_for_retract"


# ---- without ------------------------------------------------------------------------------------------------


def test_without_sglang(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sglang", None)
    assert doctor.main([]) == 1
    assert capsys.readouterr().err.startswith("sglang-rpc doctor: SGLang is not installed; ")


def test_an_sglang_that_cannot_be_imported(monkeypatch, capsys, tmp_path):
    package = tmp_path / "sglang"
    package.mkdir()
    (package / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    for name in [name for name in sys.modules if name.partition(".")[0] == "sglang"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cpu, "prepare", lambda: True)
    assert doctor.main([]) == 1
    err = capsys.readouterr().err
    assert err == (
        "sglang-rpc doctor: SGLang can't be imported: OSError: libcudart.so.13: cannot open shared object file "
        "[error.sglang_broken]\n"
    )


def findings(state=State.OK):
    hook, assumption = NEEDS[0], NEEDS[-1]
    return [Finding(hook, state, "" if state is State.OK else "detail"), Finding(assumption, State.OK)]


@pytest.mark.parametrize("state", list(State))
def test_states_decide(state):
    facts = [Fact("SGLang", "0.5.23")]
    assert doctor.broken(facts, findings(state)) == (state not in (State.OK, State.BODY))
    text = doctor.report(facts, findings(state), PINS)
    assert f"{state.value}  {NEEDS[0].kind}" in text
    assert ("detail; needed: " in text) == (state is not State.OK)


def test_a_problem_of_the_machine_decides():
    assert doctor.broken([Fact("Device", "none", machine.PROBLEM)], findings())
    assert not doctor.broken([Fact("Plugin", "none", machine.WARNING)], findings())


@pytest.fixture
def sgl_kernel(monkeypatch, tmp_path):
    """Installs what SGLang imports FlashAttention 3 from, with its library flash_ops or without."""
    installed = Path(importlib.util.find_spec("sgl_kernel").submodule_search_locations[0])

    def install(flash_ops: bool) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "sgl_kernel"]:
            monkeypatch.delitem(sys.modules, name)
        package = tmp_path / "sgl_kernel"
        package.mkdir()
        (package / "__init__.py").touch()
        for name in ("flash_attn.py", "debug_utils.py"):
            shutil.copy(installed / name, package)
        if flash_ops:
            (package / "flash_ops.py").touch()
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    for name in [name for name in sys.modules if name.partition(".")[0] == "sgl_kernel"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("capability", "rocm", "flash_ops", "flashinfer", "usable"),
    [
        (90, False, True, True, ["fa3", "flashinfer", "torch_native", "triton"]),
        (90, False, True, False, ["fa3", "torch_native", "triton"]),
        (90, False, False, True, ["flashinfer", "torch_native", "triton"]),
        (80, False, False, False, ["torch_native", "triton"]),
        (100, False, True, True, ["flashinfer", "torch_native", "triton"]),
        (70, False, True, True, ["torch_native", "triton"]),
        (94, True, True, True, ["torch_native", "triton"]),
    ],
)
def test_attention_backends_of_a_gpu(monkeypatch, sgl_kernel, capability, rocm, flash_ops, flashinfer, usable):
    sgl_kernel(flash_ops)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if flashinfer else None)
    assert machine.gpu_backends(capability, rocm) == usable


@pytest.mark.parametrize(
    ("capability", "rocm", "flash_ops", "flashinfer", "named", "advice"),
    [
        (90, False, True, True, "", ""),
        (90, False, False, True, "fa3", "add --attention-backend flashinfer"),
        (90, False, False, False, "fa3", "add --attention-backend triton"),
        (80, False, False, True, "", ""),  # SGLang's choice there is another
        (100, False, True, True, "trtllm_mha", "add --attention-backend flashinfer"),
        (103, False, True, False, "trtllm_mha", "add --attention-backend triton"),
        (120, False, True, True, "", ""),  # flashinfer
        (94, True, True, True, "aiter", "add --attention-backend triton"),
    ],
)
def test_a_choice_of_sglangs_that_rpc_cannot_start_with_is_a_warning(
    monkeypatch, sgl_kernel, capability, rocm, flash_ops, flashinfer, named, advice
):
    sgl_kernel(flash_ops)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if flashinfer else None)
    fact = machine._attention(capability, rocm)
    assert fact.advice.endswith(advice)
    assert named in fact.advice
    assert fact.state == (machine.WARNING if advice else machine.OK)
    assert ("fa3" in fact.value) == (flash_ops and capability == 90)


@pytest.mark.parametrize(("sm100", "hip", "named"), [(True, False, "trtllm_mha"), (False, True, "aiter")])
def test_sglang_chooses_what_the_doctor_says(monkeypatch, sm100, hip, named):
    """For a plain dense model; if this differs, `machine._unusable_default` speaks of an older SGLang."""
    base = pytest.importorskip("sglang.srt.arg_groups.model_override_base")
    platform = SimpleNamespace(is_hopper_with_cuda_12_3=False, is_sm100=sm100, is_hip=hip, has_flashinfer=True)
    monkeypatch.setattr(base, "get_platform", lambda: platform)
    monkeypatch.setattr(base, "resolving_view", lambda args: SimpleNamespace(speculative_algorithm=None, tp_size=1))
    monkeypatch.setattr(base, "resolved_view", lambda args: args)
    monkeypatch.setattr(base, "is_no_spec_infer_or_topk_one", lambda args: True)
    model = SimpleNamespace(hf_config=SimpleNamespace(architectures=["LlamaForCausalLM"]), has_asymmetric_kv=False)
    assert base.get_default_attn_backend(None, False, model) == named


@pytest.mark.parametrize(
    ("listed", "state"), [("", "ok"), (" , ", "ok"), ("rpc", "ok"), ("a, rpc", "ok"), ("a,b", "warning")]
)
def test_whitelist(monkeypatch, listed, state):
    monkeypatch.setenv("SGLANG_PLUGINS", listed)
    assert machine._whitelist().state == state


def test_a_missing_entry_point_is_a_warning(monkeypatch):
    monkeypatch.setattr(machine.importlib.metadata, "entry_points", lambda group: [])
    fact = machine._plugin()
    assert (fact.state, fact.value) == ("warning", "no entry point `rpc` in sglang.srt.plugins")
