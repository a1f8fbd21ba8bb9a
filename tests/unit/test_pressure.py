"""When the pool counts as under memory pressure, whom it compresses first, and at which ratios."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_rpc.runtime.pressure import Watermarks, by_slots_per_entry, factors, slots_freed
from sglang_rpc.types import Compression


def compression(end: int, new_end: int, row: int = 0, window: int = 4, begin: int = 5) -> Compression:
    return Compression(
        row=row,
        slot=1,
        prompt_length=begin,
        generated=end - begin,
        window=window,
        begin=begin,
        end=end,
        keep=new_end - begin - window,
        event=0,
        late=False,
        early=True,
    )


# --- watermarks -------------------------------------------------------------------------------------------------


def test_memory_pressure_lasts_from_the_high_mark_until_usage_falls_below_the_low_one():
    marks = Watermarks(high=0.75, low=0.5)
    assert not marks.under_pressure
    assert marks.crossings == 0
    seen = []
    for usage in (0.0, 0.5, 0.7499, 0.75, 0.74, 0.5, 1.0, 0.4999, 0.5, 0.7499, 0.9, 0.2, 0.2):
        changed = marks.update(usage)
        seen.append((usage, marks.under_pressure, changed, marks.crossings))
    assert seen == [
        (0.0, False, False, 0),
        (0.5, False, False, 0),  # between the marks it stays what it was
        (0.7499, False, False, 0),
        (0.75, True, True, 1),  # at the high mark
        (0.74, True, False, 1),
        (0.5, True, False, 1),  # at the low mark it still is
        (1.0, True, False, 1),
        (0.4999, False, True, 1),
        (0.5, False, False, 1),
        (0.7499, False, False, 1),
        (0.9, True, True, 2),
        (0.2, False, True, 2),
        (0.2, False, False, 2),
    ]


@given(st.floats(0, 1), st.floats(0, 1), st.lists(st.floats(0, 1), max_size=60))
def test_a_change_is_told_and_counted_once(one, other, usages):
    marks = Watermarks(high=max(one, other), low=min(one, other))
    under_pressure, crossings = False, 0
    for usage in [*usages, marks.high, marks.low]:
        before = under_pressure
        if usage >= marks.high:
            under_pressure = True
        elif usage < marks.low:
            under_pressure = False
        crossings += under_pressure and not before
        assert marks.update(usage) is (under_pressure != before)
        assert marks.under_pressure is under_pressure
        assert marks.crossings == crossings


@pytest.mark.parametrize("mark", [0.0, 0.5, 1.0])
def test_with_both_marks_in_one_place(mark):
    marks = Watermarks(high=mark, low=mark)
    assert marks.update(mark)
    assert marks.under_pressure
    assert not marks.update(mark)
    assert marks.under_pressure
    assert marks.update(mark - 0.01)
    assert not marks.under_pressure


# --- what a compression frees -----------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(0, 200), st.sampled_from([1, 2, 16, 64]))
def test_only_whole_pages_after_what_is_kept_are_freed(new_end, evicted, page):
    end = new_end + evicted
    still_used = {position // page for position in range(new_end)}
    freed = {position // page for position in range(end)} - still_used
    assert slots_freed(compression(end, new_end), page) == len(freed) * page


@pytest.mark.parametrize(
    ("end", "new_end", "page", "freed"),
    [(50, 20, 1, 30), (50, 20, 16, 32), (49, 48, 16, 16), (48, 47, 16, 0), (64, 32, 16, 32), (31, 17, 16, 0)],
)
def test_slots_freed(end, new_end, page, freed):
    assert slots_freed(compression(end, new_end), page) == freed


# --- who is compressed first -------------------------------------------------------------------------------------


def test_without_pages_the_request_that_frees_most_comes_first():
    candidates = [compression(10 + n, 10, row) for row, n in enumerate((7, 30, 1, 30, 12))]
    assert [c.row for c in by_slots_per_entry(candidates, 1)] == [1, 3, 4, 0, 2]  # of equals, the first
    assert [c.row for c in by_slots_per_entry(candidates[::-1], 1)] == [3, 1, 4, 0, 2]


def test_with_pages_requests_are_in_order_of_slots_freed_per_evicted_entry():
    page_16 = {
        "all of a page for one entry": compression(49, 48, 0),  # 16 / 1
        "a page for 16 entries": compression(64, 48, 1),  # 16 / 16
        "three pages for 40": compression(89, 49, 2),  # 32 / 40
        "nothing": compression(63, 50, 3),
        "two pages for 20": compression(67, 47, 4),  # 32 / 20
    }
    assert [c.row for c in by_slots_per_entry(list(page_16.values()), 16)] == [0, 4, 1, 2, 3]


def test_of_equal_worth_the_request_nearest_to_its_due_date_comes_first():
    candidates = [compression(32, 16, 0), compression(64, 16, 1), compression(48, 16, 2)]
    assert [c.row for c in by_slots_per_entry(candidates, 16)] == [1, 2, 0]


@given(st.lists(st.tuples(st.integers(9, 100), st.integers(1, 100)), max_size=12), st.sampled_from([1, 16]))
def test_no_request_is_left_out(shapes, page):
    candidates = [compression(new_end + n, new_end, row) for row, (new_end, n) in enumerate(shapes)]
    result = by_slots_per_entry(candidates, page)
    assert sorted(c.row for c in result) == list(range(len(shapes)))
    for earlier, later in itertools.pairwise(result):
        worth, next_worth = slots_freed(earlier, page) / earlier.evicted, slots_freed(later, page) / later.evicted
        assert (worth, earlier.evicted) >= (next_worth, later.evicted)


# --- at which ratios --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "highest", "tried"),
    [
        (4, 4, [1]),  # nobody may go higher
        (4, 16, [1, 2, 4]),
        (4, 10, [1, 2, 2.5]),
        (4, 8, [1, 2]),
        (4, 5, [1, 1.25]),
        (2.5, 20, [1, 2, 4, 8]),
        (1.5, 3, [1, 2]),
        (8, 4, [1]),
    ],
)
def test_each_ratio_is_tried_in_turn(ratio, highest, tried):
    assert list(factors(ratio, highest)) == tried


@given(st.floats(1.01, 100), st.floats(1, 1000))
def test_the_highest_ratio_is_reached_and_never_passed(ratio, times):
    highest = ratio * times
    result = list(factors(ratio, highest))
    assert result[0] == 1
    assert result[-1] == pytest.approx(times)
    assert len(result) <= 12
    assert all(a < b for a, b in itertools.pairwise(result))
    assert all(factor * ratio <= highest * (1 + 1e-9) for factor in result)
