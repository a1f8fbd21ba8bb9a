"""One request on its replica: how far it is, and what it holds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from eval.fleet.load import Job

NEVER = math.inf


@dataclass
class Request:
    """A job on its replica, written by the replica alone. Times are seconds, the others KV entries or tokens."""

    job: Job
    sent: float
    first: float = NEVER  #: when its first token came
    ended: float = NEVER
    output: int = 0  #: tokens so far
    generated: int = 0  #: logical entries after the prompt
    evicted: int = 0
    compressions: int = 0
    own: int = 0  #: prompt entries that are not its group's
    cached: int = 0  #: prompt tokens found in the prefix cache when it was first admitted
    retractions: int = 0

    @property
    def held(self) -> int:
        """Generated entries held."""
        return self.generated - self.evicted

    @property
    def attended(self) -> int:
        """Entries that its next token attends to."""
        return self.job.prompt + self.held
