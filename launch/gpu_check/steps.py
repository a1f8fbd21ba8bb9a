"""The steps: what each asks, its command, its time box, and which of its log's lines the summary shows."""

from __future__ import annotations

from collections.abc import Sequence

from launch.gpu_check.step import (
    CHECK,
    CLOSING,
    DTYPE,
    GPU,
    PASSED,
    PROGRAMS,
    STRICT,
    Step,
    dense,
    engines,
    pairs,
    pytest,
    recording,
    sanitizer,
)

#: Tests of kernels that take seconds in Triton's interpreter.
INTERPRETED = ("ring", "move", "select")
STORM = (*STRICT, ("SGLANG_RPC_RANDOM_REQUESTS", "60"))
RANDOM = "tests/engine/test_random.py"

FIRST = (
    Step(
        "imports",
        "do SGLang and every hook import; does a captured CUDA graph replay the query ring's write",
        ("{python}", "-m", PROGRAMS + "imports", "--device", "cuda"),
        120,
        20,
        CHECK,
        proof=r"^\[check\] imports: OK",
        details=CHECK,
        interpreted=("{python}", "-m", PROGRAMS + "imports", "--device", "cpu"),
    ),
    Step(
        "kernels",
        "does every Triton kernel equal its PyTorch reference",
        # Compiling is most of it: many processes at once. FlashInfer has a step of its own.
        pytest("-n", "{processes}", "tests/kernels", "-k", "not flashinfer"),
        190,
        40,
        CLOSING,
        PASSED,
        environment=(("TRITON_CACHE_DIR", "{work}/triton"),),
        modules=("torch", "pytest", "hypothesis", "xdist"),
        interpreted=pytest("-n", "{processes}", *(f"tests/kernels/test_{part}.py" for part in INTERPRETED), gpu=False),
    ),
    Step(
        "doctor",
        "is this SGLang one that RPC was proven on; which attention backends can be used",
        ("{python}", "-m", "sglang_rpc.doctor"),
        90,
        15,
        r"^RPC can",
        proof=r"^RPC can run here",
        interpreted=("{python}", "-m", "sglang_rpc.doctor"),
    ),
    recording(
        "recording",
        "eight requests of one recorded run under CUDA graphs, token for token, seven of them compressed",
        "gqa_all_p64",
        page=1,
        cpu=True,
    ),
    *map(dense, ("triton", "flashinfer", "fa3")),
    engines(
        "storm",
        "240 random requests under CUDA graphs: does one leak, hang or get another's tokens",
        "-k",
        "cuda and graphs and not mixed and not scoring",
        RANDOM,
        box=150,
        goldens=True,
        environment=STORM,
    ),
    Step(
        "stock",
        "does SGLang itself run four layers of a 7B shape here, without RPC",
        ("{python}", "-m", PROGRAMS + "stock", "{backend}", "{work}/{name}"),
        150,
        50,
        CHECK,
        proof=r"^\[check\] .*: OK",
        again_with_triton=True,
    ),
    Step(
        "timings",
        "how long scoring, selecting and moving take, beside this GPU's copy bandwidth, and what peak costs beside rpc",
        (
            *("{python}", "-m", "eval.bench.kernels", "--out", "{results}/kernels"),
            *("--candidates", "1024", "4096", "16384", "--batch", "1", "8", "64"),
        ),
        150,
        40,
        r"a compression of peak takes",
        proof=r"\btotal +\d+ us",
        details=r"a copy moves|left out|16384 +(rpc +(scores|select|move)|peak +scores) ",
        modules=("torch", "sglang", "triton", "tqdm"),
    ),
)

BENCH = (
    pairs(
        "tight",
        "128 requests of 3072 tokens in a quarter of their memory: stock SGLang against RPC",
        *("--preset", "tight", "--arms", "stock,rpc", "--output-tokens", "3072"),
        least=150,
    ),
    pairs(
        "ample",
        "128 requests of 2048 tokens in ample memory: stock, RPC, and RPC that only records",
        *("--preset", "ample", "--arms", "stock,rpc", "--arm", "recording=--rpc-interval 1000000"),
        *("--output-tokens", "2048"),
        least=120,
    ),
)

