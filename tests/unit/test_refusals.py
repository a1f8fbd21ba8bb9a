"""Every refusal, one test a row: it refuses, in a sentence that names what was given and a way out."""

from __future__ import annotations

import argparse
import os
import re
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from sglang_rpc.config import RPCConfig
from sglang_rpc.contract import refusals, versions
from sglang_rpc.contract.refusals import (
    ATTENTION_BACKENDS,
    MODEL_ROWS,
    REQUEST_ROWS,
    SERVER_ROWS,
    ServingFacts,
    refuse_arguments,
    refuse_model_runner,
    refuse_request,
    refuse_server_args,
)
from sglang_rpc.contract.refusals.model import ALLOCATORS, DEEPSEEK, KV_POOLS, ROW_POOLS, TREES
from sglang_rpc.errors import ConfigError, IncompatibleSGLangError, UnsupportedError

ROOT = Path(__file__).parents[2]
GOLDENS = Path(os.environ.get("SGLANG_RPC_GOLDENS", ROOT.parent / "shared" / "goldens"))


def graphs(prefill: str) -> SimpleNamespace:
    return SimpleNamespace(prefill=SimpleNamespace(backend=prefill), decode=SimpleNamespace(backend="full"))


#: What SGLang's arguments are after resolution on one H100, as far as the rows look.
PLAIN = dict(
    attention_backend="fa3",
    attn_cp_size=1,
    attn_dp_size=1,
    chunked_prefill_size=8192,
    cuda_graph_config=graphs("breakable"),
    dcp_size=1,
    decode_attention_backend=None,
    decoupled_spec_role="null",
    device="cuda",
    disaggregation_mode="null",
    dllm_algorithm=None,
    dwdp_size=1,
    elastic_ep_backend=None,
    enable_amd_monokernel=False,
    enable_dp_attention=False,
    enable_dsa_cache_layer_split=False,
    enable_flexkv=False,
    enable_hierarchical_cache=False,
    enable_hisparse=False,
    enable_kv_cache_sharding=False,
    enable_lmcache=False,
    enable_mixed_chunk=False,
    enable_nvidia_megakernel=False,
    enable_page_major_kv_layout=False,
    enable_pd_role_switch=False,
    enable_pdmux=False,
    enable_prefill_cp=False,
    enable_session_radix_cache=False,
    enable_streaming_session=False,
    enable_torch_compile=False,
    enable_two_batch_overlap=False,
    enable_unified_cache_external_linker=False,
    enable_unified_memory=False,
    encoder_only=False,
    ep_join_mode=None,
    is_embedding=False,
    kv_cache_dtype="auto",
    kv_canary="none",
    model_impl="auto",
    pp_size=1,
    prefill_attention_backend=None,
    prefill_only_disable_kv_cache=False,
    radix_cache_backend=None,
    speculative_algorithm=None,
    tokenizer_worker_num=1,
    use_ray=False,
)

