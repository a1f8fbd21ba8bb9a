"""What RPC calls, reads or takes for granted in SGLang without hooking it. `patches/` pins these beside the hooks.

An entry that has gone, or takes other arguments, breaks RPC like a missing hook target. One whose code has changed may
still do what the reason says: that is a warning, and a person reads the change. What is read of objects is declared in
`contract/sglang/`; here are functions, enumerations, and what a method is taken to do.
"""

from collections.abc import Mapping

from sglang_rpc.contract.sglang import (
    batches,
    disaggregation,
    endpoints,
    memory,
    model,
    requests,
    scheduler,
    server,
    windows,
)
from sglang_rpc.contract.targets import LATENT, Assumption, assumptions_in

#: module or class -> name in it -> what RPC needs of it
_FUNCTIONS: Mapping[str, Mapping[str, str]] = {
    # ---- putting hooks on, and carrying the configuration
    "sglang.srt.plugins.hook_registry": {
        "_wrap_fn": "SGLang's meaning of before, after and around; sets __wrapped__, so that what is below a hook can "
        "be found",
        "HookRegistry._apply_target": "puts a hook on a function of a module, and on its copies in other modules; "
        "raises where it can't",
    },
    "sglang.srt.mem_cache.radix_cache.RadixKey": {"__init__": "a text, and what keeps it apart from equal ones"},
    "sglang.srt.plugins": {"load_plugins": "calls plugin:load, and lets SystemExit through"},
    "sglang.srt.server_args": {
        "prepare_server_args": "parses a command line with add_cli_args and --config",
        "ServerArgs.__setattr__": "the sealed record takes underscore names that are no fields: the configuration is "
        "one",
        "ServerArgs.__reduce__": "ships such names to the processes that are spawned",
    },
    "sglang.srt.arg_groups.overrides": {
        "model_config_of": "the model's configuration, read before anything is spawned",
        "resolving_view": "the arguments as SGLang resolved them, which the refusals read",
    },
    "sglang.srt.configs.model_config": {
        "is_hybrid_swa_model": "whether SGLang would give a model a pool for sliding windows",
        "is_deepseek_dsa": "whether an indexer chooses the keys",
    },
    "sglang.launch_server": {"run_server": "serves with the arguments it is given"},
    "sglang.srt.utils": {"kill_process_tree": "ends the server's processes"},
    "sglang.srt.entrypoints.engine.Engine": {
        "__init__": "builds the arguments with server_args_class, unless server_args is given",
        "_launch_subprocesses": "checks the arguments before anything is spawned, and launches schedulers through the "
        "class",
    },
    "sglang.srt.entrypoints.http_server": {
        "init_multi_tokenizer": "an HTTP worker takes the arguments, and the configuration with them, from shared "
        "memory",
    },
    # ---- the query ring, inside the forward pass
    "sglang.srt.layers.radix_attention.RadixAttention": {
        "forward": "called through nn.Module.__call__, so that forward pre-hooks run; q, roped, first and "
        "forward_batch fourth",
    },
    "sglang.srt.model_executor.runner_utils.capture_mode": {
        "get_is_capture_mode": "whether a forward is the capture of a CUDA graph or one of its warm-ups, where no slot "
        "is in use and the write must run",
    },
    "sglang.srt.model_executor.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner": {
        "capture_prepare": "a captured batch holds the runner's static rows and positions, all zero",
        "load_batch": "a replay's rows and positions are copied there, padded with row 0, which no request gets",
    },
    "sglang.srt.model_executor.runner.eager_runner.EagerRunner": {
        "execute": "a mixed step runs as a plain extend, whose tokens keep their order",
    },
    "sglang.srt.model_executor.forward_batch_info": {
        "ForwardMode.is_mixed": "prefill rows, then decode rows",
        "compute_position": "positions of a mixed step, row after row, from prefix lengths that are physical for "
        "decode rows",
    },
    "sglang.srt.batch_overlap.two_batch_overlap.TboForwardBatchPreparer": {
        "filter_batch": "half a decode step has its share of the rows and of the positions",
    },
    # ---- positions
    "sglang.kernels.ops.attention.clamp_position": {
        "clamp_position": "decode positions come from seq_lens, which are physical; what make_logical replaces",
    },
    "sglang.srt.managers.schedule_batch.ScheduleBatch": {
        "maybe_evict_swa": "before each decode step, frees what has left a window by the tree's evict_sliding_windows; "
        "frees nothing of a row whose prefill may be in flight",
        "_swa_eviction_trigger": "asks of a request's tokens whether as many have left its window as the interval says",
        "prepare_for_decode": "advances orig_seq_lens by one a step on its own account, which keeps it logical; makes "
        "new length tensors",
        "prepare_for_extend": "sets orig_seq_lens to the tokens a row holds, with the prompt's matched part",
        "mix_with_running": "decode rows are the last rows of a mixed batch, of one token each",
        "filter_batch": "carries seq_lens, seq_lens_cpu and orig_seq_lens by row, in new tensors",
        "merge_batch": "appends the other batch's rows and lengths; rows of a mixed batch become decode rows here",
        "retract_decode": "ends with 503 what release_req says cannot come back",
    },
    # ---- the moment of a compression, and what happens to requests around it
    "sglang.srt.managers.scheduler": {
        "Scheduler.event_loop_overlap": "when the next batch is planned, the newest result but one is processed and "
        "one forward may be in flight",
        "Scheduler.event_loop_normal": "when the next batch is planned, every result is processed",
        "Scheduler.run_batch": "the forward stream waits for the schedule stream, so the next forward sees what a "
        "compression moved",
        "Scheduler._get_new_batch_prefill_raw": "mixed steps: decoding_reqs are the rows mixed in, and the running "
        "batch is empty afterwards",
        "Scheduler.update_running_batch": "retraction is decided here, after due compressions have freed their slots",
        "Scheduler.handle_generate_request": "every request passes init_req_max_new_tokens between its creation and "
        "the queue",
        "Scheduler.init_model_worker": "attention backends, and the query ring with them, are built before CUDA "
        "graphs are captured",
        "_make_abort_req": "the answer, with a reason and a status",
        "TEST_RETRACT": "whether retractions are forced, for tests",
        "TEST_RETRACT_INTERVAL": "in which forward passes they are",
    },
    # ---- memory
    "sglang.srt.mem_cache.common": {
        "free_swa_out_of_window_slots": "frees whole pages of row positions from the cursor on, and moves the cursor; "
        "asks again whether as many have left the window",
        "free_kv_row_segments": "what free_kv_row does with the tail of a row; before the cursor only slots of full "
        "attention are left to free",
        "checkpoint_kv_cache": "a prefill's KV enters the tree through checkpoint()",
        "release_kv_cache": "a finished request's KV enters the tree through checkpoint(); the rest of its row is "
        "freed, then the row",
    },
    "sglang.srt.mem_cache.allocator": {
        "base.BaseTokenToKVPoolAllocator.max_new_tokens_for_memory": "SGLang's own length limit, whose margins ours "
        "keeps",
        "token.TokenToKVPoolAllocator.alloc": "slots of single tokens, or None",
        "paged.PagedTokenToKVPoolAllocator.alloc": "whole pages, or None",
        "paged.PagedTokenToKVPoolAllocator.free_segment": "frees whole pages of a row, the last partly filled one "
        "too, without a unique() that would wait",
    },
    "sglang.srt.mem_cache.memory_pool.MHATokenToKVPool": {
        "_create_buffers": "the buffers' shape: [slots, KV heads, head size]",
    },
    "sglang.srt.mem_cache.allocation": {
        "alloc_for_decode_default": "a decode step writes its slot at row position seq_lens, right after what a "
        "compression kept",
        "ensure_mamba_capacity": "makes room in the tree for the state slots that a row will take; whether there is",
        "_prefix_kv_indices": "a request that holds its row extends it from prefix_len on, whatever is in it",
    },
    "sglang.srt.mem_cache.kv_cache_builder": {"uses_ssm_state": "whether the model has recurrent layers"},
    # ---- finishing, retraction, admission and coming back
    "sglang.srt.managers.schedule_batch": {
        "Req.owned_kv_len": "never more than kv_committed_len",
        "Req.refresh_fill_ids": "appends outputs to the ids by their number, so a shortened list must not be left "
        "there",
        "ScheduleBatch._collect_deferred_mamba_cow_and_clear": "a prefill overwrites the states of requests that note "
        "a state to begin with, and of no other",
        "release_req": "a retraction releases the row, which gives the query slot back, before reset_for_retract",
    },
    "sglang.srt.managers.schedule_policy.PrefillAdder": {
        "__init__": "sums up the offsets of the running requests into memory_budget.total_offset",
        "_commit_prefill_admission": "locks the prefix and appends to can_run_list",
    },
    "sglang.srt.managers.schedule_policy": {"CLIP_MAX_NEW_TOKENS": "how far ahead SGLang reserves, in tokens"},
    "sglang.srt.mem_cache.prefill_budget.PrefillBudget": {"reserve": "adds the new tokens to total_offset"},
    # ---- what a user sees, and groups of ranks
    "sglang.srt.managers.tokenizer_manager.TokenizerManager": {
        "_handle_batch_output": "passes a message's customized_info to update_request_meta_info by position",
    },
    "sglang.srt.managers.multi_tokenizer_mixin": {
        "_extract_field_by_index": "hands each HTTP worker the customized_info of its requests",
    },
    "sglang.srt.session.streaming_session.StreamingSession": {
        "release_session": "frees the session's row by itself, without a request",
    },
    "sglang.srt.runtime_context": {
        "get_serving": "the reasoning parser's name",
        "get_parallel": "the ranks that share the attention heads, and the pipeline's stages",
    },
    "sglang.srt.parser.reasoning_parser.ReasoningParser": {"__init__": "finds the detector of a parser's name"},
    "sglang.srt.distributed.parallel_state": {
        "get_attn_tp_group": "the group whose ranks share the heads",
        "get_world_group": "the group of all ranks of a server, of every pipeline stage",
    },
    "sglang.srt.managers.scheduler_pp_mixin.SchedulerPPMixin": {
        "event_loop_pp": "plans a micro-batch when its last result has been processed, in the same order on each "
        "stage; others may be running",
    },
}