REST = (
    sanitizer(
        "memcheck",
        "do the moves and the ring's write stay within their tensors",
        *("tests/kernels/test_move.py", "tests/kernels/test_ring.py"),
        *("-k", "blocks or overlap or ring or wider or another_width"),
    ),
    sanitizer(
        "racecheck",
        "is the selection free of races in shared memory",
        *("tests/kernels/test_select.py", "-k", "ties or equal_scores or (any_number and 2049)"),
    ),
    recording("recording-16", "a recording that selects per KV head, in pages of 16", "gqa_group_p64", page=16),
    engines(
        "fp8",
        "FP8 KV caches on the Triton backend",
        *(f"{DTYPE}[dense-triton-fp8_{kind}]" for kind in ("e4m3", "e5m2")),
        box=260,
        backend="triton",
        environment=(("SGLANG_RPC_GPU_BACKENDS", "triton"),),
    ),
    Step(
        "flashinfer-lse",
        "does FlashInfer's log-sum-exp equal ours, in bfloat16 with heads of 128",
        pytest("tests/kernels/test_flashinfer.py", "-k", "(bfloat16 and 128) or refused"),
        200,
        60,
        CLOSING,
        PASSED,
        modules=("torch", "pytest", "hypothesis"),
        backend="flashinfer",
    ),
    engines(
        "latent",
        "latent attention (MLA) in bfloat16 on the Triton backend",
        f"{DTYPE}[latent-triton-auto]",
        box=200,
        environment=(("SGLANG_RPC_GPU_BACKENDS", "triton"),),
    ),
    engines(
        "windows",
        "sliding windows with a KV pool of their own, in bfloat16 on each attention backend",
        "-k",
        "not drafts",
        "tests/engine/test_gpu_windows.py",
        box=420,
    ),
    engines(
        "host-tier",
        "HiCache: prompts leave for host memory and come back while requests are compressed, and retracted",
        "tests/engine/test_gpu_host_tier.py",
        box=300,
        goldens=True,
    ),
    engines(
        "drafts",
        "do drafts help as much after a compression as before it, on each attention backend",
        "-k",
        "not branch and not recurrent and not latents",
        "tests/engine/test_gpu_speculative.py",
        box=420,
    ),
    engines(
        "branches",
        "drafts that branch, of earlier text and of a model, on each attention backend",
        "-k",
        "branch and not recurrent",
        "tests/engine/test_gpu_speculative.py",
        box=420,
    ),
    engines(
        "drafts-latent",
        "drafts of a model with latent attention (MLA), on each attention backend",
        "-k",
        "latents",
        "tests/engine/test_gpu_speculative.py",
        box=300,
    ),
    engines(
        "drafts-recurrent",
        "drafts of a model with recurrent layers: is each state that of what a step accepted, and of the tree's texts",
        "-k",
        "recurrent",
        "tests/engine/test_gpu_speculative.py",
        box=420,
    ),
    engines(
        "drafts-windows",
        "drafts of a model with sliding windows: chains on fa3 and triton, trees on fa3",
        "-k",
        "drafts",
        "tests/engine/test_gpu_windows.py",
        box=420,
    ),
    engines("lora", "an adapter and its base model in one batch", "tests/engine/test_lora.py", box=170, goldens=True),
    engines(
        "storm-mixed",
        "random requests with mixed chunks in pages of 16, and with PyTorch's scoring",
        "-k",
        "cuda and graphs and (mixed or scoring)",
        RANDOM,
        box=260,
        goldens=True,
        environment=STORM,
    ),
    engines(
        "recordings",
        "all five recordings, in pages of 1 and 16",
        "-k",
        "test_the_recordings_under_cuda_graphs",
        GPU,
        box=420,
        goldens=True,
    ),
)

GROUPS: dict[str, tuple[Step, ...]] = {"first": FIRST, "bench": BENCH, "rest": REST}
STEPS: dict[str, Step] = {step.name: step for group in GROUPS.values() for step in group}


def chosen(words: Sequence[str]) -> tuple[Step, ...]:
    """The steps that these names of steps and groups stand for, in the order given, each once.

    Raises:
        ValueError: a name is neither; the sentence says which there are.
    """
    found: dict[str, Step] = {}
    for word in words:
        if word not in GROUPS and word not in STEPS:
            raise ValueError(f"no step is called {word!r}; there are {', '.join([*GROUPS, *STEPS])}")
        found |= {step.name: step for step in GROUPS.get(word) or (STEPS[word],)}
    return tuple(found.values())
