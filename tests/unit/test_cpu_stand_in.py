"""CPU reference mode: the stand-in's one real operator, and when the mode switches itself on. No sglang is imported."""

import argparse
import functools
import importlib.util
import os
import sys
import types
from pathlib import Path

import pytest
import torch

from sglang_rpc.errors import RPCError
from sglang_rpc.startup import cpu
from sglang_rpc.startup.cpu import command_line

SET_BY_PREPARE = (
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "SGLANG_CPU_OMP_THREADS_BIND",
    "SGLANG_MAMBA_CONV_DTYPE",
    "SGLANG_NCCL_SO_PATH",
    "SGLANG_USE_CPU_ENGINE",
    "TORCHDYNAMO_DISABLE",
)


def load(file: Path) -> types.ModuleType:
    """The module of this file, imported outside its package."""
    spec = importlib.util.spec_from_file_location(f"{file.stem}_under_test", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ops(monkeypatch):
    """The stand-in, loaded against an empty namespace: torch.ops.sgl_kernel of this process stays as it is."""
    namespace = types.SimpleNamespace()
    monkeypatch.setitem(torch.ops.__dict__, "sgl_kernel", namespace)
    module = load(Path(cpu.STAND_IN) / "common_ops.py")
    module.namespace = namespace
    return module


@pytest.fixture
def machine(monkeypatch):
    """A clean environment and path, restored afterwards; `machine(accelerator, kernels)` says what is installed."""
    for name in SET_BY_PREPARE:
        monkeypatch.setenv(name, "")  # recorded, so that it is restored whatever prepare does
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != cpu.STAND_IN])
    monkeypatch.delitem(sys.modules, "sglang.srt.utils.common", raising=False)

    def describe(accelerator: bool, kernels: bool):
        monkeypatch.setattr(cpu, "accelerator_available", lambda: accelerator)
        monkeypatch.setattr(cpu, "cpu_kernels_available", lambda: kernels)

    return describe


def changed() -> bool:
    return cpu.STAND_IN in sys.path or any(name in os.environ for name in SET_BY_PREPARE)


def assign_with_loops(rows, table, starts, ends, slots):
    at = 0
    for row, start, end in zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True):
        for position in range(start, end):
            table[row, position] = slots[at]
            at += 1


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("seed", range(5))
def test_assign_writes_each_requests_slots_into_its_row(ops, index_dtype, seed):
    rng = torch.Generator().manual_seed(seed)
    requests, positions = 5, 24
    rows = torch.randperm(8, generator=rng)[:requests].to(index_dtype)
    starts = torch.randint(0, 10, (requests,), generator=rng, dtype=index_dtype)
    ends = starts + torch.randint(0, 12, (requests,), generator=rng, dtype=index_dtype)
    ends[seed % requests] = starts[seed % requests]  # one request takes nothing
    slots = torch.randperm(100, generator=rng)[: int((ends - starts).sum())]
    table = torch.full((8, positions), -1, dtype=torch.int32)
    expected = table.clone()
    assign_with_loops(rows, expected, starts, ends, slots)

    assert ops.namespace.assign_req_to_token_pool_cpu(rows, table, starts, ends, slots, positions) is None

    assert torch.equal(table, expected)
    assert int((table != -1).sum()) == slots.numel()


def test_assign_of_nothing_changes_nothing(ops):
    table = torch.zeros((2, 4), dtype=torch.int32)
    same = torch.tensor([3, 1])
    ops.assign_req_to_token_pool_cpu(torch.tensor([0, 1]), table, same, same, torch.empty(0, dtype=torch.int64), 4)
    assert not table.any()


def test_assign_past_the_row_raises(ops):
    table = torch.zeros((2, 4), dtype=torch.int32)
    with pytest.raises(IndexError):
        ops.assign_req_to_token_pool_cpu(
            torch.tensor([1]), table, torch.tensor([3]), torch.tensor([6]), torch.arange(3), 4
        )


def test_every_other_operator_names_itself_when_called(ops):
    for name in ops.NEEDED_AT_IMPORT:
        with pytest.raises(NotImplementedError, match=rf"sgl_kernel\.{name} "):
            getattr(ops.namespace, name)(torch.zeros(1))


def test_operators_that_sglang_probes_for_stay_absent(ops):
    for name in ("convert_weight_packed", "fused_qk_norm_cpu", "fused_qk_norm_rope_cpu", "shm_group_initialize"):
        assert not hasattr(ops.namespace, name)


def test_supply_keeps_what_is_there(ops):
    real = object()
    namespace = types.SimpleNamespace(assign_req_to_token_pool_cpu=real, rmsnorm_cpu=real)
    ops.supply(namespace)
    assert namespace.assign_req_to_token_pool_cpu is real
    assert namespace.rmsnorm_cpu is real
    assert callable(namespace.fused_sigmoid_mul_cpu)


