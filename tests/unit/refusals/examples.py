"""An example of every refusal: what was given, and what its sentence names."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from sglang_rpc.config import RPCConfig
from sglang_rpc.contract.refusals.row import refuse
from sglang_rpc.contract.refusals.server import SERVER_ROWS, Arguments
from sglang_rpc.errors import UnsupportedError

ROOT = Path(__file__).parents[3]
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
    disaggregation_decode_enable_offload_kvcache=False,
    disaggregation_decode_host_receive_threshold=1.0,
    disaggregation_decode_retraction_backup=None,
    disaggregation_mode="null",
    dllm_algorithm=None,
    dwdp_size=1,
    elastic_ep_backend=None,
    enable_amd_monokernel=False,
    enable_dsa_cache_layer_split=False,
    enable_flexkv=False,
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
    enable_torch_compile=False,
    enable_unified_cache_external_linker=False,
    enable_unified_memory=False,
    hicache_host_memory_mode="cache",
    encoder_only=False,
    ep_join_mode=None,
    is_embedding=False,
    kv_cache_dtype="auto",
    kv_canary="none",
    mamba_radix_cache_strategy="auto",
    enable_linear_replayssm=False,
    enable_linear_replayssm_spec=False,
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
    "decoupled_drafts": [(dict(decoupled_spec_role="drafter"), "--decoupled-spec-role drafter")],
    "pd_role_switch": [(dict(enable_pd_role_switch=True), "--enable-pd-role-switch")],
    "pd_offload": [
        (
            dict(disaggregation_mode="decode", disaggregation_decode_enable_offload_kvcache=True),
            "--disaggregation-decode-enable-offload-kvcache",
        )
    ],
    "pd_retraction_backup": [
        (
            dict(disaggregation_mode="decode", disaggregation_decode_retraction_backup="host_pool"),
            "--disaggregation-decode-retraction-backup host_pool",
        ),
        (
            dict(disaggregation_mode="decode", disaggregation_decode_host_receive_threshold=0.5),
            "--disaggregation-decode-host-receive-threshold 0.5",
        ),
    ],
    "pd_ranks": [
        (dict(disaggregation_mode="decode", pp_size=2), "--disaggregation-mode decode with --pp-size 2"),
        (dict(disaggregation_mode="decode", attn_dp_size=2), "--disaggregation-mode decode with --attn-dp-size 2"),
    ],
    "encoder_only": [(dict(encoder_only=True), "--encoder-only")],
    "embedding_model": [
        (dict(is_embedding=True), "--is-embedding"),
        (dict(prefill_only_disable_kv_cache=True), "--prefill-only-disable-kv-cache"),
    ],
    "diffusion_llm": [(dict(dllm_algorithm="LowConfidence"), "--dllm-algorithm LowConfidence")],
    "context_parallel": [
        (dict(attn_cp_size=2), "--attn-cp-size 2"),
        (dict(enable_prefill_cp=True), "--enable-prefill-cp"),
        (dict(dcp_size=4), "--dcp-size 4"),
    ],
    "kv_sharding": [
        (dict(enable_kv_cache_sharding=True), "--enable-kv-cache-sharding"),
        (dict(enable_dsa_cache_layer_split=True), "--enable-dsa-cache-layer-split"),
    ],
    "dwdp": [(dict(dwdp_size=2, attn_dp_size=2), "--dwdp-size 2")],
    "step_sync_skipped": [
        (
            dict(attn_dp_size=2, SGLANG_SCHEDULER_SKIP_ALL_GATHER="1"),
            "SGLANG_SCHEDULER_SKIP_ALL_GATHER=1 with --attn-dp-size 2",
        )
    ],
    "elastic_ep": [
        (dict(elastic_ep_backend="mooncake"), "--elastic-ep-backend mooncake"),
        (dict(ep_join_mode="scale"), "--elastic-ep-join-mode scale"),
    ],
    "host_buffers": [(dict(hicache_host_memory_mode="buffer_only"), "--hicache-host-memory-mode buffer_only")],
    "lmcache": [(dict(enable_lmcache=True), "--enable-lmcache")],
    "flexkv": [(dict(enable_flexkv=True), "--enable-flexkv")],
    "external_linker": [(dict(enable_unified_cache_external_linker=True), "--enable-unified-cache-external-linker")],
    "radix_cache_backend": [(dict(radix_cache_backend="flexkv"), "--radix-cache-backend flexkv")],
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
    "pd_multiplexing": [(dict(enable_pdmux=True), "--enable-pdmux")],
    "mixed_chunk_in_a_graph": [(MIXED, "--enable-mixed-chunk")],
    "kv_canary": [(dict(kv_canary="log"), "--kv-canary log")],
    "lazy_state_tracking": [
        (dict(mamba_radix_cache_strategy="extra_buffer_lazy"), "--mamba-radix-cache-strategy extra_buffer_lazy")
    ],
    "replayed_states": [
        (dict(enable_linear_replayssm=True), "--enable-linear-replayssm"),
        (dict(enable_linear_replayssm_spec=True), "--enable-linear-replayssm-spec"),
    ],
    "ray": [(dict(use_ray=True), "--use-ray")],
    "rust_server": [(dict(SGLANG_RUST_SERVER="yes"), "SGLANG_RUST_SERVER=yes")],
    "post_capture_sizing": [(dict(SGLANG_ENABLE_POST_CAPTURE_KV_SIZING="1"), "SGLANG_ENABLE_POST_CAPTURE_KV_SIZING=1")],
    "tokenizer_workers": [
        (dict(tokenizer_worker_num=2, SGLANG_HTTP_SERVER_APP_PATH="mine:app"), "--tokenizer-worker-num 2 with SGL")
    ],
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
    "draft_model": (dict(draft=True), "draft model"),
    "diffusion": (dict(diffusion=True), "diffusion"),
    "sparse_attention": (dict(sparse_attention=True), "indexer"),
    "recurrent_state": (dict(other_recurrence=True), "recurrent"),
    "ngram_embedding": (dict(ngram_embedding=True), "n-gram"),
    "position_table": (dict(position_table=True), "draws images"),
    "other_attention": (dict(other_attention=3), "3 cross-attention"),
    "chunked_attention": (dict(chunked_layers=12), "12 layers of chunked"),
    "only_windows": (dict(window_layers=12, decoder_layers=12, pool_layers=12, reach=31), "12 layers all have windows"),
    "window_policy": (dict(window_layers=1, decoder_layers=2, pool_layers=2, reach=31), "--rpc-policy lightthinker"),
    "window_attention": (
        dict(window_layers=12, decoder_layers=24, pool_layers=24, reach=4095),
        "LlamaForCausalLM has 12 sliding-window layers that see 4095 entries before a token, of which only the newest "
        "1056 stay with interval 4096, window 32 and ratio 4 (interval 16252 or min_kept 4063 would do)",
    ),
    "window_pages": (
        dict(window_layers=12, decoder_layers=24, pool_layers=24, reach=127, window_page=5),
        "LlamaForCausalLM, whose sliding-window layers have a KV pool of their own, of pages of 5 slots, where with "
        "interval 4096 and ratio 4 a compression evicts 3072 entries (interval 4099 would do),",
    ),
    "window_not_applied": (
        dict(window_layers=1, decoder_layers=2, pool_layers=2, reach=31, other_windows=1, decode_backend="flashinfer"),
        "the attention backend flashinfer with LlamaForCausalLM",
    ),
    "distance_attention": (dict(distance_layers=4), "4 layers"),
    "logit_capping": (dict(capped_oddly=2), "2 layers"),
    "layers_not_found": (dict(decoder_layers=0, pool_layers=28), "0 attention layers for 28"),
    "shared_kv": (dict(shared_kv=5), "5 layers"),
    "head_shapes": (dict(head_shapes=2), "2 different"),
    "own_dispatch": (dict(latent_attention=True, own_dispatch=61), "61 latent"),
    "replicated_kv_heads": (dict(tp_size=8, total_kv_heads=4), "--tp-size 8"),
    "trace_of_split_heads": (dict(tp_size=2, total_kv_heads=4), "--rpc-trace"),
    "heads_of_all_ranks": (
        dict(dp_size=2, query_heads=2, total_query_heads=4),
        "--attn-dp-size 2 with LlamaForCausalLM, which has no DP attention in SGLang",
    ),
    "memory_of_two_kinds": (
        dict(stages=2, kv_pool="SWAKVPool"),
        "--pp-size 2 with LlamaForCausalLM, whose layers have memory of two kinds",
    ),
    "transferred_kinds": (
        dict(row_pool="HybridMambaDecodeReqToTokenPool"),
        "--disaggregation-mode decode with LlamaForCausalLM, whose layers are of two kinds",
    ),
    "trace_of_stages": (dict(stages=2), "--rpc-trace with --pp-size 2"),
    "latent_on_rocm": (dict(latent_attention=True, rocm=True), "on ROCm"),
    "policy_on_latents": (dict(latent_attention=True), "--rpc-policy h2o"),
    "policy_on_split_heads": (dict(tp_size=8, total_kv_heads=4), "--rpc-policy rkv with --tp-size 8"),
    "attention_backend_in_use": (dict(decode_backend="dsa"), "dsa"),
    "kv_quantization": (dict(kv_quantization="cpu_fp8_e4m3"), "cpu_fp8_e4m3"),
    "kv_dtype": (dict(kv_dtype="float4_e2m1fn_x2"), "float4_e2m1fn_x2"),
    "kv_layout": (dict(kv_layout="hnd"), "hnd"),
    "kv_pool": (
        dict(kv_pool="SWAKVPool of MLATokenToKVPool and MLATokenToKVPool"),
        "SWAKVPool of MLATokenToKVPool and MLATokenToKVPool",
    ),
    "row_pool": (dict(row_pool="UnifiedHybridReqToTokenPool"), "UnifiedHybridReqToTokenPool"),
    "allocator": (dict(allocator="PureSWATokenToKVPoolAllocator"), "the allocator PureSWATokenToKVPoolAllocator"),
    "tree": (dict(tree="LMCacheUnifiedRadixCache"), "LMCacheUnifiedRadixCache"),
    "host_tier_of_two_kinds": (
        dict(tree="UnifiedRadixCache", host_tier=True, kv_pool="SWAKVPool"),
        "--enable-hierarchical-cache with LlamaForCausalLM, whose layers have memory of two kinds",
    ),
    "second_tier": (dict(tree="UnifiedRadixCache", linked=True), "linked to an external store"),
}

#: Row -> request fields (sampling parameters in capitals), with what the sentence must name.
REQUEST_EXAMPLES: dict[str, tuple[dict, str]] = {
    "beam_search": (dict(BEAM_WIDTH=4), "beam_width=4"),
    "streaming_session": (dict(session=SimpleNamespace(streaming=True)), "session_params of a streaming session"),
    "input_embeds": (dict(input_embeds=[[0.0, 1.0]]), "input_embeds"),
    "return_routed_experts": (dict(return_routed_experts=True), "return_routed_experts"),
    "return_indexer_topk": (dict(return_indexer_topk=True), "return_indexer_topk"),
}


def refuse_arguments(arguments: SimpleNamespace) -> None:
    """As `refuse_server_args`, of arguments that are final."""
    refuse(SERVER_ROWS, Arguments(arguments, {}))


def split_environment(monkeypatch, given: dict) -> dict:
    for name, value in given.items():
        if name.isupper():
            monkeypatch.setenv(name, value)
    return {name: value for name, value in given.items() if not name.isupper()}


def assert_refused(error: UnsupportedError, row, named: str) -> None:
    """One sentence with all its parts, then the code."""
    sentence = error.sentence
    assert error.code == f"unsupported.{row.name}"
    assert str(error) == f"{sentence} [{error.code}]"
    assert named in sentence
    assert row.why in sentence
    assert "does not work with RPC: " in sentence
    assert "\n" not in sentence
    assert not re.search(r"[.!?] [A-Z]", sentence), sentence
    assert re.search(r"; .*(remove|use|unset|add|start with) ", sentence), sentence
    assert sentence.endswith("--disable-rpc")
