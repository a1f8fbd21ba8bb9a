"""One replica at work: requests are admitted, decoded step by step, compressed, retracted and ended.

Between two events every running request gains one token per step, so a stretch of steps is one piece of arithmetic. A
stretch ends where a request ends or is compressed, where the pool is full, or where a request has come that may be
admitted.

    pool >= sum over running of (its own prompt + held) + prefixes in use + idle prefixes         at every moment
"""

from __future__ import annotations

from collections import deque

from eval.fleet.load import Job
from eval.fleet.prefixes import PrefixCache
from eval.fleet.request import NEVER, Request
from eval.fleet.server import SHARE, Server, decayed, share_after_retraction
from sglang_rpc.runtime.admission import Forecast, Plan


class Replica:
    """`until` is when its present stretch ends, infinity while it is idle; then `boundary` must be called."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.until = NEVER
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.ended: list[Request] = []
        self.cache = PrefixCache()
        self.own = 0  #: entries of running requests that no other shares
        self.compressions = self.early = 0
        self.share = SHARE  #: of what running requests of unknown length may still generate, as admission reserves it
        self.peak = self.peak_running = 0
        self.entry_seconds = self.running_seconds = 0.0  #: KV entries in use, and running requests, times seconds
        self._began = 0.0  #: of the stretch
        self._steps = 0  #: decode steps of the stretch; 0: it is a prefill, or there is none

    @property
    def used(self) -> int:
        """Entries in use at the stretch's beginning; idle prefixes do not count."""
        return self.own + self.cache.used

    def requests(self) -> int:
        """Requests that it has, running or waiting."""
        return len(self.running) + len(self.waiting)

    def entries(self, now: float) -> int:
        """Entries in use now, and those that waiting prompts will take."""
        waiting = sum(request.job.prompt for request in self.waiting)
        return self.used + len(self.running) * self._steps_by(now) + waiting

    def arrive(self, job: Job, now: float) -> None:
        """Queue it. It is looked at after the step that runs now, unless others wait already."""
        self.waiting.append(Request(job, now))
        if self.until == NEVER:
            self.until = now
        elif self._steps and len(self.waiting) == 1:
            self._steps = max(1, self._steps_by(now))
            self.until = max(now, self._began + self._decode_seconds(self._steps))

    def boundary(self, now: float) -> int:
        """End the stretch and begin the next; how many requests have ended."""
        ended = self._apply(now)
        compressed = self._compress()
        computed, admitted = self._admit()
        if not admitted:
            compressed += self._evict_early()
            self._retract()
        begin = now + compressed * self.server.step.compression
        self.peak, self.peak_running = max(self.peak, self.used), max(self.peak_running, len(self.running))
        self._account(now, begin, self.used)
        self._began, self._steps = begin, 0
        if admitted:
            self.until = begin + self.server.step.prefill + computed * self.server.step.token
            self._account(begin, self.until, self.used)
        elif self.running:
            self._steps = self._longest_stretch()
            self.until = begin + self._decode_seconds(self._steps)
        else:
            self.until, self.share = NEVER, SHARE
        return ended

    def _apply(self, now: float) -> int:
        """Do what the stretch that ends now has done; how many requests leave with all their tokens."""
        if self._steps:
            self.share = decayed(self.share, self._steps)
            grown = len(self.running) * self._steps
            self._make_room(grown)
            self._account(self._began, now, self.used + len(self.running) * (self._steps + 1) / 2)
            self.own += grown
            self.peak = max(self.peak, self.used)
        staying = []
        for request in self.running:
            request.generated += self._steps
            if request.first == NEVER:
                request.first = now
            request.output = request.generated + 1
            if request.output >= request.job.output:
                request.ended = now
                self.ended.append(request)
                self._release(request)
            else:
                staying.append(request)
        ended, self.running = len(self.running) - len(staying), staying
        return ended

    def _compress(self) -> int:
        """Compress what is due; how many were."""
        budget, done = self.server.budget, 0
        for request in self.running if budget else ():
            assert budget is not None
            if request.generated >= budget.next_due(request.compressions):
                self._evict(request, request.held - self.server.kept(request.generated, request.held))
                request.compressions = budget.compressions_due(request.generated)
                done += 1
        self.compressions += done
        return done

    def _evict_early(self) -> int:
        """Compress before their due dates, those that free most first, until all can take one more step; how many."""
        short, done = len(self.running) - (self.server.pool - self.used), 0
        if short <= 0:
            return 0
        gains = [(self.server.early_gain(r.generated, r.held, r.compressions), r) for r in self.running]
        for gain, request in sorted(gains, key=lambda each: each[0], reverse=True):
            if short <= 0 or not gain:
                break
            self._evict(request, gain)
            short -= gain
            done += 1
        self.early += done
        return done

    def _evict(self, request: Request, entries: int) -> None:
        request.evicted += entries
        self.own -= entries

    def _admit(self) -> tuple[int, int]:
        """Move waiting requests to the running ones, first come first served; tokens to prefill, and requests moved."""
        computed = admitted = 0
        if not self.waiting:
            return 0, 0
        forecast = Forecast([self._plan(r, r.generated, self.share) for r in self.running], page=1)
        while self.waiting and len(self.running) < self.server.max_running:
            request = self.waiting[0]
            cached = request.job.shared if self.cache.holds(request.job.group) else 0
            plan = self._plan(request, request.output, 1.0)
            taken = request.job.prompt - cached + plan.held
            room = self.server.pool - self.used - (self.cache.idle_of(request.job.group) if cached else 0)
            # SGLang books one more slot for each that it lets in, and never gives the last.
            if taken + forecast.peak_with(plan) + admitted + 1 >= room:
                break
            forecast.add(plan)
            # RPC brings a retracted request's entries back from host memory, and has its newest token computed.
            restored = self.server.budget is not None and request.retractions > 0
            computed += request.job.prompt - cached + (1 if restored else request.output)
            admitted += 1
            self._start(self.waiting.popleft(), cached)
        return computed, admitted

    def _start(self, request: Request, cached: int) -> None:
        job = request.job
        if job.shared:
            self.cache.use(job.group, job.shared)
        if not request.retractions:
            request.cached = cached
        request.own = job.prompt - job.shared
        request.generated = request.output
        self.own += request.own + request.held
        self._make_room(0)
        self.running.append(request)

    def _retract(self) -> None:
        """Take requests back, the one with the least output first, until the others can take one more step."""
        retracted = False
        while len(self.running) > max(1, self.server.pool - self.used):
            request = min(self.running, key=lambda r: (r.output, -r.job.prompt))
            self.running.remove(request)
            self._release(request)
            request.retractions += 1
            self.waiting.append(request)
            retracted = True
        if retracted:
            limits = [request.job.limit or request.job.output for request in self.running]
            self.share = share_after_retraction([request.output for request in self.running], limits)

    def _release(self, request: Request) -> None:
        self.own -= request.own + request.held
        if request.job.shared:
            self.cache.leave(request.job.group)

    def _make_room(self, entries: int) -> None:
        """Idle prefixes go where `entries` more are needed. Raises RuntimeError if that is not enough."""
        self.cache.evict(self.used + self.cache.idle + entries - self.server.pool)
        if self.used + self.cache.idle + entries > self.server.pool:
            raise RuntimeError(f"{self.used} entries in use and {entries} more, in a pool of {self.server.pool}")

    def _longest_stretch(self) -> int:
        """Decode steps until a request ends or is compressed, or the pool is full."""
        steps = [(self.server.pool - self.used) // len(self.running)]
        for request in self.running:
            steps.append(request.job.output - request.output)
            due = self.server.due(request.generated, request.compressions)
            if due is not None:
                steps.append(due)
        return min(steps)

    def _plan(self, request: Request, generated: int, share: float) -> Plan:
        return self.server.plan(request.job, request.output, generated, request.evicted, request.compressions, share)

    def _decode_seconds(self, steps: int) -> float:
        attended = sum(request.attended for request in self.running)
        return self.server.step.decode(steps, len(self.running), attended)

    def _steps_by(self, now: float) -> int:
        """Steps of this stretch that have begun by now."""
        if not self._steps or now <= self._began:
            return 0
        attended = sum(request.attended for request in self.running)
        return self.server.step.steps_until(now - self._began, self._steps, len(self.running), attended)

    def _account(self, begin: float, end: float, entries: float) -> None:
        self.entry_seconds += entries * (end - begin)
        self.running_seconds += len(self.running) * (end - begin)