MIXED = dict(enable_mixed_chunk=True, cuda_graph_config=graphs("breakable"))
#: Row -> arguments that switch it on, each with what its sentence must name. Upper case is environment.
SERVER_EXAMPLES: dict[str, list[tuple[dict, str]]] = {
    "speculative_decoding": [
        (dict(speculative_algorithm="EAGLE"), "--speculative-algorithm EAGLE"),
        (dict(decoupled_spec_role="drafter"), "--decoupled-spec-role drafter"),
    ],
    "pd_disaggregation": [
        (dict(disaggregation_mode="decode"), "--disaggregation-mode decode"),
        (dict(enable_pd_role_switch=True), "--enable-pd-role-switch"),
    ],
    "encoder_only": [(dict(encoder_only=True), "--encoder-only")],
    "embedding_model": [
        (dict(is_embedding=True), "--is-embedding"),
        (dict(prefill_only_disable_kv_cache=True), "--prefill-only-disable-kv-cache"),
    ],
    "diffusion_llm": [(dict(dllm_algorithm="LowConfidence"), "--dllm-algorithm LowConfidence")],
    "pipeline_parallel": [(dict(pp_size=2), "--pp-size 2")],
    "context_parallel": [
        (dict(attn_cp_size=2), "--attn-cp-size 2"),
        (dict(enable_prefill_cp=True), "--enable-prefill-cp"),
        (dict(dcp_size=4), "--dcp-size 4"),
    ],
    "kv_sharding": [
        (dict(enable_kv_cache_sharding=True), "--enable-kv-cache-sharding"),
        (dict(enable_dsa_cache_layer_split=True), "--enable-dsa-cache-layer-split"),
    ],
    "dp_attention": [
        (dict(attn_dp_size=2), "--attn-dp-size 2"),
        (dict(dwdp_size=2, attn_dp_size=2), "--dwdp-size 2"),
        (dict(enable_dp_attention=True), "--enable-dp-attention"),
    ],
    "elastic_ep": [
        (dict(elastic_ep_backend="mooncake"), "--elastic-ep-backend mooncake"),
        (dict(ep_join_mode="scale"), "--elastic-ep-join-mode scale"),
    ],
    "hierarchical_cache": [(dict(enable_hierarchical_cache=True), "--enable-hierarchical-cache")],
    "lmcache": [(dict(enable_lmcache=True), "--enable-lmcache")],
    "flexkv": [(dict(enable_flexkv=True), "--enable-flexkv")],
    "external_linker": [(dict(enable_unified_cache_external_linker=True), "--enable-unified-cache-external-linker")],
    "radix_cache_backend": [(dict(radix_cache_backend="flexkv"), "--radix-cache-backend flexkv")],
    "streaming_session": [(dict(enable_streaming_session=True), "--enable-streaming-session")],
    "session_radix_cache": [(dict(enable_session_radix_cache=True), "--enable-session-radix-cache")],
    "hisparse": [(dict(enable_hisparse=True), "--enable-hisparse")],
    "unified_memory": [(dict(enable_unified_memory=True), "--enable-unified-memory")],
    "page_major_layout": [(dict(enable_page_major_kv_layout=True), "--enable-page-major-kv-layout")],
    "hnd_layout": [(dict(SGLANG_USE_HND_KVCACHE="1"), "SGLANG_USE_HND_KVCACHE=1")],
    "vectorized_layout": [
        (dict(SGLANG_AITER_KV_CACHE_LAYOUT="vectorized_5d"), "SGLANG_AITER_KV_CACHE_LAYOUT=vectorized_5d")
    ],
    "kv_cache_dtype": [
        (dict(kv_cache_dtype="nvfp4"), "--kv-cache-dtype nvfp4"),
        (dict(kv_cache_dtype="fp4_mx_block16"), "--kv-cache-dtype fp4_mx_block16"),
        (dict(kv_cache_dtype="mxfp8"), "--kv-cache-dtype mxfp8"),
    ],
    "attention_backend": [
        (dict(attention_backend="trtllm_mha"), "--attention-backend trtllm_mha"),
        (dict(attention_backend="trtllm_mla"), "--attention-backend trtllm_mla"),
        (dict(decode_attention_backend="cutedsl_mla"), "--decode-attention-backend cutedsl_mla"),
        (dict(prefill_attention_backend="fa4"), "--prefill-attention-backend fa4"),
    ],
    "device": [(dict(device="npu"), "--device npu"), (dict(device="xpu"), "--device xpu")],
    "mlx": [(dict(SGLANG_USE_MLX="true"), "SGLANG_USE_MLX=true")],
    "model_impl": [(dict(model_impl="transformers"), "--model-impl transformers")],
    "fused_decode_kernel": [
        (dict(enable_nvidia_megakernel=True), "--enable-nvidia-megakernel"),
        (dict(enable_amd_monokernel=True), "--enable-amd-monokernel"),
    ],
    "torch_compile": [(dict(enable_torch_compile=True), "--enable-torch-compile")],
    "two_batch_overlap": [(dict(enable_two_batch_overlap=True), "--enable-two-batch-overlap")],
    "pd_multiplexing": [(dict(enable_pdmux=True), "--enable-pdmux")],
    "mixed_chunk_in_a_graph": [(MIXED, "--enable-mixed-chunk")],
    "kv_canary": [(dict(kv_canary="log"), "--kv-canary log")],
    "ray": [(dict(use_ray=True), "--use-ray")],
    "rust_server": [(dict(SGLANG_RUST_SERVER="yes"), "SGLANG_RUST_SERVER=yes")],
    "post_capture_sizing": [(dict(SGLANG_ENABLE_POST_CAPTURE_KV_SIZING="1"), "SGLANG_ENABLE_POST_CAPTURE_KV_SIZING=1")],
    "tokenizer_workers": [(dict(tokenizer_worker_num=2), "--tokenizer-worker-num 2")],
}
SERVER_CASES = [
    pytest.param(row, given, named, id=f"{row.name}-{named.split()[0].strip('-')}")
    for row in SERVER_ROWS
    for given, named in SERVER_EXAMPLES.get(row.name, [])
]