_DEEPSEEK = "sglang.srt.models.deepseek_common.attention_forward_methods"
#: Classes of which single names are read, but no objects that hooks hold; and what only latent attention needs.
_OTHERS: tuple[Assumption, ...] = (
    Assumption(
        "sglang.srt.plugins.hook_registry.HookType", "the kinds of hooks, by value", ("AFTER", "AROUND", "BEFORE")
    ),
    Assumption(
        "sglang.srt.plugins.hook_registry.HookSource",
        "who put a hook on, for the registry's messages",
        ("dist_name", "plugin_name"),
    ),
    Assumption("sglang.srt.layers.radix_attention.AttentionType", "which attention is a decoder's", ("DECODER",)),
    Assumption(
        "sglang.srt.managers.schedule_policy.AddReqResult", "why a request is not admitted", ("NO_TOKEN", "OTHER")
    ),
    Assumption(
        "sglang.srt.mem_cache.unified_cache.component_type.ComponentType",
        "which cursor of a row is that of its sliding windows",
        ("SWA",),
    ),
    Assumption(
        "sglang.srt.environ.Envs",
        "how many entries leave a window before their slots are freed, together",
        ("SGLANG_SWA_EVICTION_INTERVAL",),
    ),
    Assumption(
        "sglang.srt.parser.reasoning_parser.K2V3Detector",
        "how a detector shows that each request chooses its think tokens",
        ("request_selectable_think_end_tokens",),
    ),
    Assumption(
        f"{_DEEPSEEK}.forward_mla.DeepseekMLAForwardMixin.forward_absorb_core",
        "calls attn_mqa with absorbed queries and roped ones, apart (q_rope) or as one tensor, in this order",
        when=LATENT,
    ),
    Assumption(
        f"{_DEEPSEEK}.forward_methods.AttnForwardMethod",
        "the absorbed way, and those that expand",
        ("MHA", "MHA_CHUNKED_KV", "MHA_ONE_SHOT", "MLA"),
        LATENT,
    ),
)


_ALL: tuple[Assumption, ...] = (
    *assumptions_in(requests, batches, scheduler, disaggregation, memory, windows, model, server, endpoints),
    *(Assumption(f"{owner}.{name}", reason) for owner, names in _FUNCTIONS.items() for name, reason in names.items()),
    *_OTHERS,
)


def assumptions(when: str) -> tuple[Assumption, ...]:
    """What is compared when hooks of this kind are put on; of those of LATER, on top of SERVING's."""
    return tuple(assumption for assumption in _ALL if assumption.when == when)
