"""What tests do on a CUDA device, and their engines get there, as far as a machine without one can tell."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections import Counter

import pytest
import torch

from sglang_rpc.startup import cpu, machine
from tests.engine import engines, on_cuda, servers, starts
from tests.engine.test_random import GPU_SHAPES, SHAPES, environment

FLOAT32 = {"SGLANG_FORCE_FUSED_OP_BACKEND": "torch", "TRITON_F32_DEFAULT": "ieee"}


class FakeEngine:
    """Keeps what it is started with, and the environment of that moment."""

    def __init__(self, **arguments):
        self.arguments, self.environment = arguments, dict(os.environ)
        if arguments["model_path"] == "broken":
            raise RuntimeError("no such model")

    def shutdown(self) -> None:
        os.environ["SGLANG_LEFT_BEHIND"] = "1"


@pytest.fixture
def fake(monkeypatch):
    for name in on_cuda.FLOAT32:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(engines, "_spied", lambda: FakeEngine)
    monkeypatch.setattr(starts, "counts", Counter())


@pytest.fixture
def cuda(fake, monkeypatch):
    """A host with CUDA, as far as the test engines look."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_a_float32_engine_gets_pytorchs_norms_and_full_products(cuda):
    before = dict(os.environ)
    with engines.engine("model", None) as started:
        assert started.environment == before | FLOAT32
        given = started.arguments
    assert dict(os.environ) == before
    assert (given["dtype"], given["device"], given["attention_backend"]) == ("float32", "cuda", "triton")
    assert given["disable_prefill_cuda_graph"] is given["disable_flashinfer_autotune"] is True
    assert given["cuda_graph_max_bs_decode"] == given["max_running_requests"]


def test_a_bfloat16_engine_keeps_sglangs_kernels(cuda):
    with engines.engine("model", None, dtype="bfloat16") as started:
        assert not FLOAT32.keys() & started.environment.keys()


def test_what_a_test_names_itself_is_left_alone(cuda, monkeypatch):
    monkeypatch.setenv("TRITON_F32_DEFAULT", "tf32")
    named = {"attention_backend": "fa3", "mem_fraction_static": 0.5, "disable_prefill_cuda_graph": False}
    with engines.engine("model", None, **named) as started:
        assert named.items() <= started.arguments.items()
        assert started.environment["TRITON_F32_DEFAULT"] == "tf32"
        assert started.environment["SGLANG_FORCE_FUSED_OP_BACKEND"] == "torch"
    with engines.engine("model", None, device="cpu") as started:
        assert not (on_cuda.ARGUMENTS.keys() - {"device"}) & started.arguments.keys()
        assert "SGLANG_FORCE_FUSED_OP_BACKEND" not in started.environment


def test_a_failed_start_leaves_the_environment_as_it_was(cuda):
    before = dict(os.environ)
    with pytest.raises(RuntimeError, match="no such model"), engines.engine("broken", None):
        pass
    assert dict(os.environ) == before


