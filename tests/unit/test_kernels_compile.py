"""The Triton kernels compile for GPUs: the interpreter forgives what the compiler refuses. Nothing runs, so no GPU is
needed; the calls are those of a server, with tensors on the CPU in the place of its own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from sglang_rpc.config import RPCConfig
from sglang_rpc.memory.triton_compaction import SliceTable, move_kept
from sglang_rpc.memory.triton_ring import store
from sglang_rpc.policy import peak
from sglang_rpc.scoring.key_table import KeyTable, ValueTable
from sglang_rpc.scoring.reference import PLAIN
from sglang_rpc.scoring.triton_scores import candidate_scores
from sglang_rpc.scoring.triton_select import select
from sglang_rpc.types import Compression, CompressionBatch, KVLayer

HOPPER = 90
#: Compute capability -> shared memory that a thread block may have.
SHARED_BYTES = {80: 163 * 1024, 89: 99 * 1024, HOPPER: 227 * 1024}


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Makes `kernel[grid](...)` compile for a GPU that is not there, and lists what came out."""
    found: list = []

    def aim(capability: int) -> list:
        target = SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", capability, 32),
            get_current_device=lambda: capability,  # kernels are cached by device
            get_current_stream=lambda device: 0,
        )
        monkeypatch.setattr(driver, "_active", target)
        return found

    def compile_only(kernel, grid):
        return lambda *args, **kwargs: found.append(kernel.run(*args, grid=grid, warmup=True, **kwargs))

    monkeypatch.setattr(JITFunction, "__getitem__", compile_only)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return aim


def compress(
    *,
    heads,
    kv_heads,
    head_dim,
    dtype,
    value_dim=None,
    group=False,
    cap=0.0,
    window=32,
    requests=1,
    rule=PLAIN,
    pooling=(7, "avg"),
):
    """All that a compression launches."""
    stored = torch.uint8 if dtype.itemsize == 1 else dtype
    held = torch.bfloat16 if dtype.itemsize == 1 else dtype
    layers = [
        KVLayer(
            torch.zeros(64, kv_heads, head_dim, dtype=stored),
            torch.zeros(64, kv_heads, value_dim or head_dim, dtype=stored),
            dtype,
            head_dim**-0.5,
            cap,
        )
        for _ in range(2)
    ]
    ring = torch.zeros(2, 3, window, heads, head_dim, dtype=held)
    rows = torch.zeros(4, 4096, dtype=torch.int32)
    batch = CompressionBatch.of(
        [
            Compression(row=1, slot=1, prompt_length=5, generated=3000, window=window, begin=5, end=3005, keep=700)
            for _ in range(requests)
        ],
        torch.device("cpu"),
    )
    values = ValueTable.of(layers) if rule.value_power else None
    selector = "paper" if rule.visible else "official"
    scores = candidate_scores(
        KeyTable(layers), ring, rows, batch, selector=selector, group=group, rule=rule, values=values
    )
    move_kept(SliceTable(layers), rows, batch, select(scores, batch, *pooling))
    where = torch.zeros(2, dtype=torch.int64)
    store(ring[0], where, where, torch.zeros(2, heads, head_dim, dtype=held))


SHAPES = {
    "qwen 7b, bf16": dict(heads=28, kv_heads=4, head_dim=128, dtype=torch.bfloat16),
    "32b, fp16, batch": dict(heads=40, kv_heads=8, head_dim=128, dtype=torch.float16, requests=5),
    "group": dict(heads=16, kv_heads=8, head_dim=64, dtype=torch.bfloat16, group=True),
    "float32": dict(heads=4, kv_heads=2, head_dim=64, dtype=torch.float32, window=8),
    "head_dim 256, soft cap": dict(heads=16, kv_heads=8, head_dim=256, dtype=torch.bfloat16, cap=50.0),
    "latent 576": dict(heads=16, kv_heads=1, head_dim=576, dtype=torch.bfloat16),
    "odd sizes": dict(heads=6, kv_heads=2, head_dim=40, value_dim=24, dtype=torch.float16, window=5),
    "fp8_e5m2": dict(heads=28, kv_heads=4, head_dim=128, dtype=torch.float8_e5m2),
}


LAUNCHED = {
    "_lse_kernel",
    "_combine_kernel",
    "_scores_kernel",
    "_pool_kernel",
    "_select_kernel",
    "_move_kernel",
    "_store_kernel",
}


@pytest.mark.parametrize(
    ("shape", "capability"),
    [
        *((shape, HOPPER) for shape in SHAPES),
        *((shape, c) for shape in ("head_dim 256, soft cap", "latent 576") for c in (80, 89)),
    ],
)
def test_every_kernel_compiles_and_fits(compiled, shape, capability):
    kernels = compiled(capability)
    compress(**SHAPES[shape])
    assert {kernel.name for kernel in kernels} == LAUNCHED
    assert max(kernel.metadata.shared for kernel in kernels) <= SHARED_BYTES[capability]


