"""CPU stand-ins for gated delta nets, against transformers' own code for the same layers."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from sglang_rpc.startup.cpu import recurrent_ops as ops

HEADS, VALUE_HEADS, KEY, VALUE = 2, 4, 8, 6
LENGTHS = [3, 1, 7]


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(3)


def delta_net(rng, tokens: int) -> dict[str, torch.Tensor]:
    """Inputs of the delta rule, tokens of all requests together."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(1, tokens, *shape, generator=rng)

    return dict(
        q=draw(HEADS, KEY),
        k=draw(HEADS, KEY),
        v=draw(VALUE_HEADS, VALUE),
        g=-draw(VALUE_HEADS).abs(),
        beta=draw(VALUE_HEADS).sigmoid(),
    )


def transformers_delta(inputs, begin: int, end: int, state: torch.Tensor):
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

    part = {name: tensor[:, begin:end] for name, tensor in inputs.items()}
    for name in ("q", "k"):
        part[name] = part[name].repeat_interleave(VALUE_HEADS // HEADS, dim=2)
    return torch_recurrent_gated_delta_rule(
        part["q"], part["k"], part["v"], g=part["g"], beta=part["beta"], initial_state=state[None],
        output_final_state=True, use_qk_l2norm_in_kernel=True,
    )  # fmt: skip


def test_the_delta_rule_goes_on_from_each_requests_slot(rng):
    inputs = delta_net(rng, sum(LENGTHS))
    pool = torch.randn(6, VALUE_HEADS, VALUE, KEY, generator=rng)
    before, slots = pool.clone(), torch.tensor([4, 0, 2])
    ends = torch.tensor([0, 3, 4, 11])
    out, _ = ops.chunk_gated_delta_rule_cpu(
        **inputs, initial_state=pool, output_final_state=True, cu_seqlens=ends, head_first=False,
        use_qk_l2norm_in_kernel=True, initial_state_indices=slots,
    )  # fmt: skip
    for index, slot in enumerate(slots.tolist()):
        begin, end = ends[index : index + 2].tolist()
        expected, state = transformers_delta(inputs, begin, end, before[slot].transpose(-1, -2))
        assert_close(out[:, begin:end], expected)
        assert_close(pool[slot], state[0].transpose(-1, -2))
    assert torch.equal(pool[[1, 3, 5]], before[[1, 3, 5]])


def test_a_decode_step_is_a_prefill_of_one_token_each(rng):
    inputs = delta_net(rng, 3)
    a, b = torch.randn(3, VALUE_HEADS, generator=rng), torch.randn(3, VALUE_HEADS, generator=rng)
    decay, bias = torch.randn(VALUE_HEADS, generator=rng), torch.randn(VALUE_HEADS, generator=rng)
    one = torch.randn(5, VALUE_HEADS, VALUE, KEY, generator=rng)
    other, slots, ends = one.clone(), torch.tensor([3, 1, 0]), torch.arange(4)
    q, k, v = (inputs[name] for name in "qkv")
    g, beta = ops.fused_gdn_gating_cpu(decay, a, b, bias)
    expected, _ = ops.chunk_gated_delta_rule_cpu(q, k, v, g, beta, one, True, ends, False, True, slots)
    actual = ops.fused_sigmoid_gating_delta_rule_update_cpu(
        decay, bias, q, k, v, a, b, other, slots, ends, True, 1.0, 20.0
    )
    assert_close(actual, expected)
    assert_close(other, one)


@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_in_parts_is_the_convolution_of_the_whole(monkeypatch, rng, bias):
    monkeypatch.setattr(ops, "replace_triton_kernels", lambda: None)
    channels, width = 5, 4
    weight = torch.randn(channels, 1, width, generator=rng)
    offset = torch.randn(channels, generator=rng) if bias else None
    x = torch.randn(channels, 9, generator=rng)
    padded = torch.nn.functional.pad(x, (width - 1, 0))[None]
    whole = torch.nn.functional.silu(torch.nn.functional.conv1d(padded, weight, offset, groups=channels))[0]
    states = torch.full((3, channels, width - 1), 9.0)  # what the last owner of the slot has left

    def prefill(begin: int, end: int, goes_on: bool) -> torch.Tensor:
        return ops.causal_conv1d_fwd_cpu(
            x[:, begin:end], weight, offset, states, torch.tensor([0, end - begin]), torch.tensor([1]),
            torch.tensor([goes_on]), True, -1, True,
        )  # fmt: skip

    parts = [prefill(0, 2, False), prefill(2, 8, True)]
    last = ops.causal_conv1d_update_cpu(x[:, 8][None], states, weight, offset, True, None, torch.tensor([1]), -1, True)
    assert_close(torch.cat([*parts, last.T], 1), whole)
    assert_close(states[1], x[:, -(width - 1) :])
    assert (states[[0, 2]] == 9).all()


def test_norms_and_gates_are_those_of_transformers(rng):
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNorm, Qwen3NextRMSNormGated

    x, gate = torch.randn(3, 12, generator=rng), torch.randn(3, 12, generator=rng)
    gated, norm = Qwen3NextRMSNormGated(12, eps=1e-5), Qwen3NextRMSNorm(12, eps=1e-5)
    with torch.no_grad():
        gated.weight.normal_(generator=rng)
        norm.weight.normal_(generator=rng)
        expected = gated(x, gate)
        assert_close(ops.rms_norm_gated(x, gate, gated.weight, None, eps=1e-5), expected)
        assert_close(ops.layernorm_fn(x, gated.weight, None, gate, 1e-5, None, True, True), expected)
        q_gate = torch.cat([x, gate], -1).view(3, 24)
        q, k, got = ops.fused_qk_gemma_rmsnorm_with_gate_cpu(q_gate, gate, norm.weight, norm.weight, 1e-5, 12, 1)
        assert_close(q, norm(x))
        assert_close(k, norm(gate))
        assert_close(got.view_as(gate), gate)


def test_projections_are_parted_in_their_order():
    sizes = [HEADS * KEY, HEADS * KEY, VALUE_HEADS * VALUE, VALUE_HEADS * VALUE]
    parts = [torch.full((2, size), float(index)) for index, size in enumerate(sizes)]
    ba = torch.cat([torch.full((2, VALUE_HEADS), 4.0), torch.full((2, VALUE_HEADS), 5.0)], -1)
    qkv, z, b, a = ops.fused_qkvzba_split_reshape_cat_contiguous_cpu(
        torch.cat(parts, -1), ba, HEADS, VALUE_HEADS, KEY, VALUE
    )
    assert torch.equal(qkv, torch.cat(parts[:3], -1))
    assert torch.equal(z, parts[3].view(2, VALUE_HEADS, VALUE))
    assert (b == 4).all()
    assert (a == 5).all()


@pytest.mark.parametrize("add", [False, True])
def test_the_shared_experts_output_is_gated(rng, add):
    hidden, weight = torch.randn(4, 6, generator=rng), torch.randn(6, generator=rng)
    shared, out = torch.randn(4, 6, generator=rng), torch.randn(4, 6, generator=rng)
    expected = shared * (hidden @ weight).sigmoid()[:, None] + (out if add else 0)
    ops.launch_fused_gate_sigmoid_mul(hidden, weight, shared, out, do_add=add)
    assert_close(out, expected)


def test_a_sigmoid_scales_in_place(rng):
    x, gate = torch.randn(3, 8, generator=rng), torch.randn(3, 2, 4, generator=rng)
    expected = x * gate.reshape(3, 8).sigmoid()
    ops.fused_sigmoid_mul_cpu(x, gate)
    assert_close(x, expected)
