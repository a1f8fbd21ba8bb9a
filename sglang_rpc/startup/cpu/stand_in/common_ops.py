"""Stands in for the compiled `common_ops` of sgl_kernel on a machine with neither a GPU driver nor its CPU build.

`sgl_kernel` 0.4.10 loads `sm100/common_ops.*.so`, which needs libcuda, and then falls back to `import common_ops`;
`sglang_rpc.startup.cpu.prepare` puts this directory at the end of sys.path, so this module is what the fallback
finds. Its Python wrappers (`sgl_kernel.speculative.assign_req_to_token_pool_cpu` and others) are its own and stay
untouched: only the operators they call, `torch.ops.sgl_kernel.<name>`, are supplied here, and only those absent.

Names SGLang asks for with `hasattr` (`convert_weight_packed`, `fused_qk_norm_cpu`, `fused_qk_norm_rope_cpu`,
`shm_group_initialize`) must stay absent: their absence is how SGLang knows to take its plain PyTorch path.

Operators of recurrent layers are in `recurrent_ops`, those of speculative decoding in `speculative_ops`. None of these
files imports anything of SGLang while it is imported: `sgl_kernel` is only half imported then.
"""

import torch

from sglang_rpc.startup.cpu import recurrent_ops, speculative_ops

#: Operators that are looked up where SGLang 0.5.23 is imported, but that a CPU's plain decoding does not call.
NEEDED_AT_IMPORT = (
    # Those behind the functions that it imports from sgl_kernel at module level when it runs on a CPU.
    "build_draft_decode_metadata_cpu",
    "rotate_input_ids_cpu",
    # Those that model and attention files bind to a module-level name.
    "fused_dual_residual_rmsnorm_cpu",
    "fused_moe_router_cpu",
    "rmsnorm_cpu",
)


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Write each request's new slots into its row: `req_to_token[row_i, start_i:end_i] = its part of out_cache_loc`.

    Shapes: `req_pool_indices`, `start_offset`, `end_offset` [requests]; `req_to_token` [rows, pool_len], changed in
    place; `out_cache_loc` [sum(end - start)] slots, request after request. Offsets are token positions. A request
    with start == end writes nothing. Raises IndexError when a row or a position lies outside `req_to_token`.
    """
    counts = (end_offset - start_offset).long()
    # Index of each request's first slot in out_cache_loc.
    first = counts.cumsum(0) - counts
    rows = req_pool_indices.long().repeat_interleave(counts)
    shift = (start_offset.long() - first).repeat_interleave(counts)
    columns = torch.arange(rows.numel(), device=rows.device) + shift
    req_to_token[rows, columns] = out_cache_loc[: rows.numel()].to(req_to_token.dtype)


def _unavailable(name: str):
    def operator(*args, **kwargs):
        raise NotImplementedError(
            f"torch.ops.sgl_kernel.{name} exists only in the CPU build of sgl_kernel, which is not installed; "
            "the CPU reference mode of sglang-rpc runs without it, so switch off the feature that calls it."
        )

    operator.__name__ = operator.__qualname__ = name
    return operator


def supply(namespace) -> None:
    """Set every operator above on `namespace` (`torch.ops.sgl_kernel`) unless it has one of that name already."""
    for operator in (assign_req_to_token_pool_cpu, *recurrent_ops.OPERATORS, *speculative_ops.OPERATORS):
        if not hasattr(namespace, operator.__name__):
            setattr(namespace, operator.__name__, operator)
    for name in NEEDED_AT_IMPORT:
        if not hasattr(namespace, name):
            setattr(namespace, name, _unavailable(name))


supply(torch.ops.sgl_kernel)
# Qwen3-Next asks for the device that it is built on. Where PyTorch is built for CUDA, and there is no GPU, that raises.
torch.cuda.current_device = torch.cpu.current_device  # type: ignore[assignment]
# So do layers for multi-token prediction wait for it, once they share the model's embeddings.
torch.cuda.synchronize = torch.cpu.synchronize