CONFIG = RPCConfig()
#: Row -> facts that make it apply, with what its sentence must name.
MODEL_EXAMPLES: dict[str, tuple[dict, str]] = {
    "not_generative": (dict(generates=False), "LlamaForCausalLM"),
    "encoder_decoder": (dict(encoder_decoder=True), "encoder-decoder"),
    "recurrent_state": (dict(recurrent_state=True), "recurrent"),
    "ngram_embedding": (dict(ngram_embedding=True), "n-gram"),
    "mrope": (dict(mrope=True), "mrope"),
    "other_attention": (dict(other_attention=3), "3 cross-attention"),
    "window_attention": (dict(window_layers=12), "12 sliding-window"),
    "distance_attention": (dict(distance_layers=4), "4 layers"),
    "logit_capping": (dict(capped_oddly=2), "2 layers"),
    "layers_not_found": (dict(decoder_layers=0, pool_layers=28), "0 attention layers for 28"),
    "shared_kv": (dict(shared_kv=5), "5 layers"),
    "head_shapes": (dict(head_shapes=2), "2 different"),
    "own_dispatch": (dict(latent_attention=True, own_dispatch=61), "61 latent"),
    "replicated_kv_heads": (dict(tp_size=8, total_kv_heads=4), "--tp-size 8"),
    "trace_of_split_heads": (dict(tp_size=2, total_kv_heads=4), "--rpc-trace"),
    "latent_on_rocm": (dict(latent_attention=True, rocm=True), "on ROCm"),
    "policy_on_latents": (dict(latent_attention=True), "--rpc-policy h2o"),
    "policy_on_split_heads": (dict(tp_size=8, total_kv_heads=4), "--rpc-policy rkv with --tp-size 8"),
    "attention_backend_in_use": (dict(decode_backend="dsa"), "dsa"),
    "kv_quantization": (dict(kv_quantization="cpu_fp8_e4m3"), "cpu_fp8_e4m3"),
    "kv_dtype": (dict(kv_dtype="float4_e2m1fn_x2"), "float4_e2m1fn_x2"),
    "kv_layout": (dict(kv_layout="hnd"), "hnd"),
    "kv_pool": (dict(kv_pool="SWAKVPool"), "SWAKVPool"),
    "row_pool": (dict(row_pool="HybridReqToTokenPool"), "HybridReqToTokenPool"),
    "allocator": (dict(allocator="SWATokenToKVPoolAllocator"), "SWATokenToKVPoolAllocator"),
    "tree": (dict(tree="LMCacheUnifiedRadixCache"), "LMCacheUnifiedRadixCache"),
    "second_tier": (dict(tree="UnifiedRadixCache", second_tier=True), "second tier"),
}

