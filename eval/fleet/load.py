"""What is offered to a fleet: requests with their lengths, shared prompts and times of arrival."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """One request of one sample. Lengths are tokens."""

    number: int  #: in the order of sending, from 0
    arrives: float  #: seconds after the start; of a closed loop 0, as a client sends it when it is free
    prompt: int
    output: int  #: at least 1, all of them generated
    limit: int | None = None  #: its max_new_tokens, where the server does not know its length; None: it does
    shared: int = 0  #: prompt tokens that all jobs of its group begin with
    group: int = 0


@dataclass(frozen=True)
class Load:
    """What is drawn. Exactly one of `rate` and `clients` is given. Raises ValueError."""

    jobs: int
    prompt: int  #: tokens of each prompt
    output: float  #: tokens generated, mean before `longest` cuts
    spread: float = 0.0  #: standard deviation of the output lengths over their mean (log-normal); 0: all are equal
    longest: int = 32768  #: no output is longer
    limit: int | None = None  #: max_new_tokens of lengths that the server does not know, or a longer output's own
    rate: float | None = None  #: jobs per second of a Poisson process; inf: all at once
    clients: int | None = None  #: of a closed loop
    shared: int = 0  #: tokens that the prompts of a group have in common
    groups: int = 1

    def __post_init__(self) -> None:
        least = {"jobs": 1, "prompt": 1, "output": 1, "spread": 0, "longest": 1, "shared": 0, "groups": 1}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if (self.rate is None) == (self.clients is None):
            raise ValueError("a load has a rate or a number of clients, not both and not neither")
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"rate must be above 0, got {self.rate:g}")
        if self.clients is not None and self.clients < 1:
            raise ValueError(f"clients must be at least 1, got {self.clients}")
        if self.shared >= self.prompt:
            raise ValueError(f"shared must be below the prompt's {self.prompt} tokens, got {self.shared}")

    def draw(self, seed: int) -> list[Job]:
        """The jobs in the order of sending; the same for the same seed."""
        # Draws of their own, so that another rate leaves the lengths as they are.
        lengths, times, groups = (random.Random(f"{seed}/{name}") for name in ("lengths", "arrivals", "groups"))
        made, now = [], 0.0
        for number in range(self.jobs):
            output = min(self.longest, max(1, round(self._length(lengths))))
            group = groups.randrange(self.groups)
            limit = None if self.limit is None else max(self.limit, output)
            made.append(Job(number, now, self.prompt, output, limit, self.shared, group))
            now += 0.0 if self.rate is None or math.isinf(self.rate) else times.expovariate(self.rate)
        return made

    def _length(self, draw: random.Random) -> float:
        """Log-normal with this mean and spread."""
        if self.spread == 0:
            return self.output
        sigma2 = math.log(1 + self.spread**2)
        return draw.lognormvariate(math.log(self.output) - sigma2 / 2, math.sqrt(sigma2))
