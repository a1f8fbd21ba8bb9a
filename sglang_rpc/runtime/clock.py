"""Lengths and dates of one request's row: the one place that converts between logical and physical lengths."""

from dataclasses import dataclass

from sglang_rpc.types import NEVER


@dataclass
class Clock:
    """Compressions that a row has been through, and when to poll its request again.

    Only its own methods change it. `prompt` in them is the prompt's length in tokens: SGLang may still truncate a
    prompt after the request has its state.
    """

    events: int = 0  #: n: compressions whose budget has been applied; under lightthinker, thoughts evicted
    evicted: int = 0  #: entries missing from the row: logical minus physical length
    check_at: int = 0  #: physical length of the row, prompt included, at which to poll again
    compressed_at: int = 0  #: logical length of the generated region at the last compression; 0 before the first

    def generated(self, physical: int, prompt: int) -> int:
        """Convert a row's physical length to the logical length of its generated region."""
        return physical - prompt + self.evicted

    def physical(self, generated: int, prompt: int) -> int:
        """Convert a logical length of the generated region to the row's physical length, prompt included."""
        return prompt + generated - self.evicted

    def check_again(self, generated: int, prompt: int) -> None:
        """Poll again at `generated` logical entries; NEVER puts the row to sleep."""
        self.check_at = NEVER if generated >= NEVER else self.physical(generated, prompt)

    def check_by(self, generated: int, prompt: int) -> None:
        """Poll again at `generated` logical entries at the latest."""
        self.check_at = min(self.check_at, self.physical(generated, prompt))

    def check_now(self) -> None:
        """Poll again in the next scheduling step."""
        self.check_at = 0

    def pass_dates(self, events: int) -> None:
        """Count due dates up to the `events`-th as done."""
        self.events = events

    def evict(self, entries: int, generated: int) -> None:
        """The row has lost `entries`, at `generated` logical entries after the prompt."""
        self.evicted += entries
        self.compressed_at = generated

    def reset(self) -> None:
        """The row is gone, and will be rebuilt from its tokens: nothing is evicted."""
        self.events = self.evicted = self.check_at = self.compressed_at = 0