#: Row -> request fields (sampling parameters in capitals), with what the sentence must name.
REQUEST_EXAMPLES: dict[str, tuple[dict, str]] = {
    "beam_search": (dict(BEAM_WIDTH=4), "beam_width=4"),
    "input_embeds": (dict(input_embeds=[[0.0, 1.0]]), "input_embeds"),
    "return_routed_experts": (dict(return_routed_experts=True), "return_routed_experts"),
    "return_indexer_topk": (dict(return_indexer_topk=True), "return_indexer_topk"),
}


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("SGLANG_USE_HND_KVCACHE", "SGLANG_AITER_KV_CACHE_LAYOUT", "SGLANG_USE_MLX", "SGLANG_RUST_SERVER"):
        monkeypatch.delenv(name, raising=False)


def split_environment(monkeypatch, given: dict) -> dict:
    for name, value in given.items():
        if name.isupper():
            monkeypatch.setenv(name, value)
    return {name: value for name, value in given.items() if not name.isupper()}


def assert_refused(error: UnsupportedError, row, named: str) -> None:
    """One sentence with all its parts, then the code."""
    sentence = error.sentence
    assert error.code == f"unsupported.{row.name}" and str(error) == f"{sentence} [{error.code}]"
    assert named in sentence and row.why in sentence
    assert "does not work with RPC: " in sentence
    assert "\n" not in sentence and not re.search(r"[.!?] [A-Z]", sentence), sentence
    assert re.search(r"; .*(remove|use|unset|add|start with) ", sentence), sentence
    assert sentence.endswith("--disable-rpc")


# ---- the tables ----


@pytest.mark.parametrize(
    ("rows", "examples"),
    [(SERVER_ROWS, SERVER_EXAMPLES), (MODEL_ROWS, MODEL_EXAMPLES), (REQUEST_ROWS, REQUEST_EXAMPLES)],
    ids=["server", "model", "request"],
)
def test_every_row_has_an_example_and_a_name_of_its_own(rows, examples):
    names = [row.name for row in rows]
    assert sorted(names) == sorted(examples)
    assert len(set(names)) == len(names)


def test_the_page_has_every_row():
    page = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    for row in SERVER_ROWS:
        assert f"| `unsupported.{row.name}` | {row.switches} | {row.why} | {row.way_out} |" in page
    for row in MODEL_ROWS:
        assert f"| `unsupported.{row.name}` | {row.why} | {row.way_out or '-'} |" in page
    for row in REQUEST_ROWS:
        assert f"| `request.{row.name}` | {row.why} |" in page


@pytest.mark.parametrize("name", ["limits.md", "reference.md"])
def test_generated_pages_are_current(name):
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert page == runpy.run_path(str(ROOT / "docs" / "generate.py"))["PAGES"][name](), "run: python docs/generate.py"


# ---- the server's arguments ----


def test_plain_arguments_pass():
    refuse_arguments(SimpleNamespace(**PLAIN))


@pytest.mark.parametrize(
    "change",
    [
        *({"attention_backend": name} for name in ATTENTION_BACKENDS),
        {"attention_backend": None},
        *({"kv_cache_dtype": name} for name in ("bf16", "bfloat16", "fp8_e4m3", "fp8_e5m2")),
        {"device": "cpu"},
        {"device": None},
        {"model_impl": "sglang"},
        {"enable_mixed_chunk": True, "cuda_graph_config": graphs("disabled")},
        {"enable_mixed_chunk": True, "cuda_graph_config": None},
        {**MIXED, "chunked_prefill_size": -1},
        {"SGLANG_USE_HND_KVCACHE": "false"},
        {"SGLANG_AITER_KV_CACHE_LAYOUT": "nhd"},
        {"SGLANG_RUST_SERVER": "0"},
    ],
    ids=str,
)
def test_what_works_passes(change, monkeypatch):
    refuse_arguments(SimpleNamespace(**{**PLAIN, **split_environment(monkeypatch, change)}))


