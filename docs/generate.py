"""Write the pages that are made from the code, those of `PAGES`: `python docs/generate.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from docs import architectures
from sglang_rpc import errors
from sglang_rpc.config import CONFIG_ENV, SETTINGS, RPCConfig, flag, request_kinds
from sglang_rpc.contract.refusals.draft import DRAFT_ROWS
from sglang_rpc.contract.refusals.model import MODEL_ROWS
from sglang_rpc.contract.refusals.request import REQUEST_ROWS
from sglang_rpc.contract.refusals.reuse import REUSE_MODEL_ROWS, REUSE_ROWS
from sglang_rpc.contract.refusals.row import Row
from sglang_rpc.contract.refusals.server import ATTENTION_BACKENDS, SERVER_ROWS
from sglang_rpc.contract.refusals.speculative import SPECULATIVE_MODEL_ROWS, SPECULATIVE_ROWS
from sglang_rpc.hooks.metrics import METRICS
from sglang_rpc.hooks.reporting import SERVER_INFO_FIELDS
from sglang_rpc.hooks.texts import TEXT_FIELDS
from sglang_rpc.runtime.receipt import RECEIPT_FIELDS
from sglang_rpc.runtime.receipt import TEXT_FIELDS as OF_TEXT
from sglang_rpc.startup.flags import CONFIG_HELP, DISABLE_HELP

ONLY_OFF = "only `--disable-rpc`"
NOTE = "This page is generated from the code: `python docs/generate.py`."

LIMITS = f"""# Limits

