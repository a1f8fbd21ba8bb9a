"""The steps: what each asks, its command, its time box, and which of its log's lines the summary shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: pytest's closing line, and what it must hold: tests that were all skipped prove nothing.
CLOSING, PASSED = r"\d+ (passed|failed|error)|no tests ran", r"\b\d+ passed"
CHECK = r"^\[check\] "
PROGRAMS = "launch.gpu_check.programs."
#: What a leak would trip. The check of every page would make the host wait for the device at every step.
STRICT = (
    ("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY", "1"),
    ("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE", "1"),
    ("SGLANG_CHECK_KV_PAGE_INVARIANTS", "0"),
)
INTERPRETED = ("ring", "move", "select")
GPU = "tests/engine/test_gpu.py"
DTYPE = f"{GPU}::test_compression_adds_little_to_the_error_of_the_dtype"


@dataclass(frozen=True)
class Step:
    """One question to a host.

    Words in braces in a command or an environment are filled in by `commands.command_of`.
    """

    name: str
    asks: str
    command: tuple[str, ...]
    box: int  #: seconds at most
    least: int  #: not begun with fewer seconds left
    headline: str  #: the last line of the log that matches this goes beside the step's name
    proof: str = ""  #: a line that must be there; default: the headline
    details: str = ""  #: other lines to show
    environment: tuple[tuple[str, str], ...] = ()
    modules: tuple[str, ...] = ("torch", "sglang")  #: to be installed
    backend: str = ""  #: attention backend that the host must have
    tool: str = ""  #: program that the host must have
    goldens: bool = False  #: reads the recordings
    again_with_triton: bool = False  #: where the command, which names `{backend}`, fails
    interpreted: tuple[str, ...] = ()  #: the command without a GPU; none: the step needs one


def pytest(*arguments: str, gpu: bool = True) -> tuple[str, ...]:
    chosen = ("-m", "gpu") if gpu else ()
    options = ("-q", "--no-header", "-p", "no:cacheprovider", "-o", "timeout={timeout}")
    return ("{python}", "-m", "pytest", *chosen, *options, *arguments)


def engines(name: str, asks: str, *arguments: str, box: int, least: int = 60, **more: object) -> Step:
    """A step of tests that start engines."""
    return Step(
        name,
        asks,
        pytest("-s", "--durations=5", *arguments),
        box,
        least,
        CLOSING,
        PASSED,
        details=r"^mean gap|requests: \d+ judged",
        modules=("torch", "sglang", "pytest", "hypothesis"),
        **more,  # type: ignore[arg-type]
    )


def dense(backend: str) -> Step:
    return engines(
        f"dense-{backend}",
        f"bfloat16 on the {backend} attention backend, with and without RPC, against a float32 oracle",
        f"{DTYPE}[dense-{backend}-auto]",
        box=120,
        backend=backend,
        environment=(("SGLANG_RPC_GPU_BACKENDS", backend),),
    )


def recording(name: str, asks: str, golden: str, page: int, cpu: bool = False) -> Step:
    command = ("{python}", "-m", PROGRAMS + "recording", golden, "--page-size", str(page))
    return Step(
        name,
        asks,
        (*command, "--device", "cuda"),
        170,
        45,
        CHECK,
        proof=r"^\[check\] .*: OK",
        details=CHECK,
        environment=STRICT,
        goldens=True,
        modules=("torch", "sglang", "pytest", "hypothesis"),
        interpreted=(*command, "--device", "cpu") if cpu else (),
    )


def pairs(name: str, asks: str, *arguments: str, least: int) -> Step:
    server = "--attention-backend {backend} --context-length 8192 --cuda-graph-max-bs-decode 128"
    return Step(
        name,
        asks,
        (
            *("{python}", "-m", PROGRAMS + "pairs", "{results}/{name}", "--device", "cuda", "--shape", "qwen-7b"),
            *("--concurrency", "128", "--rpc-interval", "512", "--repetitions", "1", "--start-seconds", "200"),
            *("--limit-seconds", "240", *arguments),
            f"--server-flags={server} --disable-prefill-cuda-graph --disable-flashinfer-autotune",
        ),
        330,
        least,
        CHECK,
        proof=r"^\[check\] rpc .* errors 0 ",
        details=CHECK,
        modules=("torch", "sglang", "tqdm"),
        again_with_triton=True,
    )


def sanitizer(tool: str, asks: str, *arguments: str) -> Step:
    tests = pytest(*arguments)
    return Step(
        tool,
        asks,
        ("{compute-sanitizer}", "--tool", tool, "--error-exitcode", "1", "--target-processes", "all", *tests),
        120,
        40,
        r"ERROR SUMMARY|RACECHECK SUMMARY",
        proof=r"(ERROR|RACECHECK) SUMMARY: 0 ",
        details=CLOSING,
        # Without PyTorch's cache every tensor is an allocation of its own, so that a read beyond one is seen.
        environment=(("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),) if tool == "memcheck" else (),
        modules=("torch", "pytest", "hypothesis"),
        tool="compute-sanitizer",
    )


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
        # Seconds instead of minutes: what moves and what is written.
        interpreted=pytest("-n", "{processes}", *(f"tests/kernels/test_{part}.py" for part in INTERPRETED), gpu=False),
    ),
    Step(
        "doctor",
        "is this SGLang one that RPC was proven on; which attention backends can be used",
        ("{python}", "-m", "sglang_rpc.doctor"),
        60,
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
        "how long scoring, selecting and moving take, beside this GPU's copy bandwidth",
        (
            *("{python}", "-m", "eval.bench.kernels", "--out", "{results}/kernels"),
            *("--candidates", "1024", "4096", "16384", "--batch", "1", "8", "64"),
        ),
        110,
        40,
        r"\btotal +\d+ us",
        details=r"a copy moves|left out|16384 +(scores|select|move) ",
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
