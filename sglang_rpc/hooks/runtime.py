"""RPC in one scheduler: built when the scheduler is whole, found by every hook through `runtime_of`."""

import logging
from collections.abc import Sequence

import torch

import sglang_rpc
from sglang_rpc.config import RPCConfig
from sglang_rpc.contract.layers import recurrent_states
from sglang_rpc.contract.refusals import model as refusals
from sglang_rpc.contract.refusals.facts import gather_facts
from sglang_rpc.contract.refused import ends_if_refused
from sglang_rpc.contract.settings import config_of
from sglang_rpc.contract.sglang.memory import ReqToTokenPool
from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.contract.sglang.scheduler import PrefillAdder, Scheduler
from sglang_rpc.contract.sglang.server import GroupCoordinator
from sglang_rpc.contract.targets import AFTER, hook
from sglang_rpc.hooks import backup_memory, ranks
from sglang_rpc.hooks.draft_layers import draft_layers, slots_for_drafts
from sglang_rpc.hooks.markers import find_gists, find_markers
from sglang_rpc.hooks.metrics import Metrics
from sglang_rpc.hooks.model import model_rpc
from sglang_rpc.hooks.state_slots import state_slots
from sglang_rpc.runtime.aliases import Aliases
from sglang_rpc.runtime.compressor import Compressor
from sglang_rpc.runtime.per_step import PerStep
from sglang_rpc.runtime.pressure import Watermarks
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.trace.tracer import Tracer
from sglang_rpc.types import KVLayer

logger = logging.getLogger(__name__)


class SchedulerRPC:
    """RPC in one scheduler process: the compressor, what it needs of the scheduler, and what the hooks share."""

    def __init__(self, scheduler: Scheduler, config: RPCConfig):
        self.scheduler = scheduler
        self.config = config
        self.page_size = scheduler.token_to_kv_pool_allocator.page_size
        model = model_rpc(scheduler.tp_worker.model_runner)
        assert model is not None, "the query ring is built with the attention backends, before the scheduler is whole"
        self.ring = model.ring
        self.query_slots = model.query_slots
        self.every_step = model.every_step
        self.speculative = model.speculative  #: of a server that speculates
        if self.speculative is not None and scheduler.enable_overlap:
            self.speculative.schedule_ahead()
        #: Tokens by which a request may be longer when it is looked at next.
        self.stride = 1 if self.speculative is None else self.speculative.stride
        self.reserve = slots_for_drafts(scheduler)  #: slots that a row has after its entries while it decodes
        drafts = draft_layers(scheduler)
        group, everyone = ranks.tensor_parallel_group(), ranks.every_rank()
        self.compressor = Compressor(
            config,
            model.layers,
            self.ring,
            scheduler.req_to_token_pool.req_to_token,
            markers=find_markers(scheduler, config),
            gists=find_gists(scheduler, config),
            window_pool=model.window_pool,
            reduce=group.all_reduce if group is not None and _together(config, model.layers) else None,
            speculative=self.speculative,
            drafts=drafts,
            reduce_drafts=group.all_reduce if group is not None and _together(config, drafts) else None,
        )
        ranks.require_same(everyone, (config.to_json(), self.ring.slots, self.compressor.implementations))
        if group is not None and self.compressor.reduces:
            # Collectives of float32 are set up, or compiled, on first use: now, not at the first compression.
            for size in (2**8, 2**22):
                group.all_reduce(torch.zeros(size, device=scheduler.device))
        self.tracer = _tracer(scheduler, config, self.compressor, group)
        self.own_windows = model.window_pool is not None  #: whether window layers have a KV pool of their own
        #: Where no host backups are made, if this model's are not; "": they are.
        self.never_backed_up = backup_memory.OWN_WINDOWS if self.own_windows else ""
        #: Whether it is the decode server of prefill/decode disaggregation.
        self.decode_server = scheduler.disagg_decode_prealloc_queue is not None
        if self.decode_server:
            self.never_backed_up = backup_memory.DECODE_SERVER
        states = recurrent_states(scheduler.token_to_kv_pool_allocator, scheduler.req_to_token_pool)
        layers = [*model.layers, *drafts]
        self.backups = backup_memory.set_aside(config, layers, self.ring, everyone, self.never_backed_up, states)
        self.pipelined = (
            ranks.pipeline().pp_size > 1
        )  #: whether other micro-batches run, beside the one that is planned
        self.growth: PerStep[Req, int] = PerStep()  #: see `decode_admission.growth`
        self.metrics = Metrics(scheduler.metrics_collector)
        self.aliases = Aliases()  #: of compressed texts in the tree; none without reuse
        self.step = 0  #: scheduling steps so far
        self.adder_class: type[PrefillAdder] | None = None
        self.watermarks = Watermarks(config.high_watermark, config.low_watermark)
        self.recording_ahead: list[RequestState] = []  #: recorded ahead of time, in case memory runs out
        #: While the scheduler may retract and a result is in flight (result_in_flight.py): whether it is sure to.
        self.retraction_is_certain: bool | None = None
        # The compaction stream must wait for the forward that still reads what is going to move.
        on_device = not str(scheduler.device).startswith("cpu")
        self._forward_stream = scheduler.forward_stream if on_device else None

    @property
    def scope_in_effect(self) -> str:
        """The scope of a request that names none."""
        return self.config.scope if self.compressor.markers is not None else "all"

    def in_micro_batches(self) -> list[Req]:
        """Requests that hold KV in the micro-batches of a pipeline, of which one is planned while others run.

        Without a pipeline there are none.
        """
        batches = self.scheduler._collect_inflight_batches() if self.pipelined else []
        # A batch that has ended, or been merged, still lists its requests.
        return [req for batch in batches if batch is not None for req in batch.reqs if req.kv.holds_kv]

    def count_cut(self, state: RequestState) -> None:
        """Count a step of a request that was cut at a due date."""
        state.totals.cut(1)
        self.compressor.counters.speculative_cuts += 1
        self.metrics.add("speculative_cuts", 1)

    def report_slots(self) -> None:
        """Bring the metrics of the query slots up to date."""
        self.metrics.query_slots(self.ring.in_use, self.compressor.recorder.waiting, self.compressor.counters)

    def report_backups(self) -> None:
        """Bring the metrics of the host backups up to date."""
        self.metrics.backups(self.backups.used, self.compressor.counters)

    def report_reuse(self) -> None:
        """Bring the metrics of reuse up to date."""
        self.metrics.reuse(len(self.aliases), self.compressor.counters)

    def fence(self) -> None:
        """Order the current stream after the forward pass in flight. The host does not wait."""
        if self._forward_stream is not None:
            torch.cuda.current_stream().wait_stream(self._forward_stream)


