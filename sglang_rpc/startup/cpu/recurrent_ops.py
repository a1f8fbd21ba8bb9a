"""PyTorch for what SGLang calls on a CPU in models with gated delta nets: Qwen3-Next and Qwen3.5.

`OPERATORS` are those of sgl_kernel's CPU build, with the arguments and layouts that SGLang 0.5.23 gives them. Three
steps have no CPU operator: SGLang launches a Triton kernel, unless the CPU has AMX. `replace_triton_kernels` sets
PyTorch functions there. It runs at the first convolution, when SGLang's modules are loaded and nothing of a step has
reached them. All of it is a reference: one token after the other, in float32.

Shapes: T tokens of all requests, one request after the other; H heads of queries and keys, of size K; HV heads of
values, of size V. A request's state is one slot of a pool, [slots, HV, V, K], and one of the pool of a convolution of
width W, [slots, channels, W - 1]; both are changed in place.
"""

import functools
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_rpc.startup.cpu import recurrent_verify
from sglang_rpc.startup.cpu.recurrent_verify import delta_of_rows

_GATES: dict[str, Callable[[Tensor], Tensor]] = {"swish": F.silu, "silu": F.silu, "sigmoid": torch.sigmoid}


def causal_conv1d_fwd_cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv_states: Tensor,
    query_start_loc: Tensor,
    cache_indices: Tensor,
    has_initial_state: Tensor,
    silu_activation: bool,
    pad_slot_id: int,
    is_vnni: bool,
) -> Tensor:
    """Convolve each request's tokens after the inputs that its slot holds, if it has any. Returns [channels, T].

    `x` [channels, T]; `query_start_loc` [requests + 1] token positions; `cache_indices` [requests] slots.
    """
    replace_triton_kernels()
    weight = _per_channel(weight, x)
    ends, slots = query_start_loc.tolist(), cache_indices.tolist()
    out = []
    for index, (begin, end) in enumerate(pairwise(ends)):
        before = conv_states[slots[index]].to(x.dtype)
        if not has_initial_state[index]:
            before = torch.zeros_like(before)
        inputs = torch.cat([before, x[:, begin:end]], 1)
        conv_states[slots[index]] = inputs[:, -before.shape[1] :].to(conv_states.dtype)
        y = F.conv1d(inputs[None], weight[:, None], bias, groups=len(weight))[0]
        out.append(F.silu(y) if silu_activation else y)
    return torch.cat(out, 1)


def causal_conv1d_update_cpu(
    x: Tensor,
    conv_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu_activation: bool,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor,
    pad_slot_id: int,
    is_vnni: bool,
) -> Tensor:
    """The same for one token of each request: `x` and the result are [requests, channels]."""
    slots = conv_state_indices.long()
    inputs = torch.cat([conv_states[slots].to(x.dtype), x[..., None]], -1)
    conv_states[slots] = inputs[..., 1:].to(conv_states.dtype)
    y = (inputs * _per_channel(weight, x)).sum(-1)
    if bias is not None:
        y = y + bias
    return F.silu(y) if silu_activation else y


def _per_channel(weight: Tensor, x: Tensor) -> Tensor:
    """[channels, W], of what SGLang has as [channels, W] or [channels, 1, W]."""
    return weight.view(len(weight), -1).to(x.dtype)


def chunk_gated_delta_rule_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor,
    output_final_state: bool,
    cu_seqlens: Tensor,
    head_first: bool,
    use_qk_l2norm_in_kernel: bool,
    initial_state_indices: Tensor,
) -> tuple[Tensor, None]:
    """Gated delta rule over each request's tokens, from its slot's state to its slot's state. Returns [1, T, HV, V].

    `q` and `k` [1, T, H, K], `v` [1, T, HV, V], `g` (log of the decay) and `beta` [1, T, HV]; `cu_seqlens`
    [requests + 1] token positions; `initial_state_indices` [requests] slots.
    """
    assert not head_first, "SGLang gives tokens first"
    assert use_qk_l2norm_in_kernel, "SGLang leaves the norm to the operator"
    ends, slots = cu_seqlens.tolist(), initial_state_indices.tolist()
    out = torch.empty_like(v)
    for index, (begin, end) in enumerate(pairwise(ends)):
        slot = slots[index]
        state = initial_state[slot].float()
        for token in range(begin, end):
            at = 0, token
            out[at], state = _delta(q[at], k[at], v[at], g[at], beta[at], state)
        initial_state[slot] = state.to(initial_state.dtype)
    return out, None