def test_cpu_kernels_are_told_by_their_operator(monkeypatch):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != cpu.STAND_IN])
    namespace = types.SimpleNamespace()
    monkeypatch.setitem(torch.ops.__dict__, "sgl_kernel", namespace)
    monkeypatch.setitem(sys.modules, "sgl_kernel", types.ModuleType("sgl_kernel"))
    assert not cpu.cpu_kernels_available()  # the CUDA build, loaded where libcuda is present
    namespace.decode_attention_cpu = print
    assert cpu.cpu_kernels_available()
    monkeypatch.setitem(sys.modules, "sgl_kernel", None)  # import raises ImportError
    assert not cpu.cpu_kernels_available()


@pytest.mark.parametrize(
    ("device", "accelerator", "kernels"),
    [(None, True, False), (None, True, True), ("cuda", True, False), ("cuda", False, False), ("xpu", False, False)],
)
def test_prepare_leaves_everything_alone_when_the_cpu_is_not_wanted(machine, device, accelerator, kernels):
    machine(accelerator, kernels)
    assert cpu.prepare(device) is False
    assert not changed()


@pytest.mark.parametrize(("device", "accelerator"), [("cpu", False), ("cpu", True), (None, False)])
def test_prepare_with_the_stand_in(machine, device, accelerator):
    machine(accelerator, kernels=False)
    assert cpu.prepare(device) is True
    assert cpu.prepare(device) is True
    assert sys.path.count(cpu.STAND_IN) == 1
    assert sys.path[-1] == cpu.STAND_IN
    assert os.environ["SGLANG_USE_CPU_ENGINE"] == "1"
    assert int(os.environ["OMP_NUM_THREADS"]) >= 1
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == ("" if device == "cpu" else None)
    assert "SGLANG_NCCL_SO_PATH" not in os.environ
    assert "SGLANG_CPU_OMP_THREADS_BIND" not in os.environ
    assert cpu.server_defaults()["attention_backend"] == "torch_native"


def test_prepare_with_real_cpu_kernels_only_selects_the_engine(machine):
    machine(accelerator=False, kernels=True)
    assert cpu.prepare(ranks=2) is True
    assert [name for name in SET_BY_PREPARE if name in os.environ] == ["SGLANG_USE_CPU_ENGINE"]
    assert cpu.STAND_IN not in sys.path
    assert cpu.server_defaults() == {"device": "cpu"}


def test_prepare_for_several_ranks_gives_each_its_cores_and_no_nccl(machine, monkeypatch):
    machine(accelerator=False, kernels=False)
    monkeypatch.setattr(cpu, "_usable_cores", lambda: [0, 2, 4, 6])
    cpu.prepare(ranks=2)
    assert os.environ["SGLANG_CPU_OMP_THREADS_BIND"] == "0,2|4,6"
    assert os.environ["SGLANG_NCCL_SO_PATH"] == cpu.NO_NCCL
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_more_ranks_than_cores_share_cores(monkeypatch):
    monkeypatch.setattr(cpu, "_usable_cores", lambda: [0, 1])
    assert cpu._cores_per_rank(3) == "0|1|0"


def test_prepare_keeps_what_the_user_set(machine, monkeypatch):
    machine(accelerator=False, kernels=False)
    own = {"OMP_NUM_THREADS": "3", "SGLANG_CPU_OMP_THREADS_BIND": "7|8", "SGLANG_NCCL_SO_PATH": "mine"}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    cpu.prepare(ranks=2)
    assert {name: os.environ[name] for name in own} == own


def test_prepare_after_sglang_decided_against_the_cpu_stops(machine, monkeypatch):
    machine(accelerator=False, kernels=False)

    @functools.lru_cache(maxsize=1)
    def is_cpu():
        return False

    monkeypatch.setitem(sys.modules, "sglang.srt.utils.common", types.SimpleNamespace(is_cpu=is_cpu))
    cpu._check_not_too_late()  # imported but not yet asked: still in time
    is_cpu()
    with pytest.raises(RPCError, match=r"before the first use of sglang\.Engine"):
        cpu.prepare("cpu")
    assert not changed()


def test_ranks_must_be_positive(machine):
    machine(accelerator=False, kernels=False)
    with pytest.raises(ValueError, match="got 0"):
        cpu.prepare(ranks=0)


DEFAULTS = {
    "--device": ["cpu"],
    "--attention-backend": ["torch_native"],
    "--sampling-backend": ["pytorch"],
    "--mamba-radix-cache-strategy": ["no_buffer"],
    "--sleep-on-idle": [],
    "--max-total-tokens": [str(cpu.MAX_TOTAL_TOKENS)],
}


def flags(*without: str) -> list[str]:
    return [part for flag, values in DEFAULTS.items() if flag not in without for part in (flag, *values)]


