"""What a speculative step must know of each row on the device, where its length advances.

    logical position = physical position + evicted[row]
    accepted tokens  = min(accepted, stop[row] - length)        so that no step crosses a due date

A compression is defined at a number of entries: a step that ran past it would leave tokens that have seen what
was to be evicted. A prefix of an accepted path is one itself, so what is cut off is drafted again.
"""

import torch

from sglang_rpc.types import NEVER


class SpeculativeRows:
    """Tables by row, int64 [rows] each. Row 0 is no request's, and nothing is ever set there."""

    def __init__(self, rows: int, drafts: int, device: torch.device | str):
        """`drafts`: n, the rows that a request verifies in a step, its newest token among them."""
        self.drafts = drafts
        self.evicted = torch.zeros(rows, dtype=torch.int64, device=device)
        self.stop = torch.full((rows,), NEVER, dtype=torch.int64, device=device)  #: physical length, prompt included
        self.cuts = torch.zeros(rows, dtype=torch.int64, device=device)  #: steps whose accepted tokens were cut

    def stop_at(self, row: int, length: int) -> None:
        """Let no step of `row` run past the physical `length`; NEVER: let it run."""
        self.stop[row].fill_(length)  # a kernel, no copy: the host does not wait

    def evict(self, row: int, entries: int) -> None:
        """Note that `row` lacks so many entries in all."""
        self.evicted[row].fill_(entries)

    def release(self, row: int) -> int:
        """Forget `row`, which its request gives back; how many of its steps were cut. Waits for the device."""
        cuts = int(self.cuts[row])
        for table, value in ((self.evicted, 0), (self.stop, NEVER), (self.cuts, 0)):
            table[row].fill_(value)
        return cuts

    def lacking(self, rows: torch.Tensor, each: int) -> torch.Tensor:
        """What `each` token of every row lacks: int64 [rows * each], row after row. For CUDA graphs, too."""
        return self.evicted[rows][:, None].expand(-1, each).reshape(-1)

    def cut(
        self, rows: torch.Tensor, lengths: torch.Tensor, accept_lens: torch.Tensor, accept_index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`accept_lens` and `accept_index` of a step, cut where a row would run past its stop. Counts the cuts.

        Args:
            lengths: physical, before the step's tokens: below the stop of each row.
            accept_lens: [rows], tokens accepted, the model's own among them.
            accept_index: [rows, depth], where these stand in the step; -1 after the last.
        """
        left = self.stop[rows] - lengths
        self.cuts.index_add_(0, rows.long(), (accept_lens > left).to(self.cuts.dtype))
        kept = torch.minimum(accept_lens, left.clamp(max=accept_index.shape[1]).to(accept_lens.dtype))
        depth = torch.arange(accept_index.shape[1], device=accept_index.device)
        return kept, torch.where(depth < kept[:, None], accept_index, -1)
