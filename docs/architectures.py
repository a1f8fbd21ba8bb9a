"""docs/architectures.md, made from `sglang_rpc.contract.architectures`: what RPC says to each architecture in SGLang's
registry, and how far that was tested."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sglang_rpc.contract.architectures import KIND_OF, KINDS, Kind
from sglang_rpc.contract.refusals.model import row_of
from sglang_rpc.contract.versions import SUPPORTED
from tests.unit.architectures.configs import configs

RECURRENT = "`tests/engine/test_recurrent.py`, on a CPU"
WINDOWS = "`tests/engine/test_windows.py`, on a CPU"
WINDOW_POOLS = "`tests/engine/test_window_pool.py`, on a CPU, language model alone, dense"
#: Architectures whose generations were judged token by token, and by what. All of it ran on a CPU, in float32.
SHOWN = {
    "Cohere2ForCausalLM": WINDOWS,
    "DeepseekV2ForCausalLM": "`tests/engine/test_latent.py`, on a CPU",
    "Gemma2ForCausalLM": f"{WINDOWS}, without its cap on attention logits",
    "Gemma3ForCausalLM": f"{WINDOWS}; `test_gemma.py` with real weights (`-m long`)",
    "LlamaForCausalLM": "`tests/engine/test_text.py` with real weights, `eval/reasoner`, on a CPU",
    "Gemma4ForCausalLM": f"{WINDOW_POOLS}, which SGLang's own check of backends keeps from CPUs",
    "MellumForCausalLM": WINDOW_POOLS,
    "Olmo2ForCausalLM": f"{WINDOWS}, as OLMo 3",
    "Qwen2ForCausalLM": "`tests/engine/test_goldens.py`, `test_random.py`, on a CPU",
    "Qwen3NextForCausalLM": RECURRENT,
    "Qwen3_5ForCausalLM": f"{RECURRENT}, dense",
    "Qwen2_5_VLForConditionalGeneration": "`tests/engine/test_mrope.py`, with images and without, on a CPU",
}
#: Those whose layers a test builds.
CHECKED = frozenset(configs())

PAGE = f"""# Architectures

Every architecture in the registry of SGLang {SUPPORTED}, and what RPC says to it. A model's `config.json` names its
own. `python -m sglang_rpc.doctor --model-path MODEL` answers for one model, without its weights.
This page is generated from the code: `python docs/generate.py`.

Where a name or a configuration decides, the server refuses before it loads weights. The layers of every model are
checked once they are built. The codes are those of [limits.md](limits.md#models-and-memory-pools).

## By attention
"""

BY_NAME = """
## By name

"Checked": `tests/unit/architectures` builds the layers of a small model and holds the start-up check against this
table; nothing is run. "Read": the answer comes from reading SGLang's code. **No GPU has run any of them yet.**
"""


def page(table: Callable[[tuple[str, ...], Iterable[tuple[str, ...]]], list[str]]) -> str:
    """The text of docs/architectures.md; `table` writes a Markdown table."""
    kinds = [(kind.title, str(len(kind.architectures)), *_answer(kind)) for kind in KINDS]
    names = [
        (f"`{name}`", KIND_OF[name].title, _in_short(KIND_OF[name]), _tested(name))
        for name in sorted(KIND_OF, key=str.lower)
    ]
    return "\n".join(
        [
            PAGE,
            *table(("attention", "architectures", "with RPC", "code", "why", "way out"), kinds),
            BY_NAME,
            *table(("architecture", "attention", "with RPC", "how far it was tested"), names),
            "",
        ]
    )


def _in_short(kind: Kind) -> str:
    return "depends" if kind.depends else "served" if row_of(kind) is None else "refused"


def _answer(kind: Kind) -> tuple[str, str, str, str]:
    row = row_of(kind)
    if row is None:
        return f"depends on {kind.depends}" if kind.depends else "served", "", "", ""
    answer = f"depends on {kind.depends}; otherwise refused" if kind.depends else "refused"
    return answer, f"`unsupported.{row.name}`", row.why, row.way_out or "only `--disable-rpc`"


def _tested(name: str) -> str:
    return SHOWN.get(name) or ("checked" if name in CHECKED else "read")