@pytest.mark.parametrize(
    "given",
    [
        ["--max-total-tokens", "99", "--attention-backend=triton", "--tp", "2"],
        ["--max-total-token", "99", "--attention-b=triton", "--tensor-parallel", "2"],
        ["--sleep-on", "--sampling-b", "pytorch", "--dp-s=2"],
    ],
)
def test_defaults_stand_before_the_command_line_so_that_it_wins(machine, given):
    machine(accelerator=False, kernels=False)
    assert command_line.complete(["--model-path", "m", *given]) == [*flags(), "--model-path", "m", *given]
    assert "SGLANG_CPU_OMP_THREADS_BIND" in os.environ  # the ranks were seen


@pytest.mark.parametrize(
    ("given", "ranks"),
    [
        ("--tp 2 --pp-size 3", 6),
        ("--pipeline-parallel-size 2", 2),
        ("--tp 2 --dp 2", 4),
        ("--tp 2 --dp 2 --enable-dp-attention", 2),  # the groups are made of the tensor-parallel ranks
        ("--tp 2 --attn-dp-size 2", 2),
        ("--config {file}", 12),
    ],
)
def test_the_processes_of_a_server_are_counted(machine, monkeypatch, tmp_path, given, ranks):
    machine(accelerator=False, kernels=False)
    counted = []
    monkeypatch.setattr(cpu, "prepare", lambda device, ranks: bool(counted.append(ranks)))
    file = tmp_path / "server.yaml"
    file.write_text("pp-size: 3\ntp-size: 2\ndp-size: 2\nenable-dp-attention: false\n")
    command_line.complete(["--model-path", "m", *given.format(file=file).split()])
    assert counted == [ranks]


@pytest.mark.parametrize(
    ("text", "left_out"),
    [
        ("max-total-tokens: 99\nattention-backend: triton\n", ["--max-total-tokens", "--attention-backend"]),
        ("max-total-token: 99\nsampling_b: flashinfer\n", ["--max-total-tokens", "--sampling-backend"]),
        ("sleep-on-idle: false\ndevice: cpu\n", ["--sleep-on-idle", "--device"]),
        ("max-running-requests: 4\n", []),
        ("", []),
        ("[1, 2]", []),
        ("a: [", []),
    ],
)
def test_what_the_config_file_gives_is_no_default(machine, tmp_path, text, left_out):
    machine(accelerator=False, kernels=False)
    file = tmp_path / "server.yaml"
    file.write_text(text)
    argv = ["--model-path", "m", "--config", str(file)]
    assert command_line.complete(argv) == [*flags(*left_out), *argv]


def test_a_config_file_that_sglang_does_not_read_counts_for_nothing(machine, tmp_path):
    machine(accelerator=False, kernels=False)
    file = tmp_path / "server.yaml"
    file.write_text("max-total-tokens: 99\n")
    for argv in (["--model-path", "m", f"--config={file}"], ["--model-path", "m", "--config", str(tmp_path / "none")]):
        assert command_line.complete(argv) == [*flags(), *argv]


@pytest.mark.parametrize("given", [["--device=cuda"], ["--dev", "cuda"], ["--config", "{file}"]])
def test_another_device_leaves_the_command_line_as_it_is(machine, tmp_path, given):
    machine(accelerator=False, kernels=False)
    file = tmp_path / "server.yaml"
    file.write_text("device: cuda\n")
    argv = ["--model-path", "m", *(part.format(file=file) for part in given)]
    assert command_line.complete(argv) is argv
    assert not changed()


@pytest.mark.parametrize("wrong", [["--d", "2"], ["--device"], ["--tp"]])
def test_what_is_wrong_is_left_to_sglangs_parser(machine, wrong):
    machine(accelerator=False, kernels=False)
    assert command_line.complete(["--model-path", "m", *wrong])[-len(wrong) :] == wrong


@pytest.mark.parametrize("text", ["", "max-total-tokens: 2048\n", "max-total-token: 2048\n"])
@pytest.mark.parametrize("given", [[], ["--max-total-tokens=1536"], ["--max-total-token", "1536"]])
def test_sglangs_own_merging_lets_the_command_line_win_then_the_file(machine, tmp_path, text, given):
    """SGLang's merger, from its file, and a parser with the flags that matter here."""
    machine(accelerator=False, kernels=False)
    sglang = Path(importlib.util.find_spec("sglang").origin).parent
    merger = load(sglang / "srt" / "utils" / "server_args_config_parser.py").ConfigArgumentMerger
    file = tmp_path / "server.yaml"
    file.write_text(text)
    parser = argparse.ArgumentParser()
    for flag, values in DEFAULTS.items():
        parser.add_argument(flag, **({} if values else {"action": "store_true"}))
    argv = command_line.complete([*given, "--config", str(file)])
    parsed = parser.parse_args(merger(parser).merge_config_with_args(argv))
    assert parsed.max_total_tokens == ("1536" if given else "2048" if text else str(cpu.MAX_TOTAL_TOKENS))
    assert parsed.device == "cpu"
    assert parsed.sleep_on_idle


def test_command_line_stays_as_it_is_with_an_accelerator(machine):
    machine(accelerator=True, kernels=False)
    argv = ["--model-path", "m"]
    assert command_line.complete(argv) is argv
    assert not changed()
