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
        #: Tokens by which the device may be ahead of what the host knows of a row, while a result is in flight.
        self.lag = 0
        self.evicted = torch.zeros(rows, dtype=torch.int64, device=device)
        self.stop = torch.full((rows,), NEVER, dtype=torch.int64, device=device)  #: physical length, prompt included
        self.stops: dict[int, int] = {}  #: those of the rows that have one
        self._was_cut = torch.zeros(rows, dtype=torch.bool, device=device)  # whether the row's last step was
        self._was_cut_seen = torch.zeros(rows, dtype=torch.bool, pin_memory=True) if self.stop.is_cuda else None

    def schedule_ahead(self) -> None:
        """Steps are planned while the last one runs."""
        self.lag = self.drafts

    @property
    def stride(self) -> int:
        """The most tokens that a row may be longer, when the host looks at it next, than when it looked last; while a
        result is in flight, than it takes it to be."""
        return self.drafts + self.lag

    def stop_at(self, row: int, length: int) -> None:
        """Let no step of `row` run past the physical `length`; NEVER: let it run."""
        self.stop[row].fill_(length)  # a kernel, no copy: the host does not wait
        if length < NEVER:
            self.stops[row] = length
        else:
            self.stops.pop(row, None)

    def evict(self, row: int, entries: int) -> None:
        """Note that `row` lacks so many entries in all."""
        self.evicted[row].fill_(entries)

    def release(self, row: int) -> None:
        """Forget `row`, which its request gives back."""
        self.stop_at(row, NEVER)
        self.evict(row, 0)

    def was_cut(self, row: int, length: int) -> bool:
        """Whether the step that ended at the stop of `row`, which is `length`, was cut there. Its result is known."""
        seen = self._was_cut if self._was_cut_seen is None else self._was_cut_seen
        return self.stops.get(row) == length and bool(seen[row])

    def lacking(self, rows: torch.Tensor, each: int) -> torch.Tensor:
        """What `each` token of every row lacks: int64 [rows * each], row after row. For CUDA graphs, too."""
        return self.evicted[rows][:, None].expand(-1, each).reshape(-1)

    def cut(
        self, rows: torch.Tensor, lengths: torch.Tensor, accept_lens: torch.Tensor, accept_index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`accept_lens` and `accept_index` of a step, cut where a row would run past its stop. Notes which were.

        Args:
            lengths: physical, before the step's tokens: below the stop of each row.
            accept_lens: [rows], tokens accepted, the model's own among them.
            accept_index: [rows, depth], where these stand in the step; -1 after the last.
        """
        left = self.stop[rows] - lengths
        self._was_cut.index_put_((rows.long(),), accept_lens > left)
        if self._was_cut_seen is not None and self.stops:
            # On the forward's stream, before the step's result is copied: who knows the one has the other.
            self._was_cut_seen.copy_(self._was_cut, non_blocking=True)
        kept = torch.minimum(accept_lens, left.clamp(1, accept_index.shape[1]).to(accept_lens.dtype))
        depth = torch.arange(accept_index.shape[1], device=accept_index.device)
        return kept, torch.where(depth < kept[:, None], accept_index, -1)