@pytest.mark.parametrize("rule", [peak.peak.rule, peak.grouped.rule, peak.squares.rule], ids=str)
@pytest.mark.parametrize("shape", ["qwen 7b, bf16", "group", "latent 576", "odd sizes", "fp8_e5m2"])
def test_every_rule_compiles_and_fits(compiled, shape, rule):
    kernels = compiled(HOPPER)
    compress(**SHAPES[shape], rule=rule)
    assert {kernel.name for kernel in kernels} == LAUNCHED
    assert max(kernel.metadata.shared for kernel in kernels) <= SHARED_BYTES[HOPPER]


def test_pairs_compile(compiled):
    kernels = compiled(HOPPER)
    compress(**SHAPES["qwen 7b, bf16"], rule=peak.RULE, pooling=peak.paired.pooling_in(RPCConfig()))
    assert {kernel.name for kernel in kernels} == LAUNCHED


def test_values_are_read_sixteen_bytes_at_a_time(compiled):
    kernels = compiled(HOPPER)
    shape = SHAPES["qwen 7b, bf16"]
    compress(**shape)
    compress(**shape, rule=peak.RULE)
    without, reads = (kernel.asm["ptx"] for kernel in kernels if kernel.name == "_scores_kernel")
    assert reads.count("ld.global.v4.b32") > without.count("ld.global.v4.b32")


def test_fp8_e4m3_compiles_where_it_is_not_refused(compiled):
    kernels = compiled(HOPPER)
    compress(heads=28, kv_heads=4, head_dim=128, dtype=torch.float8_e4m3fn)
    assert len(kernels) == 7


def test_entries_are_moved_sixteen_bytes_at_a_time(compiled):
    kernels = compiled(HOPPER)
    compress(**SHAPES["qwen 7b, bf16"])
    (move,) = (kernel.asm["ptx"] for kernel in kernels if kernel.name == "_move_kernel")
    assert "st.global.v4.b32" in move
    assert "ld.global.v4.b32" in move
    assert "bar.sync" in move  # all of a block is loaded before any of it is stored over


def test_a_batch_of_another_size_compiles_nothing_anew(compiled):
    kernels = compiled(HOPPER)
    shape = SHAPES["qwen 7b, bf16"]
    compress(**{**shape, "requests": 3})
    before = {id(kernel) for kernel in kernels}
    for requests in (1, 4, 16, 17):
        compress(**{**shape, "requests": requests})
    assert {id(kernel) for kernel in kernels} == before


def test_launchers_refuse_layouts_that_kernels_would_misread(compiled):
    kernels = compiled(HOPPER)
    rows, batch = torch.zeros(4, 64, dtype=torch.int32), batch_of(1)
    layers = [KVLayer(torch.zeros(64, 2, 16), torch.zeros(64, 2, 16), torch.float32, 1.0)]
    ring = torch.zeros(1, 2, 4, 4, 16)
    where = torch.zeros(2, dtype=torch.int64)
    scores, kept = torch.zeros(1, 1, 1, 20), torch.zeros(1, 1, 1, 5, dtype=torch.int32)
    table, slices = KeyTable(layers), SliceTable(layers)
    options = dict(selector="official", group=False)
    misread = [
        lambda: candidate_scores(table, ring.transpose(3, 4), rows, batch, **options),
        lambda: candidate_scores(table, ring, rows.long(), batch, **options),
        lambda: candidate_scores(table, ring, rows.T, batch, **options),
        lambda: candidate_scores(table, ring, rows, batch, lse=torch.zeros(1, 1, 2, 3), **options),
        lambda: select(scores.double(), batch, 7, "avg"),
        lambda: select(scores.expand(2, 1, 1, 20), batch, 7, "avg"),
        lambda: select(scores[..., :9].contiguous(), batch, 7, "avg"),
        lambda: move_kept(slices, rows, batch, kept.long()),
        lambda: move_kept(slices, rows, batch, kept.expand(1, 1, 3, 5)),
        lambda: store(ring[0], where.int(), where, torch.zeros(2, 4, 16)),
        lambda: store(ring[0], where, where, torch.zeros(2, 4, 8)),
    ]
    for launch in misread:
        with pytest.raises(AssertionError):
            launch()
    assert kernels == []
    with pytest.raises(ValueError, match="neighbours in memory"):
        KeyTable([KVLayer(torch.zeros(64, 2, 32)[..., ::2], torch.zeros(64, 2, 16), torch.float32, 1.0)])


def batch_of(requests: int) -> CompressionBatch:
    made_up = Compression(row=1, slot=1, generated=24, window=4, begin=0, end=24, keep=5)
    return CompressionBatch.of([made_up] * requests, torch.device("cpu"))
