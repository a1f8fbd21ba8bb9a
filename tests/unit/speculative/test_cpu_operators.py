"""What stands in for sgl_kernel's operators of speculative decoding, against trees written out."""

import pytest
import torch

from sglang_rpc.startup.cpu import speculative_ops as ops


def links(n: int, requests: int = 1):
    shape = (requests, n)
    return torch.full(shape, -1), torch.full(shape, -1), torch.full(shape, -1)


def build(selected, parents, lengths, topk, n):
    requests = len(lengths)
    mask, positions = torch.ones(requests * n * n, dtype=torch.bool), torch.zeros(requests * n, dtype=torch.int64)
    index, child, sibling = links(n, requests)
    ops.build_tree_kernel_efficient_cpu(
        torch.tensor(parents), torch.tensor(selected), torch.tensor(lengths), mask, positions, index, child, sibling,
        topk, n, n, ops.QLEN_ONLY,
    )  # fmt: skip
    return mask.view(requests, n, n), positions, index, child, sibling


def test_a_chain_sees_what_comes_before():
    mask, positions, index, child, sibling = build([[0, 1, 2]] * 2, [[-1, 0, 1]] * 2, [7, 3], topk=1, n=4)
    assert torch.equal(mask, torch.ones(2, 4, 4, dtype=torch.bool).tril())
    assert positions.tolist() == [7, 8, 9, 10, 3, 4, 5, 6]
    assert index.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert child.tolist() == [[1, 2, 3, -1]] * 2
    assert sibling.tolist() == [[-1] * 4] * 2


def test_branches_see_their_own_ancestors():
    """The root has drafts 0 and 1; draft 0 has 2, the first of the second step's, and draft 1 has 4."""
    mask, positions, _, child, sibling = build([[0, 1, 2, 4]], [[-1, 0, 1]], [10], topk=2, n=5)
    seen = [[i for i in range(5) if mask[0, node, i]] for node in range(5)]
    assert seen == [[0], [0, 1], [0, 2], [0, 1, 3], [0, 2, 4]]
    assert positions.tolist() == [10, 11, 11, 12, 12]
    assert child.tolist() == [[1, 3, 4, -1, -1]]
    assert sibling.tolist() == [[-1, 2, -1, -1, -1]]


def test_no_path_leads_to_a_draft_whose_parent_was_left_out():
    """Draft 4 is certain after draft 1, so both are equally likely, and only one of them was selected."""
    mask, positions, _, child, sibling = build([[0, 2, 4]], [[-1, 0, 1]], [10], topk=2, n=4)
    seen = [[i for i in range(4) if mask[0, node, i]] for node in range(4)]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 3]]
    assert positions.tolist() == [10, 11, 12, 11]
    assert child.tolist() == [[1, 2, -1, -1]]
    assert sibling.tolist() == [[-1] * 4]


def test_another_mask_is_refused():
    with pytest.raises(ValueError, match="must be of mode QLEN_ONLY"):
        ops.build_tree_kernel_efficient_cpu(*[torch.zeros(1)] * 8, 1, 1, 1, 0)


@pytest.mark.parametrize(
    ("chosen", "path"),
    [
        ([5, 6, 7, 8, 9], [0, 1, 3]),  # the first branch to its end
        ([6, 0, 8, 0, 0], [0, 2, 4]),  # the other
        ([6, 0, 9, 0, 0], [0, 2]),  # its second draft is wrong
        ([4, 0, 0, 0, 0], [0]),
    ],
)
def test_a_verify_walks_as_far_as_the_model_agrees(chosen, path):
    _, _, index, child, sibling = build([[0, 1, 2, 4]], [[-1, 0, 1]], [10], topk=2, n=5)
    predicts, accepted = torch.zeros(5, dtype=torch.int32), torch.full((1, 3), -1, dtype=torch.int32)
    count = torch.zeros(1, dtype=torch.int32)
    candidates = torch.tensor([[3, 5, 6, 6, 8]])  # the newest token, its two drafts, and theirs
    ops.verify_tree_greedy_cpu(predicts, accepted, count, candidates, index, child, sibling, torch.tensor([chosen]))
    assert accepted.tolist() == [[*path, *[-1] * (3 - len(path))]]
    assert count.tolist() == [len(path) - 1]
    assert [int(predicts[row]) for row in path] == [chosen[row] for row in path]


def test_a_tree_is_read_from_who_sees_whom():
    """As `build` gives it: masks, depths and links say the same. The last row of the second is padding."""
    mask, positions, index, child, sibling = build([[0, 1, 2, 4]] * 2, [[-1, 0, 1]] * 2, [10, 3], topk=2, n=5)
    mask[1, 4] = torch.tensor([False] * 4 + [True])
    found = torch.zeros(10, dtype=torch.int64), *links(5, 2)
    ops.reconstruct_indices_from_tree_mask_cpu(mask.flatten(), torch.tensor([10, 3]), *found, 2, 5)
    assert found[0].tolist() == [*positions[:9].tolist(), 3]
    assert torch.equal(found[1], index)
    assert found[2].tolist() == [child[0].tolist(), [1, 3, -1, -1, -1]]
    assert torch.equal(found[3], sibling)


def test_slots_of_rows_are_found_and_tokens_picked():
    table = torch.arange(40, dtype=torch.int32).view(4, 10)
    rows, lengths = torch.tensor([3, 1]), torch.tensor([2, 5])
    out = torch.zeros(6, dtype=torch.int64)
    ops.assign_draft_cache_locs_contiguous_cpu(rows, table, lengths, out, 10, 1, 3)
    assert out.tolist() == [32, 33, 34, 15, 16, 17]
    ops.assign_extend_cache_locs_cpu(rows, table, lengths, lengths + torch.tensor([4, 2]), out, 10)
    assert out.tolist() == [32, 33, 34, 35, 15, 16]
    kept = torch.zeros(3, dtype=torch.int64)
    ops.fill_accept_out_cache_loc_cpu(torch.tensor([[0, 2, -1], [4, -1, -1]]), out, kept)
    assert kept.tolist() == [32, 34, 15]
    bonus = torch.zeros(2, dtype=torch.int32)
    ops.fill_bonus_tokens_cpu(torch.arange(8), torch.tensor([3, 1]), bonus, 4)
    assert bonus.tolist() == [2, 4]


def test_entries_are_copied_where_source_and_target_overlap():
    buffers = [torch.randn(6, 2, 3), torch.randn(6, 5)]
    before = [buffer.clone() for buffer in buffers]
    pointers = torch.tensor([buffer.data_ptr() for buffer in buffers])
    strides = torch.tensor([buffer[0].nbytes for buffer in buffers])
    ops.copy_all_layer_kv_cache_cpu(pointers, strides, torch.tensor([1, 2, 3]), torch.tensor([2, 3, 5]))
    for buffer, old in zip(buffers, before, strict=True):
        assert torch.equal(buffer, old[[0, 2, 3, 5, 4, 5]])