What does not work with RPC. A server with one of these switched on stops at start-up with a sentence that names it;
nothing is ever compressed wrongly, or silently not at all. `--disable-rpc` turns RPC off and lifts every one of them.
The code stands in brackets at the end of the sentence. {NOTE}
"""

#: Row of the model table -> what is not supported, and what is. An example is one, not the list.
MODELS = {
    "not_generative": ("embedding, reward and classification models", "models that generate text"),
    "draft_model": ("draft models of speculative decoding", "the models that they draft for"),
    "diffusion": ("models that generate by diffusion, such as LLaDA and SDAR", "models that generate token by token"),
    "encoder_decoder": ("encoder-decoder models, such as Whisper", "decoder-only models"),
    "recurrent_state": (
        "recurrent layers alone, or beside lightning attention, windows or indexers, such as Mamba and Ring 2.5",
        "full attention beside gated delta nets, KDA, Mamba 2, short convolutions, such as Qwen3-Next and Nemotron-H",
    ),
    "sparse_attention": (
        "attention to keys that an indexer chooses (DSA and others), such as DeepSeek V3.2 and GLM-5",
        "attention to every key",
    ),
    "ngram_embedding": ("n-gram embeddings, as in some LongCat models", "embeddings of single tokens"),
    "position_table": ("models that draw images, as GLM-Image", "images, video and sound in the prompt"),
    "other_attention": ("cross-attention, encoder and bidirectional layers", "causal self-attention"),
    "chunked_attention": ("layers that attend within chunks, as in Llama 4", "full attention, sliding windows"),
    "only_windows": ("a sliding window in every layer", "full attention in some layers"),
    "window_policy": ("`--rpc-policy lightthinker` with sliding windows", "all other policies"),
    "window_attention": (
        "sliding windows longer than what a compression keeps, `max(F, int(P/c)) + R` entries and one's own",
        "Gemma 2 and 3, OLMo 3, Cohere 2 and others: with the defaults, windows of up to 1057 tokens",
    ),
    "window_pages": (
        "sliding windows with a KV pool of their own, of pages of which a compression would evict a part: it evicts "
        "`P - int(P/c)` entries",
        "whole pages: the defaults evict 3072 entries",
    ),
    "window_not_applied": (
        "an attention backend with one window for all layers, which is not theirs, as `flashinfer` or `triton` with "
        "Cohere 2",
        "fa3, torch_native; the others where SGLang's model code names its window",
    ),
    "distance_attention": ("ALiBi, and temperatures by distance, as in Grok", "rope"),
    "logit_capping": ("attention logits capped by another function than tanh", "a tanh cap, or none"),
    "layers_not_found": (
        "layers that keep KV without SGLang's attention layer, or out of RPC's sight",
        "SGLang's own model code",
    ),
    "shared_kv": ("layers that read another layer's KV, as in Gemma 3n", "KV of its own in every layer"),
    "head_shapes": ("layers that differ in number or size of their heads", "equal layers"),
    "own_dispatch": (
        "latent attention (MLA) that decides by code of its own when to expand latents",
        "models that use DeepSeek V2's attention class as it is",
    ),
    "heads_of_all_ranks": (
        "with `--attn-dp-size`: models whose SGLang code splits attention over all ranks, such as Llama, Qwen2, "
        "Mistral, Gemma, OLMo 2 and Phi-3; SGLang starts them and their outputs are wrong",
        "DeepSeek, Qwen3 and its MoE models, GLM-4.5, gpt-oss, MiniMax M2 and others",
    ),
    "replicated_kv_heads": (
        "`--rpc-aggregation group` on more tensor-parallel ranks than there are KV heads",
        "as many ranks as KV heads, or fewer",
    ),
    "trace_of_split_heads": (
        "`--rpc-trace` with `--rpc-aggregation group` on several tensor-parallel ranks",
        "one rank; `--rpc-aggregation all`",
    ),
    "memory_of_two_kinds": (
        "a pipeline, or DP attention, with recurrent layers, or with sliding windows that have a KV pool of their own",
        "models whose layers have one KV pool",
    ),
    "transferred_kinds": (
        "a decode server (`--disaggregation-mode decode`) with sliding windows or recurrent layers",
        "full attention in all layers",
    ),
    "trace_of_stages": ("`--rpc-trace` with a pipeline", "no pipeline"),
    "latent_on_rocm": ("latent attention (MLA) on AMD GPUs", "MLA on NVIDIA GPUs"),
    "policy_on_latents": ("a policy that adds up attention (`h2o`) with latent attention (MLA)", "all other policies"),
    "policy_on_split_heads": (
        "a policy that compares the query heads of a KV head (`rkv`) on ranks that share one",
        "as many ranks as KV heads, or fewer; with MLA, one",
    ),
    "attention_backend_in_use": ("an attention backend that SGLang chose for the model", ", ".join(ATTENTION_BACKENDS)),
    "kv_quantization": ("a KV cache with scales of its own", "bfloat16, fp8_e4m3, fp8_e5m2"),
    "kv_dtype": ("a KV cache of another type", "bfloat16, float16, float32, fp8_e4m3, fp8_e5m2"),
    "kv_layout": ("a KV cache in which a slot lies in pieces", "SGLang's default layout"),
    "kv_pool": (
        "models with a pool of their own: latents with windows, 4-bit KV",
        "the pools of full attention, of MLA, and of windows beside full attention",
    ),
    "row_pool": ("requests that own more than KV slots and recurrent states", "KV slots, recurrent states"),
    "allocator": (
        "another allocator of slots, which a model or a flag brings: windows alone, or in a ring per request",
        "SGLang's ordinary two, and that of windows beside full attention",
    ),
    "tree": ("another prefix cache", "SGLang's default; `--disable-radix-cache`"),
    "host_tier_of_two_kinds": (
        "`--enable-hierarchical-cache` with recurrent layers, or with sliding windows that have a KV pool of their own",
        "models whose layers have one KV pool",
    ),
    "second_tier": ("a prefix cache that is linked to an external store", "one that is not"),
}

REFERENCE = f"""# Reference

Every flag, option and field. {NOTE}

## Server settings

Lowest precedence first: the defaults, the environment variable `{CONFIG_ENV}`, `--rpc-config`, each `--rpc-*` flag,
and for one request its own options. `RPCConfig` has the same fields, with `_` for `-` and without `--rpc-`.
"""

ENVIRONMENT = f"""
`{CONFIG_ENV}` holds the settings as a JSON object, or the path of a JSON file; `{{}}` stands for the defaults. It
switches RPC on for a plain `sglang.Engine` or `sglang serve`. Settings have the names of the fields there.
"""

REQUESTS = """
## Options of one request

