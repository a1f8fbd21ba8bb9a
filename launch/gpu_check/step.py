"""What a step is, and the kinds of steps that there are: tests, recordings, benchmarks, the sanitizer."""

from __future__ import annotations

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
