"""SGLang's own decode graph runner, on a CPU: what it is built from, and what of it needs a GPU or other ranks.

To be imported after `sglang_rpc.startup.cpu.prepare`, as all of SGLang.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt import runtime_context
from sglang.srt.model_executor import input_buffers
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.model_executor.graph_shared_output import GraphSharedOutput
from sglang.srt.model_executor.runner import decode_cuda_graph_runner as decode_runner
from sglang.srt.server_args import ServerArgs
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from sglang_rpc.startup import cpu
from tests.unit.graphs.small_model import HIDDEN, VOCAB, EchoAttention, SmallModel
from tests.unit.graphs.stand_in import Device

#: Batch sizes that are captured; others are padded, and larger ones run without a graph.
SIZES = (1, 2, 4, 8)


def arguments(model_path: str) -> ServerArgs:
    """SGLang's own arguments. Only what they are resolved to counts: the model is another."""
    return ServerArgs(
        model_path=model_path,
        skip_tokenizer_init=True,
        cuda_graph_bs_decode=list(SIZES),
        **cpu.server_defaults(),
    )


class Runner:
    """A decode step, in a graph where SGLang would run it so. Use it as a context manager: SGLang's state is global."""

    def __init__(self, server_args: ServerArgs, model: SmallModel, device: Device, rows: int):
        self.server_args, self.model, self.device, self.rows = server_args, model, device, rows
        self.attention = EchoAttention()
        self.graph_steps: list[int] = []  #: batch sizes
        self._stack = ExitStack()

    def __enter__(self) -> Runner:
        """Capture."""
        patch = self._stack.enter_context(pytest.MonkeyPatch.context())
        context = runtime_context.create_context(self.server_args, role="scheduler")
        self._stack.enter_context(runtime_context.use_context(context))
        alone = SimpleNamespace(barrier=lambda: None, ca_comm=None)
        context.parallel.override_permanently(tp_rank=0, attn_tp_rank=0, attn_dp_rank=0, tp_group=alone)
        patch.setattr(input_buffers, "_forward_input_buffer_pool", {})
        run_without_gpu(patch, self.device)
        try:
            with self.device.warming_up():
                self.graphs = decode_runner.DecodeCudaGraphRunner(self._model_runner())
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def logits(self, forward_batch: Any) -> torch.Tensor:
        """Run a decode step: logits [rows, VOCAB]."""
        if self.graphs.can_run_graph(forward_batch):
            self.graph_steps.append(forward_batch.batch_size)
            return self.graphs.execute(forward_batch).next_token_logits
        with forward_context(ForwardContext(attn_backend=self.attention)):
            made = self.model(forward_batch.input_ids, forward_batch.positions, forward_batch)
        return made.next_token_logits

    def _model_runner(self) -> SimpleNamespace:
        """What DecodeCudaGraphRunner reads of a ModelRunner."""
        return SimpleNamespace(
            attn_backend=self.attention,
            canary_manager=None,
            capture_head_hooks=[],
            capture_tail_hooks=[],
            decode_num_tokens_per_req=lambda **_: 1,
            device="cpu",
            device_timer=None,
            get_aux_hidden_states_width=lambda: 0,
            get_pp_proxy_dspark_hidden_size=lambda: 0,
            get_pp_proxy_residual_num_blocks=lambda: None,
            get_pp_proxy_topk_size=lambda: None,
            attn_tp_sequence_sharded=lambda _tokens: False,
            gpu_id=0,
            graph_shared_output=GraphSharedOutput(device="cpu", max_rows=max(SIZES)),
            hisparse_coordinator=None,
            is_draft_worker=False,
            kv_index_translator=SimpleNamespace(bind_runner_slots=lambda _batch: None),
            lora_manager=None,
            model=self.model,
            model_config=SimpleNamespace(
                dtype=torch.float32,
                hf_config=SimpleNamespace(),
                hf_text_config=SimpleNamespace(model_type="small"),
                hidden_size=HIDDEN,
                is_encoder_decoder=False,
                vocab_size=VOCAB,
            ),
            ngram_embedding_manager=SimpleNamespace(enabled=False),
            req_to_token_pool=SimpleNamespace(size=self.rows),
            server_args=self.server_args,
            spec_algorithm=SpeculativeAlgorithm.NONE,
        )


def run_without_gpu(patch: pytest.MonkeyPatch, device: Device) -> None:
    """Let DecodeCudaGraphRunner capture over the stand-in: no streams, no other ranks, and one buffer is the host's."""
    create = decode_runner.DecodeInputBuffers.create

    def created(**settings: Any) -> Any:
        buffers = create(**settings)
        device.on_host(buffers.seq_lens_cpu)
        return buffers

    patch.setattr(decode_runner.DecodeInputBuffers, "create", created)
    patch.setattr(decode_runner, "graph_capture", _graph_capture)
    patch.setattr(decode_runner, "freeze_gc", lambda _enable: nullcontext())  # takes seconds in a process of all tests
    patch.setattr(decode_runner.tqdm, "tqdm", _Silent)


@contextmanager
def _graph_capture(stream: Any = None) -> Iterator[SimpleNamespace]:
    """SGLang's, of ranks that are not there."""
    yield SimpleNamespace(stream=stream)


class _Silent(list):
    """A progress bar that shows nothing."""

    def set_description(self, _text: str) -> None: ...
