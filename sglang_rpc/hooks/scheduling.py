"""When the scheduler's next step is prepared: compress what is due, free the slots, correct the lengths."""

from __future__ import annotations

import logging
from typing import Any

import torch

import sglang_rpc
from sglang_rpc.config import RPCConfig
from sglang_rpc.contract import refusals
from sglang_rpc.contract.layers import is_latent
from sglang_rpc.contract.settings import config_of
from sglang_rpc.errors import ConfigError
from sglang_rpc.hooks import pressure, rows
from sglang_rpc.hooks.compaction import apply_compressions
from sglang_rpc.hooks.limits import refit
from sglang_rpc.hooks.markers import find_gists, find_markers
from sglang_rpc.hooks.metrics import Metrics
from sglang_rpc.memory.host_backup import HostBackup
from sglang_rpc.runtime.compressor import Compressor
from sglang_rpc.runtime.pressure import Watermarks
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.startup.process import ends_if_refused
from sglang_rpc.trace.tracer import Tracer
from sglang_rpc.types import Compression

logger = logging.getLogger(__name__)


class SchedulerRPC:
    """RPC in one scheduler: the compressor and what it needs of SGLang."""

    def __init__(self, scheduler: Any, config: RPCConfig):
        self.scheduler = scheduler
        self.config = config
        self.page_size = scheduler.token_to_kv_pool_allocator.page_size
        model_runner = scheduler.tp_worker.model_runner
        self.ring = model_runner.rpc_ring
        layers = model_runner.rpc_layers
        group = _tensor_parallel_group()
        # A latent is every head's, and every rank has a copy: all must keep the same ones, `group` or not.
        latent = is_latent(scheduler.token_to_kv_pool_allocator.get_kvcache())
        together = config.aggregation == "all" or latent
        self.compressor = Compressor(
            config,
            layers,
            self.ring,
            scheduler.req_to_token_pool.req_to_token,
            markers=find_markers(scheduler, config),
            gists=find_gists(scheduler, config),
            reduce=group.all_reduce if group is not None and together else None,
        )
        if group is not None:
            _require_same_on_all_ranks(group, (config.to_json(), self.ring.slots, self.compressor.scoring))
            if self.compressor.reduces:
                # Collectives of float32 are set up, or compiled, on first use: now, not at the first compression.
                for size in (2**8, 2**22):
                    group.all_reduce(torch.zeros(size, device=scheduler.device))
        self.tracer = _tracer(scheduler, config, self.compressor, group)
        self.backups = HostBackup(self.compressor.layers, int(config.host_backup_gb * 1e9))
        self.metrics = Metrics(scheduler.metrics_collector)
        self.step = 0  #: scheduling steps so far
        self.adder_class: type | None = None
        self.watermarks = Watermarks(config.high_watermark, config.low_watermark)
        self.pre_recording: list[RequestState] = []  # recorded ahead of time, in case memory runs out
        #: While the scheduler may retract and the last result is on its way: whether it will in any case, as a test.
        self.result_awaited: bool | None = None
        self._slots_reported = 0
        # The compaction stream must wait for the forward that still reads what is going to move.
        on_device = not str(scheduler.device).startswith("cpu")
        self._forward_stream = scheduler.forward_stream if on_device else None

    def report_slots(self) -> None:
        """Bring the gauge of query slots in use up to date."""
        if self.ring.in_use != self._slots_reported:
            self._slots_reported = self.ring.in_use
            self.metrics.slots_in_use(self._slots_reported)

    def report_backups(self) -> None:
        self.metrics.backups(self.backups.used, self.compressor.counters)

    def fence(self) -> None:
        """Order this stream behind the forward pass in flight. The host does not wait."""
        if self._forward_stream is not None:
            torch.cuda.current_stream().wait_stream(self._forward_stream)


