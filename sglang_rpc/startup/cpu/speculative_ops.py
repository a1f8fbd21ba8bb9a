"""PyTorch for the operators of sgl_kernel's CPU build that SGLang 0.5.23 calls while it speculates.

All of them are a reference: one request after the other. n is the number of rows that a request verifies: the root, the
newest token, and its drafts. Drafts form a tree; node 0 is the root. Row positions are physical.
"""

import ctypes

import torch
from torch import Tensor

#: SGLang's TreeMaskMode.QLEN_ONLY: [requests, n, n], which rows of its own request a row sees.
QLEN_ONLY = 1


def assign_draft_cache_locs_contiguous_cpu(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    seq_lens: Tensor,
    out_cache_loc: Tensor,
    pool_len: int,
    topk: int,
    num_steps: int,
) -> None:
    """Set `out_cache_loc` [requests * topk * num_steps] to the slots of each row from `seq_lens` on."""
    positions = seq_lens.long()[:, None] + torch.arange(topk * num_steps)
    out_cache_loc.copy_(req_to_token[req_pool_indices.long()[:, None], positions].flatten())


def assign_extend_cache_locs_cpu(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    out_cache_loc: Tensor,
    pool_len: int,
) -> None:
    """Set `out_cache_loc` to the slots of row positions `[start, end)`, request after request."""
    counts = (end_offset - start_offset).long()
    first = counts.cumsum(0) - counts
    rows = req_pool_indices.long().repeat_interleave(counts)
    positions = torch.arange(rows.numel()) + (start_offset.long() - first).repeat_interleave(counts)
    out_cache_loc[: rows.numel()] = req_to_token[rows, positions].to(out_cache_loc.dtype)


def fill_accept_out_cache_loc_cpu(accept_index: Tensor, out_cache_loc: Tensor, accept_out_cache_loc: Tensor) -> None:
    """Set the front of `accept_out_cache_loc` to the slots of accepted nodes; those not accepted are -1."""
    accepted = accept_index[accept_index >= 0].long()
    accept_out_cache_loc[: accepted.numel()] = out_cache_loc[accepted]


def fill_bonus_tokens_cpu(accept_tokens: Tensor, accept_lens: Tensor, bonus_tokens: Tensor, accept_stride: int) -> None:
    """Set `bonus_tokens` [requests] to the last accepted token of each."""
    last = torch.arange(accept_lens.numel()) * accept_stride + accept_lens.long() - 1
    bonus_tokens.copy_(accept_tokens.flatten()[last])


def build_tree_kernel_efficient_cpu(
    parent_list: Tensor,
    selected_index: Tensor,
    verified_seq_len: Tensor,
    tree_mask: Tensor,
    positions: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    topk: int,
    depth: int,
    draft_token_num: int,
    tree_mask_mode: int,
) -> None:
    """Link each request's nodes by parent, and say which rows see which.

    Sets `tree_mask` [requests * n * n], `positions` [requests * n], `retrive_index` (a node's row of the step) and
    the links to first child and next sibling, -1 for none, [requests, n] each.

    Args:
        selected_index: [requests, n - 1]: number of each draft among all that were proposed, step by step; its parent
            is the `number // topk`-th of `parent_list` [requests, ...], the root for the first `topk`. The parent may
            not be among them: the likeliest are selected, and where a draft is certain its parent is no likelier.

    Raises ValueError for another kind of mask than QLEN_ONLY.
    """
    n = draft_token_num
    if int(tree_mask_mode) != QLEN_ONLY:
        raise ValueError(f"a tree mask on a CPU must be of mode QLEN_ONLY ({QLEN_ONLY}), got {int(tree_mask_mode)}")
    retrive_index.copy_(torch.arange(retrive_index.numel()).view_as(retrive_index))
    masks = tree_mask[: verified_seq_len.numel() * n * n].view(-1, n, n)
    for request, length in enumerate(verified_seq_len.tolist()):
        selected, parents = selected_index[request].tolist(), parent_list[request].tolist()
        parent_of = [-1] * n
        for node in range(n - 1, 0, -1):  # so that the first child is the likeliest
            group = selected[node - 1] // topk
            if group and parents[group] not in selected:
                parent_of[node] = 0  # and without a link, so no path leads there
                continue
            parent = 0 if group == 0 else selected.index(parents[group]) + 1
            parent_of[node] = parent
            retrive_next_sibling[request, node] = retrive_next_token[request, parent]
            retrive_next_token[request, parent] = node
        masks[request] = False
        for node in range(n):
            ancestors = [node]
            while parent_of[ancestors[-1]] >= 0:
                ancestors.append(parent_of[ancestors[-1]])
            masks[request, node, ancestors] = True
            positions[request * n + node] = length + len(ancestors) - 1


