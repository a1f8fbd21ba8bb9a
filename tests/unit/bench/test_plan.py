"""The benchmark's plan: pools, arms, order of starts, presets, and what it refuses before anything is started."""

from __future__ import annotations

import ast
import json
import shlex

import pytest

from eval.bench import arms, gpu, options, plan, presets, shapes, table
from eval.bench.errors import BenchError
from eval.bench.workloads import RPC, Workload, offered_tokens
from tests.conftest import ROOT

P64 = RPC(interval=64, window=16, ratio=4)


def workload(**changes) -> Workload:
    values = dict(concurrency=4, n=1, prompt_tokens=10, output_tokens=90, pool_tokens=200, samples=8)
    return Workload(**{**values, **changes})


def test_the_pool_is_a_fraction_of_what_the_load_holds_with_shared_prompts_held_once():
    assert offered_tokens(16, 1, 32, 1280) == 16 * (32 + 1280)
    assert offered_tokens(64, 32, 100, 10) == 2 * 100 + 64 * 10
    (tight,) = presets.Grid((16,), (1280,), (32,), pool_fractions=(0.25,)).workloads()
    assert tight.pool_tokens == 5248 + 2 * 4
    assert tight.pool_fraction == 0.25
    assert tight.samples == 48


def test_fixed_pools_replace_fractions():
    grid = presets.Grid((2, 4), (90,), (10,), pool_fractions=(0.25,), pool_tokens=(400,))
    assert [(w.concurrency, w.pool_tokens, w.pool_fraction) for w in grid.workloads()] == [
        (2, 400, 1.961),
        (4, 400, 0.98),
    ]


@pytest.mark.parametrize(
    ("generated", "held"), [(0, 0), (79, 79), (80, 80), (81, 81), (143, 96), (144, 112), (1280, 19 * 16 + 80)]
)
def test_peak(generated, held):
    assert P64.peak(generated) == held


def test_peak_bounds_what_the_policy_holds():
    held, highest = 0, 0
    for generated in range(1, 2001):
        held += 1
        highest = max(highest, held)
        # It counts what follows a compression as soon as that is done: at most int(P / c) above what was held so far.
        assert highest <= P64.peak(generated) <= highest + 16
        if generated >= 80 and (generated - 16) % 64 == 0:
            held = (generated - 16) // 64 * 16 + 16


def test_fits_counts_prompts_once_a_group():
    shared = Workload(64, 32, 320, 1280, 5000, 64)
    assert shared.fits(1280) == pytest.approx(5000 / (10 + 1280))
    assert workload(pool_tokens=10_000).fits(90) == 4


def test_prompts_are_the_same_for_each_arm_and_others_for_each_group_and_seed():
    w = workload(prompt_tokens=50)
    assert w.prompt(0, 512, 1) == w.prompt(0, 512, 1)
    assert w.prompt(0, 512, 1) != w.prompt(1, 512, 1) != w.prompt(1, 512, 2)
    assert len(w.prompt(0, 512, 1)) == 50
    assert max(w.prompt(0, 7, 1)) < 7


def test_arrivals_have_the_rate_and_inf_is_all_at_once():
    times = workload(samples=4000, rate=20).arrivals(seed=3)
    assert len(times) == 4000
    assert times == sorted(times)
    assert times[-1] == pytest.approx(200, rel=0.1)
    assert set(workload(rate=float("inf")).arrivals(0)) == {0.0}
    # A group brings n samples, so groups come n times more slowly.
    assert workload(concurrency=8, samples=800, n=8, rate=8).arrivals(3)[-1] == pytest.approx(100, rel=0.3)


