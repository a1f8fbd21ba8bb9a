"""What several tests of the compressor ask of a played decode loop."""

import copy

from tests.loops.decode_loop import MARKERS, POOL, WORD, Loop, Request, config


def assert_all_slots_are_back(loop: Loop) -> None:
    for request in list(loop.requests):
        loop.finish(request)
    assert loop.ring.in_use == 0
    assert not loop.ring.slot_of_row.any()
    assert sorted(loop.free) == list(range(POOL))


def play_policy(generated: int, upto: int, interval: int, window: int, ratio: float) -> list[tuple[int, int, bool]]:
    """A request whose row is rebuilt at `generated`, by the rules alone: a window of queries first, then all that is
    due at once; a date at which no more candidates are held than the budget allows is passed over."""
    step, done, held = int(interval / ratio), [], generated
    n = 0
    next_check = max(interval + window, generated + window)
    for g in range(generated + 1, upto + 1):
        held += 1
        if g < next_check:
            continue
        late = g != (n + 1) * interval + window
        n = (g - window) // interval
        if n * step < held - window:
            held = n * step + window
            done.append((g, n, late))
        next_check = (n + 1) * interval + window
    return done


def play_dates(held: int, events: int, after: int, upto: int, budget: tuple[int, int, float]):
    """What the due dates after `after` make of `held` entries: (compressions, entries held at `upto`)."""
    interval, window, ratio = budget
    done = []
    for g in range(after + 1, upto + 1):
        held += 1
        if g == (events + 1) * interval + window:
            events += 1
            keep = events * int(interval / ratio)
            if keep < held - window:
                held = keep + window
                done.append((g, events, False))
    return done, held


def held_by(request: Request) -> int:
    """Entries after the prompt."""
    return request.length - len(request.prompt)


def not_compressed_early(request: Request, loop: Loop, ratio: float) -> bool:
    """Whether no early compression is possible; then nothing of the request's row and record may change."""
    before, held, given = copy.deepcopy(vars(request.state)), loop.held(request), list(request.early)
    if loop.evict_early(request, ratio) is not None:
        return False
    segment = {"segment": request.state.segment}  # reads on
    assert vars(request.state) == before | segment
    assert loop.held(request) == held
    assert request.early == given
    return True


def set_pressure(loop: Loop, under_pressure: bool) -> None:
    """What the scheduler does when a watermark is crossed."""
    loop.compressor.dates_kept = under_pressure
    for request in loop.requests:
        request.state.clock.check_at = 0


def thinking(**others) -> Loop:
    return Loop(config(scope="think", **others), markers=MARKERS)


def says(*marks: tuple[int, int]) -> list[int]:
    """A long output with these tokens at these positions."""
    output = [WORD] * 300
    for position, token in marks:
        output[position] = token
    return output