def fused_sigmoid_gating_delta_rule_update_cpu(
    A_log: Tensor,
    dt_bias: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    initial_state_source: Tensor,
    initial_state_indices: Tensor,
    cu_seqlens: Tensor,
    use_qk_l2norm_in_kernel: bool,
    softplus_beta: float,
    softplus_threshold: float,
    is_kda: bool = False,
    disable_state_update: bool = False,
    intermediate_states_buffer: Tensor | None = None,
    intermediate_state_indices: Tensor | None = None,
    cache_steps: int = 1,
    retrieve_parent_token: Tensor | None = None,
) -> Tensor:
    """The same for one token of each request, its gates included: `a` and `b` [requests, HV].

    With `intermediate_states_buffer`, for `cache_steps` rows of each request that verify drafts (`recurrent_verify`).
    """
    assert use_qk_l2norm_in_kernel, "SGLang leaves the norm to the operator"
    assert not is_kda, "of a gated delta net"
    slots = initial_state_indices.long()
    g, beta = _gates(A_log, a, b, dt_bias, softplus_beta, softplus_threshold)
    if intermediate_states_buffer is not None and intermediate_state_indices is not None:
        assert disable_state_update, "a slot's state is that of what is accepted"
        slots = slots[: q.shape[1] // cache_steps]
        rows = tuple(each.view(len(slots), cache_steps, *each.shape[1:]) for each in (q[0], k[0], v[0], g, beta))
        places = intermediate_state_indices[: len(slots)].long()
        before = initial_state_source[slots]
        out = delta_of_rows(_delta, rows, before, intermediate_states_buffer, places, retrieve_parent_token)
        return out.view(v.shape).to(v.dtype)
    out, state = _delta(q[0], k[0], v[0], g, beta, initial_state_source[slots].float())
    initial_state_source[slots] = state.to(initial_state_source.dtype)
    return out[None].to(v.dtype)


def fused_gdn_gating_cpu(A_log: Tensor, a: Tensor, b: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:
    """The log of each token's decay, and how much of its value is written: [1, T, HV] each, of `a` and `b` [T, HV]."""
    g, beta = _gates(A_log, a, b, dt_bias)
    return g[None], beta[None]


def _gates(
    A_log: Tensor, a: Tensor, b: Tensor, dt_bias: Tensor, softplus_beta: float = 1.0, threshold: float = 20.0
) -> tuple[Tensor, Tensor]:
    g = -A_log.float().exp() * F.softplus(a.float() + dt_bias.float(), softplus_beta, threshold)
    return g, b.float().sigmoid()


def _delta(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token of each sequence: decay the state, write what the key does not give yet, read with the query.

    `q` and `k` [..., H, K], `v` [..., HV, V], `g` and `beta` [..., HV], `state` [..., HV, V, K].
    """
    shared = v.shape[-2] // k.shape[-2]
    q = _normed(q).repeat_interleave(shared, -2) * q.shape[-1] ** -0.5
    k = _normed(k).repeat_interleave(shared, -2)
    state = state * g.float().exp()[..., None, None]
    held = (state * k[..., None, :]).sum(-1)
    written = (v.float() - held) * beta.float()[..., None]
    state = state + written[..., None] * k[..., None, :]
    return (state * q[..., None, :]).sum(-1), state


def _normed(x: Tensor) -> Tensor:
    x = x.float()
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def fused_qkvzba_split_reshape_cat_contiguous_cpu(
    mixed_qkvz: Tensor, mixed_ba: Tensor, heads_qk: int, heads_v: int, head_qk: int, head_v: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Part [T, q k v z] and [T, b a]: returns q, k and v together, z [T, HV, V], b and a [T, HV]."""
    values = heads_v * head_v
    qkv, z = mixed_qkvz.split([2 * heads_qk * head_qk + values, values], -1)
    b, a = mixed_ba.split(heads_v, -1)
    return qkv.contiguous(), z.reshape(-1, heads_v, head_v), b.contiguous(), a.contiguous()


def fused_qk_gemma_rmsnorm_cpu(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, head_dim: int
) -> tuple[Tensor, Tensor]:
    """Norm each head of `q` and `k`: [heads of all tokens, head_dim] each. A weight of 0 means 1."""
    return _gemma_norm(q.reshape(-1, head_dim), q_weight, eps), _gemma_norm(k.reshape(-1, head_dim), k_weight, eps)


def fused_qk_gemma_rmsnorm_with_gate_cpu(
    q_gate: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, head_dim: int, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, of queries that stand beside their gates, head by head. Returns q, k and the gates."""
    q, gate = q_gate.view(-1, num_heads, 2 * head_dim).chunk(2, -1)
    return (*fused_qk_gemma_rmsnorm_cpu(q, k, q_weight, k_weight, eps, head_dim), gate.contiguous())


def _gemma_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.float(), x.shape[-1:], 1 + weight.float(), eps).to(x.dtype)


def fused_sigmoid_mul_cpu(x: Tensor, gate: Tensor) -> None:
    """Scale `x` in place by the sigmoid of `gate`."""
    x.mul_(gate.reshape(x.shape).sigmoid())


OPERATORS = (
    causal_conv1d_fwd_cpu,
    causal_conv1d_update_cpu,
    chunk_gated_delta_rule_cpu,
    fused_gdn_gating_cpu,
    fused_qk_gemma_rmsnorm_cpu,
    fused_qk_gemma_rmsnorm_with_gate_cpu,
    fused_qkvzba_split_reshape_cat_contiguous_cpu,
    fused_sigmoid_gating_delta_rule_update_cpu,
    fused_sigmoid_mul_cpu,
)


@functools.cache
def replace_triton_kernels() -> None:
    """Set PyTorch functions for the Triton kernels that SGLang launches in these models, once per process.

    Raises AttributeError if SGLang has one of them elsewhere.
    """
    from sglang.kernels.ops.attention.fla import fused_norm_gate, layernorm_gated
    from sglang.kernels.ops.elementwise import elementwise

    for module, name, function in (
        (fused_norm_gate, "rms_norm_gated", rms_norm_gated),
        (layernorm_gated, "layernorm_fn", layernorm_fn),
        (elementwise, "_launch_fused_gate_sigmoid_mul", launch_fused_gate_sigmoid_mul),
    ):
        getattr(module, name)
        setattr(module, name, function)
    recurrent_verify.replace()


def rms_norm_gated(
    x: Tensor,
    g: Tensor,
    weight: Tensor,
    bias: None,
    activation: str = "swish",
    residual: None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Tensor:
    """Norm `x` over its last axis, then scale it by the gates `g`."""
    assert bias is None and residual is None and not prenorm, "not what SGLang asks of a gated delta net"
    y = F.rms_norm(x.float(), x.shape[-1:], weight.float(), eps)
    return (y * _GATES[activation](g.float())).to(x.dtype)


def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: None,
    z: Tensor,
    eps: float = 1e-6,
    group_size: None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
    activation: str = "swish",
) -> Tensor:
    """The same, under the name that Qwen3.5 has for it."""
    assert is_rms_norm and norm_before_gate and group_size is None, "not what SGLang asks of a gated delta net"
    return rms_norm_gated(x, z, weight, bias, activation, eps=eps)


def launch_fused_gate_sigmoid_mul(
    hidden_states: Tensor, gate_weight: Tensor, shared_output: Tensor, output: Tensor, *, do_add: bool
) -> None:
    """Write the shared expert's output to `output`, gated token by token, or add it there."""
    gate = (hidden_states.float() * gate_weight.float()).sum(-1, keepdim=True).sigmoid()
    gated = gate.to(shared_output.dtype) * shared_output
    output.copy_(output + gated if do_add else gated)