def test_each_start_has_one_pool_and_the_order_rotates():
    chosen = [arms.built_in(name, P64) for name in ("stock", "constrained", "rpc")]
    loads = [workload(), workload(concurrency=8, samples=8), workload(pool_tokens=500)]
    planned = plan.starts(chosen, loads, repetitions=3)
    assert len(planned) == 3 * 2 * 3
    assert [s.arm.name for s in planned[:6]] == ["stock", "constrained", "rpc", "constrained", "rpc", "stock"]
    assert [len(s.workloads) for s in planned[:6]] == [2, 2, 2, 1, 1, 1]
    firsts = [s.arm.name for s in planned if s.position == 0 and s.pool_tokens == 200]
    assert sorted(firsts) == ["constrained", "rpc", "stock"]
    assert all(w.pool_tokens == s.pool_tokens for s in planned for w in s.workloads)


def test_what_is_done_is_left_out_and_a_start_without_work_too():
    chosen = [arms.built_in(name, P64) for name in ("stock", "rpc")]
    one, other = workload(), workload(concurrency=8, samples=8)
    done = {("stock", one.name, 1), ("stock", other.name, 1), ("rpc", one.name, 1)}
    planned = plan.starts(chosen, [one, other], 1, done)
    assert [(s.arm.name, [w.name for w in s.workloads]) for s in planned] == [("rpc", [other.name])]
    assert planned[0].keys() == [("rpc", other.name, 1)]


def test_the_dry_run_says_what_fits_and_what_is_started():
    chosen = [arms.built_in(name, P64) for name in ("stock", "rpc")]
    text = plan.describe(plan.starts(chosen, [Workload(16, 1, 32, 1280, 5248, 48)], 3), P64)
    assert "3.15x" in text
    assert "6 starts" in text
    assert "6 runs" in text
    assert "--rpc-interval 64" in text


def test_built_in_arms():
    stock, constrained, off, rpc_off, rpc = (arms.built_in(name, P64, ("--x", "1")) for name in arms.BUILT_IN)
    assert stock.flags == ()
    assert stock.module == constrained.module == "eval.bench.stock_server"
    assert constrained.flags == ("--disable-radix-cache", "--disable-overlap-schedule")
    assert off.flags == ("--disable-rpc",)
    assert off.rpc is None
    assert off.module == rpc.module == "sglang_rpc.launch_server"
    assert rpc.flags == (*P64.flags(), "--x", "1") == rpc_off.flags
    assert rpc.custom_params is None
    assert rpc_off.custom_params == {"rpc": {"enabled": False}}
    assert [arm.compresses for arm in (stock, off, rpc_off, rpc)] == [False, False, False, True]


def test_arms_of_ones_own():
    early = arms.from_text("early=--rpc-pressure off --rpc-ratio 8 --rpc-interval=32", P64)
    assert early.name == "early"
    assert early.base == "rpc"
    assert early.flags[-5:-3] == ("--rpc-pressure", "off")
    assert early.rpc == RPC(32, 16, 8)
    plain = arms.from_text("no-radix@stock=--disable-radix-cache", P64)
    assert plain.module == "eval.bench.stock_server"
    assert plain.rpc is None
    assert arms.from_text("same=", P64).flags == tuple(P64.flags())


@pytest.mark.parametrize("name", presets.PRESETS)
@pytest.mark.parametrize("size", presets.SIZES.values(), ids=presets.SIZES)
def test_presets_are_possible_and_compress(name, size):
    preset = presets.preset(name, size)
    loads = [w for grid in preset.grids for w in grid.workloads()]
    assert plan.starts([arms.built_in(a, size.rpc) for a in preset.arms], loads, preset.repetitions)
    if name in ("tight", "ample", "shared"):
        assert all(w.output_tokens >= 20 * size.rpc.interval for w in loads)
    if name == "together":
        assert sorted(w.n for w in loads) == [1, 64]
        assert {(w.samples, w.concurrency) for w in loads} == {(64, 64)}  # one wave: none begins while others run
    if name == "shared":
        assert sorted(w.n for w in loads) == [1, 8, 32]
        assert len({w.pool_tokens for w in loads}) == 1
    if name == "tight":
        assert [w.pool_fraction for w in loads] == [0.25]
    if name == "ample":
        assert [w.pool_fraction for w in loads] == [1.25]
        assert "off" in preset.arms