@pytest.mark.parametrize(("row", "given", "named"), SERVER_CASES)
def test_server_row(row, given, named, monkeypatch):
    arguments = SimpleNamespace(**{**PLAIN, **split_environment(monkeypatch, given)})
    with pytest.raises(UnsupportedError) as caught:
        refuse_arguments(arguments)
    assert_refused(caught.value, row, named)


def test_an_argument_that_is_gone_is_not_taken_for_off():
    known = {name: value for name, value in PLAIN.items() if name != "enable_lmcache"}
    with pytest.raises(IncompatibleSGLangError, match="enable_lmcache"):
        refuse_arguments(SimpleNamespace(**known))


# ---- against SGLang itself ----


@pytest.fixture(scope="module")
def sglang_arguments():
    pytest.importorskip("sglang", reason="SGLang is not installed")
    from sglang_rpc.startup import cpu

    cpu.prepare()
    from sglang.srt.server_args import ServerArgs

    return ServerArgs


@pytest.fixture(scope="module")
def resolved(sglang_arguments):
    """Real arguments, resolved as a launch on this machine would."""
    from sglang_rpc.startup import cpu

    model = GOLDENS / "gqa_all_p64"
    if not model.is_dir():
        pytest.skip(f"no golden model at {model} (SGLANG_RPC_GOLDENS)")
    server_args = sglang_arguments(model_path=str(model), skip_tokenizer_init=True, **cpu.server_defaults())
    server_args.resolve_once()
    server_args.check_server_args()
    return server_args


def test_real_defaults_pass(sglang_arguments):
    """Every predicate runs, so every argument that a row reads exists."""
    refuse_server_args(sglang_arguments(model_path="dummy"))


def test_real_resolved_arguments_pass(resolved):
    refuse_server_args(resolved)


@pytest.mark.parametrize(("row", "given", "named"), SERVER_CASES)
def test_server_row_on_real_arguments(row, given, named, sglang_arguments, monkeypatch):
    given = split_environment(monkeypatch, given)
    if versions.current().absent_arguments.keys() & given:
        with pytest.raises(TypeError):
            sglang_arguments(model_path="dummy", **given)
        return
    server_args = sglang_arguments(model_path="dummy", **given)
    with pytest.raises(UnsupportedError) as caught:
        refuse_server_args(server_args)
    assert named in str(caught.value) and row.why in str(caught.value)


def test_what_sglang_resolved_counts_not_what_was_typed(sglang_arguments):
    from sglang.srt.arg_groups.overrides import declare_resolution

    server_args = sglang_arguments(model_path="dummy")
    declare_resolution(server_args, "test", attention_backend="trtllm_mha")
    assert server_args.attention_backend is None
    with pytest.raises(UnsupportedError, match="trtllm_mha"):
        refuse_server_args(server_args)


def test_flags_and_variables_are_sglangs(sglang_arguments):
    from sglang.srt.environ import envs

    parser = argparse.ArgumentParser()
    sglang_arguments.add_cli_args(parser)
    text = " ".join([*(r.switches + " " + r.way_out for r in SERVER_ROWS), *(r.way_out for r in MODEL_ROWS)])
    text += " " + " ".join(named for _, _, named in (case.values for case in SERVER_CASES))
    flags = {flag for flag in re.findall(r"--[a-z0-9-]+", text) if not flag.startswith("--rpc-")}
    known = set(parser._option_string_actions)
    if versions.current() is not list(versions.VERSIONS.values())[-1]:
        known |= {f"--{name.replace('_', '-')}" for name in versions.current().absent_arguments}
        known.add("--enable-hicache")  # another name of --enable-hierarchical-cache since 0.5.23
    assert flags <= known, flags - known
    for variable in re.findall(r"SGLANG_[A-Z0-9_]+", text):
        assert hasattr(envs, variable)