def _together(config: RPCConfig, layers: Sequence[KVLayer]) -> bool:
    """Whether ranks add up their scores of `layers`. A latent is every head's, and every rank has a copy: all must keep
    the same ones, with aggregation `group` too."""
    return config.aggregation == "all" or any(layer.latent for layer in layers)


def runtime_of(owner: Scheduler | ReqToTokenPool) -> SchedulerRPC | None:
    """RPC of a Scheduler, or of a ReqToTokenPool; None while, or where, it is off."""
    runtime: SchedulerRPC | None = getattr(owner, "rpc", None)
    return runtime


def state_of(req: Req) -> RequestState | None:
    """RPC's state of a request, in a process that may serve without RPC; None while, or where, it has none."""
    state: RequestState | None = getattr(req, "rpc", None)
    return state


def is_recorded(req: Req) -> bool:
    """Whether the queries of its next tokens go into the query ring."""
    state = state_of(req)
    return state is not None and state.recording.slot is not None


@hook(
    AFTER,
    "sglang.srt.managers.scheduler.Scheduler.init_internal_state",
    "the scheduler is whole: pools, tree, streams and tokenizer can be read",
)
@ends_if_refused
def install_compressor(_result: object, scheduler: Scheduler) -> None:
    """AFTER Scheduler.init_internal_state, once per scheduler process, before its event loop.

    Ends the process with a sentence if RPC cannot work with what is there.
    """
    config = config_of(scheduler.server_args)
    if config is None:
        return
    refusals.refuse_model_runner(gather_facts(scheduler), config)
    from sglang.srt.managers.schedule_batch import Req

    Req.rpc = None  # requests that never pass `init_req_max_new_tokens` (warm-up) have no state
    scheduler.rpc = runtime = SchedulerRPC(scheduler, config)
    scheduler.req_to_token_pool.rpc = runtime
    logger.info(
        "RPC on: %s; scope in effect: %s; scoring: %s%s; %d query slots, %.1f MB, %s%s",
        config.to_json(),
        runtime.scope_in_effect,
        runtime.compressor.scoring,
        _window_layers(runtime.compressor),
        runtime.ring.slots,
        runtime.ring.nbytes / 1e6,
        runtime.query_slots.sentence,
        state_slots(scheduler, config),
    )


def _window_layers(compressor: Compressor) -> str:
    """Of the log line at start-up: how many layers there are of each kind, if of both."""
    if not compressor.window_layers:
        return ""
    return f", in {len(compressor.layers)} layers; {compressor.window_layers} sliding-window layers keep the newest"


def _tracer(
    scheduler: Scheduler, config: RPCConfig, compressor: Compressor, group: GroupCoordinator | None
) -> Tracer | None:
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
