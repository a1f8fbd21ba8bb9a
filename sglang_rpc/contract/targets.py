"""Every place in SGLang that RPC attaches to, with the reason. `patches/` pins each as it was when it was proven.

The hooks themselves live in the modules named here and are thin: they turn SGLang's objects into the runtime's values.
"""

from __future__ import annotations

from dataclasses import dataclass

BEFORE, AFTER, AROUND = "before", "after", "around"


@dataclass(frozen=True)
class Hook:
    """One hook: `kind` of hook put on `target` by the function `hook` ("module:function" under sglang_rpc)."""

    target: str
    kind: str
    hook: str
    reason: str


HOOKS: tuple[Hook, ...] = (
    Hook(
        "sglang.srt.server_args.ServerArgs.check_server_args",
        AFTER,
        "contract.settings:attach_and_refuse",
        "the last word on the arguments before a process is spawned: attach the RPC configuration, refuse what it "
        "cannot work with",
    ),
    Hook(
        "sglang.srt.entrypoints.engine.Engine._launch_scheduler_processes",
        AROUND,
        "startup.process:carry_into_schedulers",
        "scheduler processes install the hooks before anything else, whatever SGLANG_PLUGINS lists",
    ),
    Hook(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request",
        BEFORE,
        "hooks.requests:validate",
        "malformed custom_params.rpc becomes HTTP 400 before the request is queued",
    ),
    Hook(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager.update_request_meta_info",
        AROUND,
        "hooks.reporting:add_receipt",
        "meta_info.rpc is one receipt, not SGLang's per-chunk list",
    ),
    Hook(
        "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator._profile_available_bytes",
        AFTER,
        "hooks.query_slots:leave_room",
        "the query ring's memory comes out of the KV pool's, not on top of it",
    ),
    Hook(
        "sglang.srt.model_executor.model_runner.ModelRunner.init_attention_backends",
        AFTER,
        "hooks.capture:install_query_ring",
        "the query ring must exist before CUDA graphs are captured",
    ),
    Hook(
        "sglang.srt.model_executor.runner.prefill_cuda_graph_runner.PrefillCudaGraphRunner.can_run_graph",
        AROUND,
        "hooks.capture:eager_while_recording",
        "a replayed prefill would not record the queries of rows that go on decoding",
    ),
    Hook(
        "sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new",
        AROUND,
        "hooks.positions:make_logical",
        "positions count the sequence, not the KV entries that are left of it",
    ),
    Hook(
        "sglang.srt.model_executor.model_runner.ModelRunner.sample",
        AROUND,
        "hooks.positions:sample_at_logical",
        "seeded sampling of a mixed batch takes its positions from seq_lens, which are physical",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler.init_internal_state",
        AFTER,
        "hooks.runtime:install_compressor",
        "the scheduler is whole: pools, tree, streams and tokenizer can be read",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler.init_req_max_new_tokens",
        AROUND,
        "hooks.requests:attach_state",
        "every request passes here once between creation and the queue, and is clipped to what fits uncompressed",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler.get_prefill_adder_class",
        AFTER,
        "hooks.admission:adder_that_knows",
        "SGLang's own extension point for admission, which otherwise reserves full lengths",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler.get_next_batch_to_run",
        BEFORE,
        "hooks.scheduling:compress_due",
        "before merging, admission and retraction, so that freed slots count in the same step",
    ),
    Hook(
        "sglang.srt.managers.schedule_batch.ScheduleBatch.check_decode_mem",
        AFTER,
        "hooks.pressure:compress_before_retracting",
        "the last question before a retraction; what is freed here counts in its answer",
    ),
    Hook(
        "sglang.srt.mem_cache.memory_pool.ReqToTokenPool.free",
        BEFORE,
        "hooks.scheduling:release_row",
        "every row that ends, finished, aborted or retracted, gives its query slot back here",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler.update_running_batch",
        AROUND,
        "hooks.result_in_flight:wait_for_result",
        "retracting a request throws away the result in flight; just compressed, it could not be computed again",
    ),
    Hook(
        "sglang.srt.managers.schedule_batch.release_req",
        AROUND,
        "hooks.resume:back_up",
        "every retraction and preemption releases the row here; its KV is saved before",
    ),
    Hook(
        "sglang.srt.managers.schedule_batch.ScheduleBatch.retract_decode",
        AFTER,
        "hooks.unresumable:explain",
        "a request that cannot come back ends with 503; SGLang's message promises that a retry helps",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler._release_aborted_request",
        BEFORE,
        "hooks.resume:forget_aborted",
        "every request that is aborted while it waits passes here",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler.pause_generation",
        BEFORE,
        "hooks.resume:forget_on_pause",
        "after a pause with mode retract, every KV entry must be computed anew",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler._add_request_to_queue",
        AROUND,
        "hooks.unresumable:queue_if_resumable",
        "a retracted request that can never be prefilled again would block the queue for ever",
    ),
    Hook(
        "sglang.srt.managers.schedule_batch.ScheduleBatch.prepare_for_extend",
        AFTER,
        "hooks.positions:count_logically",
        "a restored request is extended from a row that is shorter than its text",
    ),
    Hook(
        "sglang.srt.managers.schedule_batch.Req.reset_for_retract",
        AFTER,
        "hooks.tree:forget_row",
        "the row is rebuilt from tokens, uncompressed",
    ),
    Hook(
        "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.checkpoint",
        AROUND,
        "hooks.tree:insert_prompt_only",
        "KV of a compressed request must not enter the tree under its token ids, nor KV that is going to be compacted",
    ),
    Hook(
        "sglang.srt.managers.schedule_batch.Req._compute_max_prefix_len",
        AFTER,
        "hooks.tree:match_prompt_only",
        "generated tokens found in the tree are shared, and compaction writes in place",
    ),
    Hook(
        "sglang.srt.managers.scheduler.Scheduler.get_output_streamer_class",
        AFTER,
        "hooks.reporting:streamer_with_receipts",
        "SGLang's own extension point for per-request output fields",
    ),
    Hook(
        "sglang.srt.managers.scheduler_components.internal_state.SchedulerInternalStateController.get_internal_state",
        AFTER,
        "hooks.reporting:add_server_info",
        "/server_info shows the configuration and what has been done",
    ),
)

#: Put on when a model with latent attention (MLA) is met: other models' processes do not import its code.
LATENT_HOOKS: tuple[Hook, ...] = (
    Hook(
        "sglang.srt.models.deepseek_v2.DeepseekV2AttentionMLA.dispatch_attn_forward_method",
        AROUND,
        "hooks.capture:absorb",
        "queries are recorded as the latents are read, absorbed, also where a prefill would expand the latents",
    ),
)

#: What the command line needs; put on by `sglang_rpc.launch_server` before it parses, RPC on or off.
CLI_HOOKS: tuple[Hook, ...] = (
    Hook(
        "sglang.srt.server_args.ServerArgs.add_cli_args",
        AFTER,
        "startup.flags:add_flags",
        "the --rpc-* flags in one parser with SGLang's, so that --help and --config know them",
    ),
    Hook(
        "sglang.srt.server_args.ServerArgs.from_cli_args",
        AROUND,
        "startup.flags:read_flags",
        "the flags' values, attached to the server arguments they came with",
    ),
)