def test_what_is_given_replaces_the_presets_lists(tmp_path):
    asked = options.read(
        [
            *("--out", str(tmp_path), "--preset", "tight", "--concurrency", "2", "4", "--pool-fraction", "0.5", "1"),
            *("--rate", "closed", "inf", "--output-tokens", "100", "--arms", "stock,rpc", "--arm", "b=--rpc-ratio 8"),
        ]
    )
    assert len(asked.workloads) == 2 * 2 * 2
    assert {w.rate for w in asked.workloads} == {None, float("inf")}
    assert [arm.name for arm in asked.arms] == ["stock", "rpc", "b"]
    assert asked.repetitions == 3
    flags = asked.settings.flags(asked.arms[1], 777)
    assert flags[flags.index("--max-total-tokens") + 1] == "777"
    assert flags[-2:] == ["--rpc-scope", "all"]
    assert "dummy" in flags
    assert "--skip-tokenizer-init" in flags


def test_shapes(tmp_path):
    tiny = shapes.of_shape("tiny", tmp_path)
    assert not list(tmp_path.iterdir())
    assert tiny.kv_bytes_per_token("float32") == 2 * 1 * 1 * 32 * 4
    assert tiny.vocab_size == 512
    assert tiny.dummy
    smollm2 = shapes.of_shape("smollm2", tmp_path / "deep")
    shapes.write(smollm2)
    assert smollm2.kv_bytes_per_token("bfloat16") == 2 * 30 * 3 * 64 * 2
    assert smollm2.kv_bytes_per_token("auto") is None
    again = shapes.at_path(str(tmp_path / "deep"), dummy=False)
    assert again.sha == smollm2.sha != tiny.sha
    assert not again.dummy