`custom_params: {"rpc": {...}}`, in `sampling_params` for `/generate` and at the top level for `/v1/completions` and
`/v1/chat/completions`. What an option leaves out is the server's. `64.0` counts as `64`.
"""

WRONG_OPTIONS = """
HTTP 400 and a sentence answer a wrong option, a prompt or length that can never fit, and a feature that
[cannot be compressed](limits.md#single-requests). A streamed `/generate` is the exception: SGLang sends HTTP 200 before
it checks the request. The error is then the first event, `data: {"error": {"message": ..., "code": 400, ...}}`, and
`data: [DONE]` follows.
"""

RECEIPT = """
## Receipt

`meta_info.rpc` of a response, once the request has been compressed or has asked for it, or if it cannot be compressed.
"""

METRICS_HEAD = """
## Metrics

In `/metrics`, with `--enable-metrics` and the labels of SGLang's own.
"""

SERVER_INFO = """
## Server state

`internal_states[i].rpc` in `/server_info`. Counts are since the server started.
"""

TEXT_INFO = """
With `--rpc-reuse-text` also:
"""

ERRORS = """
## Errors and their codes

```
{tree}
```

The code stands at the end of each message: on the command line, in the log, and in the body of an HTTP 400. Codes stay;
sentences may change. For example `sglang-rpc: {example}`.
"""


def _beside(rows: Iterable[Row[...]]) -> Iterator[tuple[str, ...]]:
    """What does not work beside a feature."""
    return ((f"`unsupported.{r.name}`", r.switches, r.why, r.way_out) for r in rows)


def limits_page() -> str:
    """The text of docs/limits.md."""
    server = ((f"`unsupported.{r.name}`", r.switches, r.why, r.way_out) for r in SERVER_ROWS)
    model = ((f"`unsupported.{r.name}`", *MODELS[r.name], r.why, r.way_out or ONLY_OFF) for r in MODEL_ROWS)
    speculative = _beside((*SPECULATIVE_ROWS, *SPECULATIVE_MODEL_ROWS, *DRAFT_ROWS))
    reuse = _beside((*REUSE_ROWS, *REUSE_MODEL_ROWS))
    return "\n".join(
        [
            LIMITS,
            "## Server flags and environment\n",
            *table(("code", "what", "why", "way out"), server),
            "\n## Models and memory pools\n",
            "Checked once the model is loaded. With `--disable-rpc` SGLang serves such a model too, uncompressed.\n",
            *table(("code", "not supported", "supported", "why", "way out"), model),
            "\n## Single requests\n",
            "Such a request is served uncompressed and its receipt says why. If it asked for compression itself, with",
            '`custom_params: {"rpc": {...}}`, it gets HTTP 400 instead.\n',
            *table(("code", "why"), ((f"`request.{r.name}`", r.why) for r in REQUEST_ROWS)),
            "\n## With speculative decoding\n",
            "RPC works with these without `--speculative-algorithm`.\n",
            *table(("code", "what", "why", "way out"), speculative),
            "\n## With `--rpc-reuse`\n",
            "RPC works with these where reuse is off.\n",
            *table(("code", "what", "why", "way out"), reuse),
            "",
        ]
    )


def reference_page() -> str:
    """The text of docs/reference.md."""
    defaults = RPCConfig()
    flags = [
        (f"`{flag(name)}`", s.kind_in(defaults).allowed, s.unset or f"`{getattr(defaults, name)}`", s.help)
        for name, s in SETTINGS.items()
    ]
    flags += [
        ("`--rpc-config`", "a JSON object or a file", "none", CONFIG_HELP),
        ("`--disable-rpc`", "", "", DISABLE_HELP),
    ]
    options = [
        (f"`{name}`", kind.allowed, SETTINGS[name].help if name in SETTINGS else "false: do not compress this request")
        for name, kind in request_kinds(defaults, defaults.interval).items()
    ]
    tree = (errors.__doc__ or "").split("\n\n")[1]
    example = errors.ConfigError("--rpc-window must be an integer from 1 to 16777216, got 0", "config.window")
    return "\n".join(
        [
            REFERENCE,
            *table(("flag", "allowed", "default", "what it does"), flags),
            ENVIRONMENT + REQUESTS,
            *table(("option", "allowed, with the server's defaults", "what it does"), options),
            WRONG_OPTIONS + RECEIPT,
            *table(("field", "meaning"), ((f"`{name}`", text) for name, text in (RECEIPT_FIELDS | OF_TEXT).items())),
            METRICS_HEAD,
            *table(("metric", "type", "meaning"), ((f"`{m.shown}`", m.kind, m.help) for m in METRICS)),
            SERVER_INFO,
            *table(("field", "meaning"), ((f"`{name}`", text) for name, text in SERVER_INFO_FIELDS.items())),
            TEXT_INFO,
            *table(("field", "meaning"), ((f"`{name}`", text) for name, text in TEXT_FIELDS.items())),
            ERRORS.format(tree=tree, example=example),
        ]
    )


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, tuple("---" for _ in head), *rows)]


PAGES = {
    "architectures.md": lambda: architectures.page(table),
    "limits.md": limits_page,
    "reference.md": reference_page,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (Path(__file__).parent / name).write_text(page(), encoding="utf-8")