def test_every_choice_of_sglangs_is_decided(sglang_arguments):
    from sglang.srt.arg_groups.choices import ATTENTION_BACKEND_CHOICES

    assert set(ATTENTION_BACKENDS) <= set(ATTENTION_BACKEND_CHOICES)
    for name in set(ATTENTION_BACKEND_CHOICES) - set(ATTENTION_BACKENDS):
        with pytest.raises(UnsupportedError, match=name):
            refuse_arguments(SimpleNamespace(**{**PLAIN, "attention_backend": name}))


def test_classes_are_sglangs(sglang_arguments):
    from sglang.srt.mem_cache import allocator, memory_pool, unified_radix_cache

    for names, module in (
        (KV_POOLS + ROW_POOLS, memory_pool),
        (ALLOCATORS, allocator),
        (TREES, unified_radix_cache),
    ):
        for name in names:
            assert hasattr(module, name), name


# ---- the model and the pools ----


@pytest.mark.parametrize("aggregation", ["all", "group"])
def test_plain_facts_pass(aggregation):
    refuse_model_runner(ServingFacts(), replace(CONFIG, aggregation=aggregation))
    refuse_model_runner(ServingFacts(tree="UnifiedRadixCache", page_size=64), replace(CONFIG, aggregation=aggregation))


def test_replicated_kv_heads_are_fine_when_all_heads_keep_the_same():
    refuse_model_runner(ServingFacts(tp_size=8, total_kv_heads=4), replace(CONFIG, aggregation="all"))
    refuse_model_runner(ServingFacts(tp_size=4, total_kv_heads=4), replace(CONFIG, aggregation="group"))


def test_a_trace_of_what_every_rank_keeps_alike_is_fine():
    for aggregation, tp_size in (("all", 2), ("group", 1)):
        facts = ServingFacts(tp_size=tp_size, total_kv_heads=4)
        refuse_model_runner(facts, replace(CONFIG, aggregation=aggregation, trace="traces"))


@pytest.mark.parametrize("row", MODEL_ROWS, ids=lambda row: row.name)
def test_model_row(row):
    facts, named = MODEL_EXAMPLES[row.name]
    policy = {"policy_on_latents": "h2o", "policy_on_split_heads": "rkv"}.get(row.name, "rpc")
    aggregation = "group" if row.name in ("replicated_kv_heads", "trace_of_split_heads") else "all"
    trace = "traces" if row.name == "trace_of_split_heads" else None
    config = replace(CONFIG, aggregation=aggregation, policy=policy, trace=trace)
    with pytest.raises(UnsupportedError) as caught:
        refuse_model_runner(ServingFacts(**facts), config)
    assert_refused(caught.value, row, named)


class UnifiedRadixCache:
    """As much of SGLang's as the facts read."""

    cache_controller = None
    linker = None


@pytest.fixture
def model_runner(resolved, monkeypatch):
    """SGLang's own config, layers and pools, as far as they can be built without a model runner."""
    import torch
    from sglang.srt import runtime_context
    from sglang.srt.arg_groups.overrides import model_config_of
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool

    monkeypatch.setattr(runtime_context, "get_parallel", lambda: SimpleNamespace(attn_tp_size=2))
    pool = MHATokenToKVPool(8, 1, torch.float32, 2, 16, 3, "cpu", False)
    layers = [RadixAttention(4, 16, 0.25, num_kv_heads=2, layer_id=i) for i in range(3)]
    return SimpleNamespace(
        model_config=model_config_of(resolved),
        model=torch.nn.ModuleList(layers),
        use_mla_backend=False,
        decode_attention_backend_str="torch_native",
        prefill_attention_backend_str="torch_native",
        req_to_token_pool=ReqToTokenPool(2, 8, "cpu", False),
        token_to_kv_pool_allocator=TokenToKVPoolAllocator(8, torch.float32, "cpu", pool, False),
    )


