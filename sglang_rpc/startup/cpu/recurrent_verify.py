"""PyTorch for what SGLang calls on a CPU where a model with gated delta nets verifies drafts.

A step has n rows of each request: the newest token, and its drafts. Each row goes on from the state before it, and no
state of a slot changes. Instead the state after each row is kept, by the request's place in the step. Once rows are
accepted, that of the last one becomes the request's state.

SGLang's CPU operator of a convolution takes no drafts, and what moves the state is a Triton kernel. `replace` sets
functions of the same arguments there.

Shapes: as in `recurrent_ops`. States after each row are [requests, n, ...], of all layers [layers, requests, n, ...].
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def replace() -> None:
    """Set the functions below where SGLang calls what a CPU lacks.

    Raises AttributeError if SGLang has one of them elsewhere.
    """
    from sglang.srt.layers.attention import hybrid_linear_attn_backend
    from sglang.srt.layers.attention.linear import gdn_backend

    gdn_backend.causal_conv1d_update = partial(convolve, gdn_backend.causal_conv1d_update)
    _ = hybrid_linear_attn_backend.scatter_mamba_states_after_mtp_verify
    hybrid_linear_attn_backend.scatter_mamba_states_after_mtp_verify = accept_states


def convolve(
    of_one_token: Callable[..., Tensor],
    x: Tensor,
    conv_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    conv_state_indices: Tensor,
    intermediate_conv_window: Tensor | None = None,
    intermediate_state_indices: Tensor | None = None,
    retrieve_next_token: Tensor | None = None,
    retrieve_next_sibling: Tensor | None = None,
    retrieve_parent_token: Tensor | None = None,
) -> Tensor:
    """Convolve `x` [requests, channels, n], each row after the inputs of those that it follows. Returns the same shape.

    Sets `intermediate_conv_window` [places, n, channels, W - 1] to the last inputs after each row, and
    `retrieve_parent_token` [requests, n] to the row that each row follows. Without a window, `of_one_token` is called.

    Args:
        intermediate_state_indices: [requests] the place of each request.
        retrieve_next_token, retrieve_next_sibling: links to first child and next sibling, where drafts branch.
    """
    if intermediate_conv_window is None or intermediate_state_indices is None:
        return of_one_token(x, conv_states, weight, bias, activation, conv_state_indices=conv_state_indices)
    requests, _, n = x.shape
    parents = parents_of(retrieve_next_token, retrieve_next_sibling, requests, n)
    if retrieve_parent_token is not None:
        retrieve_parent_token.copy_(parents)
    weight = weight.view(len(weight), -1).to(x.dtype)
    places, before = intermediate_state_indices.long(), conv_states[conv_state_indices.long()]
    every, out = torch.arange(requests), torch.empty_like(x)
    for row in range(n):
        held = before if row == 0 else intermediate_conv_window[places, parents[:, row]]
        inputs = torch.cat([held.to(x.dtype), x[every, :, row, None]], -1)
        intermediate_conv_window[places, row] = inputs[..., 1:].to(intermediate_conv_window.dtype)
        y = (inputs * weight).sum(-1)
        y = y if bias is None else y + bias
        out[..., row] = F.silu(y) if activation == "silu" else y
    return out


def parents_of(children: Tensor | None, siblings: Tensor | None, requests: int, n: int) -> Tensor:
    """Which row each row follows, [requests, n]: the one before it, unless links [requests, n] to first child and next
    sibling, -1 for none, tell of branches. Of the first row, and of those that nothing links to, 0."""
    if children is None or siblings is None:
        return torch.arange(-1, n - 1).clamp(min=0).expand(requests, n)
    parents = torch.zeros(requests, n, dtype=torch.int64)
    for request, (firsts, nexts) in enumerate(zip(children.tolist(), siblings.tolist(), strict=True)):
        for parent, child in enumerate(firsts):
            while child != -1:
                parents[request, child] = parent
                child = nexts[child]
    return parents


def delta_of_rows(
    step: Callable[..., tuple[Tensor, Tensor]],
    rows: tuple[Tensor, ...],
    before: Tensor,
    after: Tensor,
    places: Tensor,
    parents: Tensor | None,
) -> Tensor:
    """A gated delta rule over n rows of each request. Returns [requests, n, HV, V].

    Sets `after` [places, n, HV, V, K] to the state after each row.

    Args:
        step: output and new state of one row of each request, of the `rows` and the state before.
        rows: what `step` reads, [requests, n, ...] each.
        before: [requests, HV, V, K].
        parents: [requests, n], as of `parents_of`; None without branches.
    """
    requests, n = rows[0].shape[:2]
    if parents is None:
        parents = parents_of(None, None, requests, n)
    out = []
    for row in range(n):
        state = before if row == 0 else after[places, parents[:, row].long()]
        read, state = step(*(each[:, row] for each in rows), state.float())
        after[places, row] = state.to(after.dtype)
        out.append(read)
    return torch.stack(out, 1)


def accept_states(
    mamba_caches: Any,
    slots: Tensor,
    rows: Tensor,
    mamba_track_indices: Tensor | None,
    mamba_steps_to_track: Tensor | None,
    src_indices_raw: Tensor | None = None,
) -> None:
    """Give each slot the state after the last row that its request accepted, `rows` [requests].

    The states that SGLang tracks for the tree go to `mamba_track_indices`, of rows `mamba_steps_to_track`; -1: of none.
    """
    places = torch.arange(len(rows)) if src_indices_raw is None else src_indices_raw.long()
    kept = zip(mamba_caches.conv, mamba_caches.intermediate_conv_window, strict=True)
    for states, after in [(mamba_caches.temporal, mamba_caches.intermediate_ssm), *kept]:
        states[:, slots.long()] = after[:, places, rows.long()].to(states.dtype)
        if mamba_track_indices is not None and mamba_steps_to_track is not None:
            tracked = (mamba_steps_to_track >= 0) & (mamba_track_indices >= 0)
            of = mamba_steps_to_track[tracked].long()
            states[:, mamba_track_indices[tracked].long()] = after[:, places[tracked], of].to(states.dtype)
