"""What is found out at most once per scheduling step."""

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class PerStep(Generic[K, V]):
    """A dictionary that is empty again in each step."""

    def __init__(self) -> None:
        self._step = -1
        self._known: dict[K, V] = {}

    def known(self, step: int) -> dict[K, V]:
        """What has been found out in this step, for the caller to add to."""
        if step != self._step:
            self._step, self._known = step, {}
        return self._known