def test_facts_of_a_model_runner(model_runner):
    facts = refusals.gather_facts(model_runner)
    assert facts == ServingFacts(
        model="Qwen2ForCausalLM", decoder_layers=3, pool_layers=3, total_kv_heads=2, tp_size=2, kv_dtype="float32"
    )
    refuse_model_runner(facts, CONFIG)


def test_facts_of_a_scheduler(model_runner):
    scheduler = SimpleNamespace(tp_worker=SimpleNamespace(model_runner=model_runner), tree_cache=UnifiedRadixCache())
    facts = refusals.gather_facts(scheduler)
    assert facts.tree == "UnifiedRadixCache" and not facts.second_tier
    refuse_model_runner(facts, CONFIG)
    scheduler.tree_cache.cache_controller = object()
    assert refusals.gather_facts(scheduler).second_tier


@pytest.mark.parametrize(
    ("change", "row"),
    [
        (dict(sliding_window_size=128), "window_attention"),
        (dict(use_irope=True), "window_attention"),
        (dict(is_cross_attention=True), "other_attention"),
        (dict(xai_temperature_len=1024), "distance_attention"),
        (dict(pos_encoding_mode="ALIBI"), "distance_attention"),
        (dict(logit_cap=30.0, logit_capping_method="sigmoid"), "logit_capping"),
        (dict(layer_id=0), "shared_kv"),
        (dict(tp_q_head_num=8), "head_shapes"),
    ],
    ids=str,
)
def test_facts_see_one_odd_layer(change, row, model_runner):
    for name, value in change.items():
        setattr(model_runner.model[1], name, value)
    applies = {r.name: r for r in MODEL_ROWS}[row]
    assert applies.predicate(refusals.gather_facts(model_runner), CONFIG) is not None


def test_a_tanh_cap_is_no_obstacle(model_runner):
    model_runner.model[1].logit_cap = 30.0
    refuse_model_runner(refusals.gather_facts(model_runner), CONFIG)


@pytest.fixture
def latent_runner(model_runner):
    """As DeepSeek's: each layer reads the latents, or expands them."""
    import torch
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool

    class Attention(torch.nn.Module):
        def __init__(self, layer_id):
            super().__init__()
            self.attn_mqa = RadixAttention(4, 40, 0.25, num_kv_heads=1, layer_id=layer_id, v_head_dim=32)
            self.attn_mha = RadixAttention(4, 24, 0.25, num_kv_heads=4, layer_id=layer_id, v_head_dim=16)

        def dispatch_attn_forward_method(self, forward_batch):
            return None

    module, _, name = DEEPSEEK.rpartition(".")
    Attention.__module__, Attention.__qualname__ = module, name
    model_runner.model = torch.nn.ModuleList([Attention(1), Attention(0)])
    model_runner.use_mla_backend = True
    pool = MLATokenToKVPool(8, 1, torch.float32, 32, 8, 2, "cpu", False)
    model_runner.token_to_kv_pool_allocator.get_kvcache = lambda: pool
    return model_runner


def test_facts_of_latent_attention(latent_runner):
    facts = refusals.gather_facts(latent_runner)
    assert facts.latent_attention and facts.kv_pool == "MLATokenToKVPool"
    assert facts.decoder_layers == facts.pool_layers == 2 and facts.head_shapes == 1 and facts.shared_kv == 0
    refuse_model_runner(facts, CONFIG)
    refuse_model_runner(replace(facts, tp_size=1), replace(CONFIG, policy="rkv"))
    with pytest.raises(UnsupportedError, match="--rpc-policy rkv with --tp-size 2"):
        refuse_model_runner(facts, replace(CONFIG, policy="rkv"))
    # Its one latent is on every rank, and all ranks keep the same ones.
    refuse_model_runner(replace(facts, tp_size=8), replace(CONFIG, aggregation="group"))


def test_latent_attention_of_another_kind_is_refused(latent_runner):
    class Other(type(latent_runner.model[0])):
        def dispatch_attn_forward_method(self, forward_batch):
            return None

    latent_runner.model.append(Other(2))
    assert refusals.gather_facts(latent_runner).own_dispatch == 1