@ends_if_refused
def install_compressor(_result: Any, scheduler: Any) -> None:
    """AFTER Scheduler.init_internal_state. Ends the process with a sentence if RPC cannot work with what is there."""
    config = config_of(scheduler.server_args)
    if config is None:
        return
    refusals.refuse_model_runner(refusals.gather_facts(scheduler), config)
    from sglang.srt.managers.schedule_batch import Req

    Req.rpc = None  # requests that never pass `init_req_max_new_tokens` (warm-up) have no state
    scheduler.rpc = SchedulerRPC(scheduler, config)
    scheduler.req_to_token_pool.rpc = scheduler.rpc
    ring = scheduler.rpc.ring
    logger.info(
        "RPC on: %s; scope in effect: %s; scoring: %s; %d query slots, %.1f MB",
        config.to_json(),
        config.scope if scheduler.rpc.compressor.markers is not None else "all",
        scheduler.rpc.compressor.scoring,
        ring.slots,
        ring.nbytes / 1e6,
    )


def release_row(req_to_token_pool: Any, req: Any) -> None:
    """BEFORE ReqToTokenPool.free."""
    runtime = getattr(req_to_token_pool, "rpc", None)
    if runtime is not None and req.rpc is not None:
        runtime.compressor.release_slot(req.rpc)
        runtime.report_slots()


def compress_due(scheduler: Any, running_batch: Any, last_batch: Any) -> None:
    """BEFORE Scheduler.get_next_batch_to_run.

    At this point the last forward may still be running. Its rows are in `running_batch`, or, if it was an extend, in
    `last_batch`, which is merged right after.
    """
    runtime = getattr(scheduler, "rpc", None)
    if runtime is None:
        return
    runtime.step += 1
    batches = rows.decode_batches(running_batch, last_batch)
    pressure.watch(runtime, batches)
    for batch in batches:
        # Again where something was done: of a row rebuilt from its tokens more than one thought may have its gists.
        while due := [(i, req, c) for i, req in rows.rows_to_check(batch) if (c := _poll(runtime, req)) is not None]:
            apply_compressions(runtime, batch, due)
            running_batch.batch_is_full = False  # what was freed may admit a request in this very step
    runtime.report_slots()


def _poll(runtime: SchedulerRPC, req: Any) -> Compression | None:
    if req is runtime.scheduler.chunked_req:
        return None  # its prefill goes on, behind the entries that are there
    generated = rows.generated(req)
    compression = runtime.compressor.poll(req.rpc, req.kv.req_pool_idx, req.origin_input_ids, generated, req.output_ids)
    if compression is None:
        refit(runtime.scheduler, req, generated)
    return compression


def _tracer(scheduler: Any, config: RPCConfig, compressor: Compressor, group: Any | None) -> Tracer | None:
    """What writes `--rpc-trace`; None if nothing does, or another rank, which keeps the same. Raises ConfigError."""
    if config.trace is None or (group is not None and group.rank_in_group != 0):
        return None
    args = scheduler.server_args
    server = {
        "version": sglang_rpc.__version__,
        "model": args.model_path,
        "tokenizer": args.tokenizer_path or args.model_path,
        "scoring": compressor.scoring,
        "config": config.as_dict(),
        "layers": len(compressor.layers),
        "heads": compressor.layers[0].keys.shape[1] if config.aggregation == "group" else 1,
    }
    tracer = Tracer(config.trace, server, compressor.markers, compressor.ring.buffer.device)
    compressor.observe(tracer.observer)
    return tracer


def _require_same_on_all_ranks(group: Any, settings: tuple[Any, ...]) -> None:
    """Raises ConfigError: on ranks that compress differently rows would differ, and collectives would not pair up."""
    everywhere: list[Any] = [None] * group.world_size
    torch.distributed.all_gather_object(everywhere, settings, group=group.cpu_group)
    if any(other != settings for other in everywhere):
        raise ConfigError(
            "every rank must have the same --rpc-* flags, query slots and scoring: start every node with the same "
            f"flags and memory, and name --rpc-scoring where GPUs differ; got {everywhere}"
        )


def _tensor_parallel_group() -> Any | None:
    """The group whose ranks share the attention heads; None if this rank has them all."""
    from sglang.srt.distributed.parallel_state import get_attn_tp_group

    group = get_attn_tp_group()
    return group if group.world_size > 1 else None
