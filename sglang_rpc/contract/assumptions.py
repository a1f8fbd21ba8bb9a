"""What RPC calls, reads or takes for granted in SGLang without hooking it. `patches/` pins these beside the hooks.

An entry that has gone, or takes other arguments, breaks RPC like a missing hook target. One whose code has changed may
still do what the reason says: that is a warning, and a person reads the change.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Assumption:
    """A function, method or class of SGLang, and what RPC needs of it."""

    target: str
    reason: str
    attributes: tuple[str, ...] = ()  #: of a class: what RPC reads of its objects; the rest of the class may change


ASSUMPTIONS: tuple[Assumption, ...] = (
    # ---- putting hooks on, and carrying the configuration
    Assumption(
        "sglang.srt.plugins.hook_registry._wrap_fn",
        "SGLang's meaning of before, after and around; sets __wrapped__, so that what is below a hook can be found",
    ),
    Assumption(
        "sglang.srt.plugins.hook_registry.HookRegistry._apply_target",
        "puts a hook on a function of a module, and on its copies in other modules; raises where it can't",
    ),
    Assumption(
        "sglang.srt.plugins.hook_registry.HookType",
        "the kinds of hooks, by value",
        ("AFTER", "AROUND", "BEFORE"),
    ),
    Assumption("sglang.srt.plugins.load_plugins", "calls plugin:load, and lets SystemExit through"),
    Assumption("sglang.srt.server_args.prepare_server_args", "parses a command line with add_cli_args and --config"),
    Assumption(
        "sglang.srt.server_args.ServerArgs.__setattr__",
        "the sealed record takes underscore names that are no fields: the configuration is one",
    ),
    Assumption(
        "sglang.srt.server_args.ServerArgs.__reduce__",
        "ships such names to the processes that are spawned",
    ),
    Assumption(
        "sglang.srt.arg_groups.overrides.resolving_view",
        "the arguments as SGLang resolved them, which the refusals read",
    ),
    Assumption("sglang.launch_server.run_server", "serves with the arguments it is given"),
    Assumption("sglang.srt.utils.kill_process_tree", "ends the server's processes"),
    Assumption(
        "sglang.srt.entrypoints.engine.Engine",
        "how sglang_rpc.Engine attaches the configuration before the arguments are checked",
        ("server_args_class",),
    ),
    Assumption(
        "sglang.srt.entrypoints.engine.Engine.__init__",
        "builds the arguments with server_args_class, unless server_args is given",
    ),
    Assumption(
        "sglang.srt.entrypoints.engine.Engine._launch_subprocesses",
        "checks the arguments before anything is spawned, and launches schedulers through the class",
    ),
    # ---- the query ring, inside the forward pass
    Assumption(
        "sglang.srt.layers.radix_attention.RadixAttention.forward",
        "called through nn.Module.__call__, so that forward pre-hooks run; q, roped, first and forward_batch fourth",
    ),
    Assumption(
        "sglang.srt.layers.radix_attention.RadixAttention",
        "an attention layer's shape and scale, and what makes it one that RPC refuses",
        (
            "attn_type",
            "is_cross_attention",
            "k_scale_float",
            "layer_id",
            "logit_cap",
            "logit_capping_method",
            "pos_encoding_mode",
            "qk_head_dim",
            "scaling",
            "sliding_window_size",
            "tp_k_head_num",
            "tp_q_head_num",
            "use_irope",
            "xai_temperature_len",
        ),
    ),
    Assumption(
        "sglang.srt.mem_cache.memory_pool.MLATokenToKVPool",
        "one latent a token and layer, in one buffer, the part that stands for the value first",
        ("kv_buffer", "kv_cache_dim", "kv_lora_rank"),
    ),
    Assumption(
        "sglang.srt.layers.radix_attention.AttentionType",
        "which attention is a decoder's",
        ("DECODER",),
    ),
    Assumption(
        "sglang.srt.model_executor.model_runner.ModelRunner",
        "the model, its pools and what serves it",
        (
            "decode_attention_backend_str",
            "device",
            "dtype",
            "is_draft_worker",
            "model",
            "model_config",
            "prefill_attention_backend_str",
            "req_to_token_pool",
            "server_args",
            "token_to_kv_pool_allocator",
            "use_mla_backend",
        ),
    ),
    Assumption(
        "sglang.srt.managers.scheduler.Scheduler.init_model_worker",
        "attention backends, and the query ring with them, are built before CUDA graphs are captured",
    ),
    Assumption(
        "sglang.srt.model_executor.forward_batch_info.ForwardBatch",
        "rows, positions and lengths of a step: the static tensors of a CUDA graph, or this step's own",
        (
            "extend_seq_lens",
            "forward_mode",
            "orig_seq_lens",
            "out_cache_loc",
            "positions",
            "req_pool_indices",
            "seq_lens",
            "seq_lens_cpu",
        ),
    ),
    Assumption("sglang.srt.model_executor.forward_batch_info.ForwardMode.is_decode", "a step of one token a row"),
    Assumption("sglang.srt.model_executor.forward_batch_info.ForwardMode.is_mixed", "prefill rows, then decode rows"),
    Assumption(
        "sglang.srt.model_executor.runner.eager_runner.EagerRunner.execute",
        "a mixed step runs as a plain extend, whose tokens keep their order",
    ),
    # ---- positions
    Assumption(
        "sglang.kernels.ops.attention.clamp_position.clamp_position",
        "decode positions come from seq_lens, which are physical; what make_logical replaces",
    ),
    Assumption(
        "sglang.srt.model_executor.forward_batch_info.compute_position",
        "positions of a mixed step, row after row, from prefix lengths that are physical for decode rows",
    ),
    Assumption(
        "sglang.srt.managers.schedule_batch.ScheduleBatch",
        "rows and lengths of a batch",
        (
            "decoding_reqs",
            "forward_mode",
            "orig_seq_lens",
            "reqs",
            "seq_lens",
            "seq_lens_cpu",
            "seq_lens_sum",
        ),
    ),
    Assumption(
        "sglang.srt.managers.schedule_batch.ScheduleBatch.prepare_for_decode",
        "advances orig_seq_lens by one a step on its own account, which keeps it logical; makes new length tensors",
    ),
    Assumption(
        "sglang.srt.managers.schedule_batch.ScheduleBatch.prepare_for_extend",
        "sets orig_seq_lens to the tokens a row holds, with the prompt's matched part",
    ),
    Assumption(
        "sglang.srt.managers.schedule_batch.ScheduleBatch.mix_with_running",
        "decode rows are the last rows of a mixed batch, of one token each",
    ),
    Assumption(
        "sglang.srt.managers.schedule_batch.ScheduleBatch.filter_batch",
        "carries seq_lens, seq_lens_cpu and orig_seq_lens by row, in new tensors",
    ),
    Assumption(
        "sglang.srt.managers.schedule_batch.ScheduleBatch.merge_batch",
        "appends the other batch's rows and lengths; rows of a mixed batch become decode rows here",
    ),
    # ---- the moment of a compression
    Assumption(
        "sglang.srt.managers.scheduler.Scheduler.event_loop_overlap",
        "when the next batch is planned, the newest result but one is processed and one forward may be in flight",
    ),
    Assumption(
        "sglang.srt.managers.scheduler.Scheduler.event_loop_normal",
        "when the next batch is planned, every result is processed",
    ),
    Assumption(
        "sglang.srt.managers.scheduler.Scheduler.run_batch",
        "the forward stream waits for the schedule stream, so the next forward sees what a compression moved",
    ),
    Assumption(
        "sglang.srt.managers.scheduler.Scheduler._get_new_batch_prefill_raw",
        "mixed steps: decoding_reqs are the rows mixed in, and the running batch is empty afterwards",
    ),
    Assumption(
        "sglang.srt.managers.scheduler.Scheduler.update_running_batch",
        "retraction is decided here, after due compressions have freed their slots",
    ),
    Assumption(
        "sglang.srt.managers.scheduler.Scheduler",
        "pools, tree, streams, tokenizer and metrics of a scheduler",
        (
            "chunked_req",
            "device",
            "forward_stream",
            "metrics_collector",
            "req_to_token_pool",
            "server_args",
            "token_to_kv_pool_allocator",
            "tokenizer",
            "tp_worker",
            "tree_cache",
        ),
    ),
    Assumption(
        "sglang.srt.managers.scheduler.Scheduler.handle_generate_request",
        "every request passes init_req_max_new_tokens between its creation and the queue",
    ),
    # ---- memory
    Assumption(
        "sglang.srt.managers.schedule_batch.ReqKvInfo",
        "what a request holds: its row, [0, cache_protected_len) owned by the tree, and how far its KV reaches",
        ("cache_protected_len", "holds_kv", "kv_allocated_len", "kv_committed_len", "req_pool_idx"),
    ),
    Assumption(
        "sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache.free_kv_row",
        "frees row positions [a, b), a on a page boundary, without waiting for the device",
    ),
    Assumption(
        "sglang.srt.mem_cache.common.free_kv_row_segments",
        "what free_kv_row does with the tail of a row",
    ),
    Assumption(
        "sglang.srt.mem_cache.allocator.paged.PagedTokenToKVPoolAllocator.free_segment",
        "frees whole pages of a row, the last partly filled one too, without a unique() that would wait",
    ),
    Assumption(
        "sglang.srt.mem_cache.allocator.base.BaseTokenToKVPoolAllocator",
        "the page size, and the pool behind the slots",
        ("get_kvcache", "page_size"),
    ),
    Assumption(
        "sglang.srt.mem_cache.memory_pool.MHATokenToKVPool",
        "one K and one V buffer a layer, by slot; the layout and scales that RPC refuses are named here",
        ("dtype", "k_buffer", "kv_cache_layout", "layer_num", "quant_method", "start_layer", "v_buffer"),
    ),
    Assumption(
        "sglang.srt.mem_cache.memory_pool.MHATokenToKVPool._create_buffers",
        "the buffers' shape: [slots, KV heads, head size]",
    ),
    Assumption(
        "sglang.srt.mem_cache.memory_pool.ReqToTokenPool",
        "the slot of each row position; row 0 is no request's, padded rows of a CUDA graph write there",
        ("_aux_cache", "req_to_token"),
    ),
    Assumption(
        "sglang.srt.mem_cache.allocation.alloc_for_decode_default",
        "a decode step writes its slot at row position seq_lens, right behind what a compression kept",
    ),
    Assumption(
        "sglang.srt.managers.schedule_batch.ScheduleBatch.new_tokens_required_next_decode",
        "admission and retraction count from kv_committed_len, which compression shortens",
    ),
    # ---- the tree, finishing and retraction
    Assumption(
        "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache",
        "what would make it more than a tree on this device",
        ("cache_controller", "linker"),
    ),
    Assumption(
        "sglang.srt.mem_cache.common.checkpoint_kv_cache",
        "a prefill's KV enters the tree through checkpoint()",
    ),
    Assumption(
        "sglang.srt.mem_cache.common.release_kv_cache",
        "a finished request's KV enters the tree through checkpoint(); the rest of its row is freed, then the row",
    ),
    Assumption(
        "sglang.srt.managers.schedule_batch.Req.owned_kv_len",
        "never more than kv_committed_len",
    ),
    Assumption(
        "sglang.srt.managers.schedule_batch.release_req",
        "a retraction releases the row, which gives the query slot back, before reset_for_retract",
    ),
    Assumption(
        "sglang.srt.managers.schedule_batch.Req",
        "a request's tokens and state; a plain class, so that it takes `rpc`",
        (
            "finished",
            "finished_reason",
            "input_embeds",
            "is_retracted",
            "kv",
            "origin_input_ids",
            "output_ids",
            "output_ids_through_stop",
            "return_indexer_topk",
            "return_routed_experts",
            "rid",
            "sampling_params",
        ),
    ),
    # ---- requests and what a user sees
    Assumption("sglang.srt.managers.schedule_batch.BaseFinishReason.to_json", "why a request ended, as a trace has it"),
    Assumption(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager",
        "the arguments that carry the configuration",
        ("server_args",),
    ),
    Assumption(
        "sglang.srt.managers.io_struct.GenerateReqInput",
        "a request as it came in",
        ("input_embeds", "return_indexer_topk", "return_routed_experts", "sampling_params"),
    ),
    Assumption(
        "sglang.srt.sampling.sampling_params.SamplingParams",
        "a request's options for RPC, as its sender wrote them",
        ("beam_width", "custom_params"),
    ),
    Assumption(
        "sglang.srt.managers.schedule_batch.Req.set_finish_with_abort",
        "ends a request with a message, HTTP 400",
    ),
    Assumption(
        "sglang.srt.managers.scheduler_components.output_streamer.SchedulerOutputStreamer",
        "SGLang's extension point for per-request output fields",
        ("build_additional_customized_info", "has_additional_customized_info"),
    ),
    Assumption(
        "sglang.srt.managers.scheduler_components.output_streamer.SchedulerOutputStreamer.build_additional_customized_info",
        "one value a request",
    ),
    Assumption(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager._handle_batch_output",
        "passes a message's customized_info to update_request_meta_info by position",
    ),
    Assumption(
        "sglang.srt.managers.scheduler_components.internal_state.SchedulerInternalStateController",
        "holds the scheduler",
        ("scheduler",),
    ),
    Assumption(
        "sglang.srt.managers.io_struct.GetInternalStateReqOutput",
        "the dict that /server_info shows",
        ("internal_state",),
    ),
    Assumption(
        "sglang.srt.observability.metrics_collector.SchedulerMetricsCollector",
        "labels and classes of SGLang's own metrics",
        ("_counter_cls", "_gauge_cls", "labels"),
    ),
    Assumption("sglang.srt.runtime_context.get_serving", "the reasoning parser's name"),
    Assumption("sglang.srt.runtime_context.get_parallel", "the ranks that share the attention heads"),
    Assumption(
        "sglang.srt.parser.reasoning_parser.ReasoningParser.__init__",
        "finds the detector of a parser's name",
    ),
    Assumption(
        "sglang.srt.parser.reasoning_parser.BaseReasoningFormatDetector",
        "a model's think markers",
        ("think_end_token", "think_start_token"),
    ),
    # ---- tensor parallelism, and what the model is
    Assumption("sglang.srt.distributed.parallel_state.get_attn_tp_group", "the group whose ranks share the heads"),
    Assumption(
        "sglang.srt.distributed.parallel_state.GroupCoordinator",
        "its size, and which of its ranks this is",
        ("rank_in_group", "world_size"),
    ),
    Assumption(
        "sglang.srt.distributed.parallel_state.GroupCoordinator.all_reduce",
        "sums scores over ranks, on the current stream, in place or not: the result is what it returns",
    ),
    Assumption(
        "sglang.srt.configs.model_config.ModelConfig",
        "what the model is, for the refusals",
        (
            "get_total_num_kv_heads",
            "hf_config",
            "is_encoder_decoder",
            "is_generation",
            "model_is_mrope",
            "use_ngram_embedding",
        ),
    ),
    # ---- admission, retraction and coming back
    *(
        Assumption(f"sglang.srt.managers.schedule_policy.PrefillAdder.{name}", reason)
        for name, reason in (
            ("__init__", "sums up the offsets of the running requests into memory_budget.total_offset"),
            (
                "add_one_req",
                "reads max_new_tokens and ignore_eos at once, and books what it admits at the end of can_run_list",
            ),
            ("add_chunked_req", "books a chunk, with the new tokens only if it is the last"),
            ("_select_prefill_admission", "decides by total_tokens: those to prefill, those to come, a page"),
            ("ceil_paged_tokens", "whole pages"),
            ("_commit_prefill_admission", "locks the prefix and appends to can_run_list"),
            ("preempt_to_schedule", "changes total_offset only by the offsets of those it preempts"),
            ("_lock_node", "pins a matched prefix while slots are taken for what is behind it"),
        )
    ),
    Assumption("sglang.srt.mem_cache.prefill_budget.PrefillBudget.reserve", "adds the new tokens to total_offset"),
    Assumption(
        "sglang.srt.mem_cache.allocator.base.BaseTokenToKVPoolAllocator.evict_to_free_tokens",
        "makes room in the tree before slots are taken",
    ),
    Assumption(
        "sglang.srt.mem_cache.allocator.base.BaseTokenToKVPoolAllocator.max_new_tokens_for_memory",
        "SGLang's own length limit, whose margins ours keeps",
    ),
    Assumption("sglang.srt.mem_cache.allocator.token.TokenToKVPoolAllocator.alloc", "slots of single tokens, or None"),
    Assumption("sglang.srt.mem_cache.allocator.paged.PagedTokenToKVPoolAllocator.alloc", "whole pages, or None"),
    Assumption("sglang.srt.mem_cache.memory_pool.ReqToTokenPool.alloc", "a row for a request, kept if it holds one"),
    Assumption(
        "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.prefix_device_indices",
        "the slots of a matched prefix",
    ),
    Assumption(
        "sglang.srt.mem_cache.allocation._prefix_kv_indices",
        "a request that holds its row extends it from prefix_len on, whatever is in it",
    ),
    Assumption(
        "sglang.srt.managers.schedule_batch.Req.refresh_fill_ids",
        "appends outputs to the ids by their number, so a shortened list must not be left there",
    ),
    Assumption("sglang.srt.managers.schedule_batch.Req.init_next_round_input", "matches the prompt before admission"),
    Assumption(
        "sglang.srt.managers.schedule_batch.ScheduleBatch.retract_decode",
        "ends with 503 what release_req says cannot come back",
    ),
    Assumption("sglang.srt.managers.scheduler.Scheduler.send_abort_output", "answers a request that waits"),
    Assumption("sglang.srt.managers.scheduler._make_abort_req", "the answer, with a reason and a status"),
    Assumption("sglang.srt.mem_cache.kv_cache_builder.uses_ssm_state", "whether the model has recurrent layers"),
)

#: What latent attention (MLA) needs beyond that: compared when such a model is met, and by the doctor.
LATENT_ASSUMPTIONS: tuple[Assumption, ...] = (
    Assumption(
        "sglang.srt.models.deepseek_v2.DeepseekV2AttentionMLA",
        "its two attention layers: of latents as they are stored, and of expanded ones",
        ("attn_mha", "attn_mqa"),
    ),
    Assumption(
        "sglang.srt.models.deepseek_common.attention_forward_methods.forward_mla."
        "DeepseekMLAForwardMixin.forward_absorb_core",
        "calls attn_mqa with absorbed queries and roped ones, apart (q_rope) or as one tensor, in this order",
    ),
    Assumption(
        "sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods.AttnForwardMethod",
        "the absorbed way, and those that expand",
        ("MHA", "MHA_CHUNKED_KV", "MHA_ONE_SHOT", "MLA"),
    ),
)