def test_layers_that_do_not_read_the_latents_are_missed(latent_runner):
    latent_runner.model[0].attn_mqa.qk_head_dim = 24
    with pytest.raises(UnsupportedError, match="1 attention layers for 2"):
        refuse_model_runner(refusals.gather_facts(latent_runner), CONFIG)


def test_layers_that_modules_does_not_list_are_missed(model_runner):
    """SGLang's Transformers backend keeps its attention in a plain dict."""
    import torch

    model_runner.model = torch.nn.Module()
    with pytest.raises(UnsupportedError, match="0 attention layers for 3"):
        refuse_model_runner(refusals.gather_facts(model_runner), CONFIG)


def test_a_fact_that_moved_is_said_so(model_runner):
    del model_runner.use_mla_backend
    with pytest.raises(IncompatibleSGLangError, match="use_mla_backend"):
        refusals.gather_facts(model_runner)


# ---- one request ----


def request(rpc: dict | None = None, **fields) -> SimpleNamespace:
    params = {name.lower(): value for name, value in fields.items() if name.isupper()}
    if rpc is not None:
        params["custom_params"] = {"rpc": rpc}
    return SimpleNamespace(sampling_params=params, **{n: v for n, v in fields.items() if not n.isupper()})


@pytest.mark.parametrize("rpc", [None, {}, {"enabled": True}])
def test_plain_requests_pass(rpc):
    plain = dict(input_embeds=None, return_routed_experts=False, return_indexer_topk=False, BEAM_WIDTH=None)
    assert refuse_request(request(rpc, **plain)) is None
    assert refuse_request(request(rpc, BEAM_WIDTH=1)) is None
    assert refuse_request(SimpleNamespace(sampling_params=None)) is None


@pytest.mark.parametrize("row", REQUEST_ROWS, ids=lambda row: row.name)
def test_request_row(row):
    fields, named = REQUEST_EXAMPLES[row.name]
    assert refuse_request(request(**fields)) == f"not compressed because of {named}: {row.why}"
    for asking in ({}, {"enabled": True}, {"interval": 512}):
        with pytest.raises(ConfigError) as caught:
            refuse_request(request(asking, **fields))
        assert caught.value.code == f"request.{row.name}"
        assert caught.value.sentence == (
            f"{named} does not work with RPC: {row.why}; "
            f"remove {named.split('=')[0]} or send custom_params.rpc.enabled false"
        )
    assert refuse_request(request({"enabled": False}, **fields)) is None


def test_what_the_caller_knows_wins_over_the_request():
    with pytest.raises(ConfigError, match="beam_width=2 does not work with RPC"):
        refuse_request(request(BEAM_WIDTH=2), asked=True)
    assert refuse_request(request({}, BEAM_WIDTH=2), asked=False).startswith("not compressed because of beam_width=2")


def test_a_batch_is_looked_at_as_one():
    batch = SimpleNamespace(sampling_params=[{"beam_width": None}, {"beam_width": 3}])
    assert refuse_request(batch).startswith("not compressed because of beam_width=3")


@pytest.mark.parametrize("row", REQUEST_ROWS, ids=lambda row: row.name)
def test_request_row_on_sglangs_own_types(row, sglang_arguments):
    from sglang.srt.managers.io_struct import GenerateReqInput
    from sglang.srt.sampling.sampling_params import SamplingParams

    fields, named = REQUEST_EXAMPLES[row.name]
    said = f"not compressed because of {named}: {row.why}"
    params = {name.lower(): value for name, value in fields.items() if name.isupper()}
    given = {name: value for name, value in fields.items() if not name.isupper()}
    assert refuse_request(GenerateReqInput(input_ids=[1], sampling_params={})) is None
    assert refuse_request(GenerateReqInput(sampling_params=params, **given)) == said
    assert refuse_request(SimpleNamespace(sampling_params=SamplingParams(**params), **given)) == said