def verify_tree_greedy_cpu(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    target_predict: Tensor,
) -> None:
    """Walk each tree from its root to drafts that are what the model itself chooses, as far as there are any.

    Sets `accept_index` [requests, depth] to the rows of the path, `accept_token_num` to its drafts, and `predicts` at
    each row of the path to the token that follows.
    """
    chosen, rows = target_predict.flatten().tolist(), retrive_index.tolist()
    drafts, children, siblings = candidates.tolist(), retrive_next_token.tolist(), retrive_next_sibling.tolist()
    for request in range(len(rows)):
        node, path = 0, [rows[request][0]]
        while len(path) < accept_index.shape[1]:
            node = children[request][node]
            while node != -1 and drafts[request][node] != chosen[path[-1]]:
                node = siblings[request][node]
            if node == -1:
                break
            path.append(rows[request][node])
        accept_index[request, : len(path)] = torch.tensor(path, dtype=accept_index.dtype)
        accept_token_num[request] = len(path) - 1
        for row in path:
            predicts[row] = chosen[row]


def reconstruct_indices_from_tree_mask_cpu(
    tree_mask: Tensor,
    verified_seq_len: Tensor,
    positions: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    batch_size: int,
    draft_token_num: int,
) -> None:
    """Of trees that are given by which rows see which, `tree_mask` [requests * n * n], set `positions` [requests * n],
    `retrive_index` and the links to first child and next sibling, -1 for none, [requests, n] each.

    A row sees itself and its ancestors, which stand before it. One without ancestors, after the root, is padding.
    """
    n = draft_token_num
    retrive_index.copy_(torch.arange(batch_size * n).view(batch_size, n))
    retrive_next_token.fill_(-1)
    retrive_next_sibling.fill_(-1)
    masks = tree_mask.view(-1, n, n)[:batch_size].bool()
    depths = masks.tril(-1).sum(-1)
    positions.copy_((verified_seq_len[:, None] + depths).flatten())
    for request, mask in enumerate(masks):
        for node in range(n - 1, 0, -1):  # so that the first child is the earliest
            ancestors = mask[node, :node].nonzero().flatten()
            if ancestors.numel() == 0:
                continue
            parent = int(ancestors[-1])
            retrive_next_sibling[request, node] = retrive_next_token[request, parent]
            retrive_next_token[request, parent] = node


def copy_all_layer_kv_cache_cpu(data_ptrs: Tensor, strides: Tensor, tgt_loc: Tensor, src_loc: Tensor) -> None:
    """Copy slots `src_loc` of each buffer to `tgt_loc`, all read before any is written.

    Args:
        data_ptrs, strides: address of each buffer, and bytes of one of its slots.
    """
    for address, stride in zip(data_ptrs.tolist(), strides.tolist(), strict=True):
        entries = [ctypes.string_at(address + slot * stride, stride) for slot in src_loc.tolist()]
        for slot, entry in zip(tgt_loc.tolist(), entries, strict=True):
            ctypes.memmove(address + slot * stride, entry, stride)


OPERATORS = (
    assign_draft_cache_locs_contiguous_cpu,
    assign_extend_cache_locs_cpu,
    build_tree_kernel_efficient_cpu,
    copy_all_layer_kv_cache_cpu,
    fill_accept_out_cache_loc_cpu,
    fill_bonus_tokens_cpu,
    reconstruct_indices_from_tree_mask_cpu,
    verify_tree_greedy_cpu,
)