def test_an_engine_on_a_cpu_gets_nothing(fake, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = dict(os.environ)
    with engines.engine("model", None) as started:
        assert started.environment == before
        assert not on_cuda.ARGUMENTS.keys() & started.arguments.keys()


def test_a_server_gets_the_same_as_flags(cuda, monkeypatch, tmp_path):
    asked = {}

    def popen(command, *, env, **_):
        asked.update(command=command, env=env)

    monkeypatch.setattr(servers.subprocess, "Popen", popen)
    monkeypatch.setattr(servers, "wait_for", lambda running: None)
    monkeypatch.setattr(servers, "stop", lambda process: None)
    with servers.server(tmp_path, "--dtype", "float32", "--attention-backend=fa3", "--sampling-backend", "flashinfer"):
        pass
    flags = asked["command"][asked["command"].index("--dtype") :]
    assert flags == [
        *("--dtype", "float32", "--attention-backend=fa3", "--sampling-backend", "flashinfer"),
        *("--device", "cuda", "--cuda-graph-max-bs-decode", "32", "--mem-fraction-static", "0.3"),
        *("--disable-prefill-cuda-graph", "--disable-flashinfer-autotune"),
    ]
    assert FLOAT32.items() <= asked["env"].items()
    with servers.server(tmp_path, "--device", "cpu", "--dtype", "float32", env={"MARK": "1"}):
        pass
    assert asked["command"][-4:] == ["--device", "cpu", "--dtype", "float32"]
    assert asked["env"] == os.environ | {"MARK": "1"}


def test_the_last_value_of_a_flag_counts():
    given = ["--switch", "--other", "1", "--other=2", "--last"]
    assert [on_cuda.value_of(f"--{name}", given) for name in ("switch", "other", "last", "none")] == ["", "2", "", None]


@pytest.mark.parametrize(("gpus", "ranks", "skipped"), [(1, 1, False), (1, 2, True), (2, 2, False), (0, 1, False)])
def test_more_ranks_than_gpus_skip_the_test(cuda, monkeypatch, gpus, ranks, skipped):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with contextlib.ExitStack() as stack:
        if skipped:
            stack.enter_context(pytest.raises(pytest.skip.Exception, match="2 ranks need as many GPUs"))
        started = stack.enter_context(engines.engine("model", None, tp_size=ranks))
        assert started.arguments["tp_size"] == ranks


def test_ranks_on_a_cpu_need_no_gpu(fake, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with engines.engine("model", None, tp_size=2) as started:
        assert started.arguments["tp_size"] == 2


def test_the_backends_are_those_named_or_those_of_this_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert on_cuda.attention_backends(None) == on_cuda.attention_backends("") == ["triton", "flashinfer", "fa3"]
    assert on_cuda.attention_backends("fa3,triton") == ["fa3", "triton"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (10, 3))
    asked = []
    monkeypatch.setattr(
        machine, "gpu_backends", lambda *of: asked.append(of) or ["flashinfer", "torch_native", "triton"]
    )
    assert on_cuda.attention_backends(None) == ["triton", "flashinfer"]
    assert asked == [(103, False)]


@pytest.mark.parametrize(
    ("capability", "backend", "kv_dtype", "latent", "reason"),
    [
        ((9, 0), "fa3", "auto", True, None),
        ((8, 0), "fa3", "auto", True, "on Hopper alone"),
        ((8, 0), "fa3", "auto", False, None),
        ((9, 0), "fa3", "fp8_e5m2", False, "triton instead of fa3"),
        ((8, 0), "triton", "fp8_e4m3", False, "from compute capability 8.9"),
        ((8, 9), "triton", "fp8_e4m3", False, None),
        ((8, 0), "triton", "fp8_e5m2", True, None),
        ((8, 0), "flashinfer", "fp8_e4m3", False, None),
    ],
)
def test_what_a_gpu_lacks(capability, backend, kv_dtype, latent, reason):
    found = on_cuda.lacks(capability, backend, kv_dtype, latent)
    assert found is None if reason is None else reason in found


def test_a_storm_on_a_gpu_does_not_wait_for_the_check_of_pages_but_once():
    checked = {name for name in GPU_SHAPES if "SGLANG_CHECK_KV_PAGE_INVARIANTS" not in environment(name)}
    assert checked == {"cuda graphs, PyTorch scoring"}
    assert [name for name in SHAPES if environment(name)] == ["overlap, mixed, retracting"]


def test_kernels_are_tested_where_flashinfer_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    for name in ("tests.kernels.test_flashinfer", "sglang_rpc.scoring.flashinfer_lse"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert importlib.import_module("tests.kernels.test_flashinfer")


# ---- what SGLang and Triton make of it ----------------------------------------------------------------------


@pytest.fixture
def resolved(monkeypatch):
    """SGLang's arguments with the graph settings that it resolves where there is CUDA."""
    cpu.prepare()
    from sglang.srt import utils
    from sglang.srt.arg_groups.cuda_graph_hook import parse_cuda_graph_config
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.server_args import ServerArgs

    def resolve(**arguments):
        server_args = ServerArgs(model_path="model", **arguments)
        parse_cuda_graph_config(server_args)
        return resolving_view(server_args)

    monkeypatch.setattr(utils, "is_cuda", lambda: True)
    return resolve


@pytest.mark.parametrize("shape", GPU_SHAPES)
def test_no_shape_of_the_storm_is_refused_for_its_graphs(resolved, shape):
    from sglang_rpc.contract.refusals.server import _mixed_chunk_in_a_graph

    named = {name: value for name, value in GPU_SHAPES[shape][0].items() if name != "rpc_scoring"}
    view = resolved(**on_cuda.arguments("cuda") | named)
    assert view.cuda_graph_config.decode.backend == "full"
    assert _mixed_chunk_in_a_graph(view) is None
    # What SGLang chooses by itself, which is why the engines name it.
    alone = _mixed_chunk_in_a_graph(resolved(**named))
    assert (alone is not None) == named.get("enable_mixed_chunk", False)


def test_sglang_and_triton_know_the_variables(monkeypatch):
    cpu.prepare()
    from sglang.kernels.spec import KernelBackend
    from sglang.srt.environ import envs
    from triton import knobs

    for name, value in on_cuda.environment("cuda", "float32").items():
        monkeypatch.setenv(name, value)
    assert KernelBackend(envs.SGLANG_FORCE_FUSED_OP_BACKEND.get()) is KernelBackend.TORCH
    assert knobs.language.fp32_default == "ieee"