REFUSED = {
    "--arms stock,hf": "unknown arm 'hf'",
    "--arms rpc": "--baseline stock is not among the arms",
    "--arm rpc=--x": "the name is taken",
    "--arm nonsense": "--arm must be NAME='FLAGS'",
    "--arm a=--rpc-interval": "--rpc-interval must be a number",
    "--arm a=--x --arm a=--y": "the arm a is given twice",
    "--rpc-ratio 1": "--rpc-ratio above 1",
    "--rpc-interval 1": "--rpc-interval must be at least 2",
    "--concurrency 0": "--concurrency must be at least 1, got 0",
    "--samples 3": "must be multiples of the 3 samples",
    "--pool-fraction 0": "--pool-fraction must be above 0",
    "--pool-tokens 50": "cannot hold one request of 32 + 320 tokens",
    "--output-tokens 9000": "do not fit the 8192 positions",
    "--rate -1": "rate must be above 0",
    "--rate soon": "--rate must be a number",
    "--stream-interval 0": "--stream-interval must be at least 1",
    "--temperature -1": "--temperature must be at least 0",
    "--threads 0": "--threads must be at least 1",
    "--repetitions 0": "--repetitions must be at least 1",
    "--server-flags '--x": "cannot be split into flags",
    "--model-path /nowhere": "must be a folder with a config.json",
    "--per-client 0": "samples must be at least 1",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_refused_in_one_sentence(tmp_path, flags):
    def planned() -> list[plan.Start]:
        asked = options.read(["--out", str(tmp_path), *flags.split(" ")])
        return plan.starts(asked.arms, asked.workloads, asked.repetitions)

    with pytest.raises(BenchError) as refused:
        planned()
    assert REFUSED[flags] in str(refused.value)
    assert "\n" not in str(refused.value)


def test_only_the_stock_server_touches_the_package():
    """eval/ speaks HTTP: what is measured must not depend on what measures it.

    What it may take of the package: settings, policies and admission, which are arithmetic and names. Torch is for
    what trains, generates again, or runs inside the server (eval.fidelity's processor).
    """
    pure = (
        "sglang_rpc.config",
        "sglang_rpc.errors",
        "sglang_rpc.types",
        "sglang_rpc.policy.",
        "sglang_rpc.runtime.admission",
    )
    result = set()
    for file in (ROOT / "eval").rglob("*.py"):
        if file.name in ("kernels.py", "kernel_parts.py"):
            continue  # they time the kernels themselves
        roots = {"sglang", "sglang_rpc"} | (
            {"torch"} if file.parent.name not in ("reasoner", "parity", "fidelity") else set()
        )
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            result |= {(file.name, name) for name in names if name.split(".")[0] in roots}
    assert {(file, name) for file, name in result if not name.startswith(pure)} == {
        ("stock_server.py", "sglang_rpc.startup.cpu")
    }


def test_the_readme_explains_every_column_and_names_every_preset():
    text = (ROOT / "eval" / "README.md").read_text()
    assert [name for name in table.COLUMNS if f"`{name}`" not in text] == []
    assert [name for name in presets.PRESETS if f"--preset {name}" not in text] == []
    assert [name for name in arms.BUILT_IN if f"`{name}`" not in text] == []


def test_the_gpu_benchmark_is_a_preset_that_can_be_overridden(tmp_path):
    given = ["--out", str(tmp_path), "--output-tokens", "8192"]
    seven = options.read(gpu.arguments(given))
    assert seven.settings.model.label == "shape:qwen-7b"
    assert seven.settings.device == "cuda"
    assert [w.output_tokens for w in seven.workloads] == [8192, 8192]
    assert sorted(round(w.pool_fraction, 2) for w in seven.workloads) == [0.25, 1.25]
    other = options.read(gpu.arguments([*given, "--shape", "qwq-32b"]))
    assert other.settings.model.label == "shape:qwq-32b"
    assert other.settings.model.layers == 64


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ([], "--cuda-graph-max-bs-decode 256"),
        (["--server-flags", "--mem 0.5 --x"], "--cuda-graph-max-bs-decode 256 --mem 0.5 --x"),
        (["--server-flags=--name 'two words'"], "--cuda-graph-max-bs-decode 256 --name 'two words'"),
        (["--server-flags", "--cuda-graph-max-bs-decode 64 --x"], "--cuda-graph-max-bs-decode 64 --x"),
        (["--server-flags=--cuda-graph-max-bs-decode=64"], "--cuda-graph-max-bs-decode=64"),
    ],
)
def test_the_gpu_benchmarks_server_flags_are_added_to_the_callers(tmp_path, given, flags):
    asked = options.read(gpu.arguments(["--out", str(tmp_path), *given, "--repetitions", "2"]))
    assert asked.settings.server_flags == tuple(shlex.split(flags))
    assert asked.repetitions == 2


def test_server_flags_that_cannot_be_split_are_refused(tmp_path):
    with pytest.raises(BenchError, match=r"--server-flags: .* cannot be split"):
        gpu.arguments(["--out", str(tmp_path), "--server-flags", "--name 'two words"])


def test_a_config_that_is_no_transformer_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 3}))
    with pytest.raises(BenchError, match="does not look like a transformer"):
        shapes.at_path(str(tmp_path), dummy=True)


@pytest.mark.parametrize(("shape", "gpu_gb"), [("qwen-7b", 80), ("qwq-32b", 141)])
def test_the_largest_pool_of_a_gpu_shape_fits_one_gpu_beside_the_weights(shape, gpu_gb):
    model = shapes.SHAPES[shape]
    layers, width, inner = model["num_hidden_layers"], model["hidden_size"], model["intermediate_size"]
    kv_width = model["num_key_value_heads"] * model.get("head_dim", width // model["num_attention_heads"])
    weights = 2 * (2 * model["vocab_size"] * width + layers * (2 * width * (width + kv_width) + 3 * width * inner))
    preset = presets.preset("lengths", presets.SIZES[shape])
    tokens = max(w.pool_tokens for grid in preset.grids for w in grid.workloads())
    pool = tokens * 2 * 2 * layers * kv_width
    assert weights + pool < 0.85e9 * gpu_gb, (weights, pool)
