"""The arithmetic of a plan, against what can be counted by hand."""

from __future__ import annotations

from fractions import Fraction
from math import inf, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.stages.plans.estimating import (
    BLOCK_BYTES,
    BreakEven,
    Interval,
    break_even,
    per_row,
    room,
    slowest,
    t95,
    total,
)

GROUPS = st.lists(st.tuples(st.integers(1, 500), st.floats(0.001, 1e6)), min_size=2, max_size=12)
MONEY = st.integers(0, 10**6)


@pytest.mark.parametrize(
    ("freedom", "point"),
    [(1, 12.706), (2, 4.303), (10, 2.228), (11, 2.201), (20, 2.086), (60, 2.0)],
)
def test_students_t_is_that_of_the_tables(freedom: int, point: float) -> None:
    assert t95(freedom) == pytest.approx(point, rel=1e-3)


def test_a_total_by_hand() -> None:
    pairs = [(10, 10.0), (10, 20.0)]
    found = total(pairs, 40)
    assert per_row(pairs) == 1.5
    half = 12.71 * sqrt(4**2 * 50 * (1 / 2 + 1 / 4))
    assert found.value == 60.0
    assert found.half == pytest.approx(half)
    assert found.low == 0.0  # nothing takes less than no time
    half = 12.71 * sqrt(4**2 * 50 * (1 / 2 - 1 / 4))
    assert total(pairs, 40, among=True).half == pytest.approx(half)


@given(GROUPS, st.integers(1, 10**6))
def test_a_total_is_the_ratio_and_settled_rows_are_surer(
    pairs: list[tuple[int, float]], rows: int
) -> None:
    future, settled = total(pairs, rows), total(pairs, rows, among=True)
    expected = rows * sum(y for _, y in pairs) / sum(x for x, _ in pairs)
    assert future.value == settled.value == pytest.approx(expected)
    assert future.low is not None
    assert future.low <= future.value
    assert settled.half is not None
    assert future.half is not None
    assert settled.half <= future.half
    if rows <= sum(x for x, _ in pairs):
        assert settled.half == 0


def test_equal_groups_have_no_spread_and_one_group_tells_none() -> None:
    assert total([(10, 5.0)] * 3, 100) == Interval(50.0, 50.0, 50.0)
    assert total([(10, 5.0)], 100) == Interval(50.0, None, None)
    assert total([(10, 5.0)], 10, among=True) == Interval.exact(5.0)
    assert total([], 0) == Interval.exact(0.0)


def test_sums_of_intervals() -> None:
    assert Interval(5, 2, 8) + Interval(10, 6, 14) == Interval(15, 10, 20)
    assert Interval(5, 2, 8) + Interval.exact(1) == Interval(6, 3, 9)
    assert Interval(5, 2, 8) + Interval(1, None, None) == Interval(6, None, None)


def test_an_interval_is_widened_only_where_it_is_narrower() -> None:
    assert Interval(10, 9, 11).widened(0.3) == Interval(10, 7, 13)
    assert Interval.exact(10).widened(0.3) == Interval(10, 7, 13)
    assert Interval(10, 2, 18).widened(0.3) == Interval(10, 2, 18)
    assert Interval(10, 0, 40).widened(0.3) == Interval(10, 0, 40)
    assert Interval(10, None, None).widened(0.3) == Interval(10, None, None)


@given(MONEY, MONEY, MONEY)
def test_n_is_the_first_number_of_students_for_which_the_cache_is_cheaper(
    once: int, online: int, reading: int
) -> None:
    n = break_even(once, online, reading)

    def cheaper(students: int) -> bool:
        return once + students * reading < students * online

    if n is None:
        assert online <= reading
    else:
        assert n >= 1
        assert cheaper(n)
        assert n == 1 or not cheaper(n - 1)


@given(st.integers(1, 1000), st.floats(1e-6, 1e3))
def test_n_where_the_quotient_is_a_whole_number_up_to_rounding(times: int, online: float) -> None:
    n = break_even(times * online, online)
    assert n is not None
    assert Fraction(times * online) < n * Fraction(online) or times * online < n * online
    assert n in (times, times + 1, times + 2)


@pytest.mark.parametrize(
    ("once", "online", "reading", "n"),
    [
        (12, 240, 0, 1),
        (12, 12, 0, 2),  # one pass: the second student is the first that gains
        (13, 12, 0, 2),
        (12, 6, 0, 3),
        (12, 12, 6, 3),
        (12, 6, 6, None),
        (12, 5, 6, None),
        (0, 1, 0, 1),
        (0, 0, 0, None),
        (1, 1e-320, 0, None),
        (inf, 1, 0, None),
    ],
)
def test_n_by_hand(once: float, online: float, reading: float, n: int | None) -> None:
    assert break_even(once, online, reading) == n


def test_the_break_even_says_what_it_compared() -> None:
    found = BreakEven(1800.0, 7200.0, 0.0, False, 20, 4000, 2.0)
    said = found.to_json()
    assert said["students"] == 1
    assert (said["once_price"], said["online_price"]) == (1.0, 4.0)
    assert said["reading_measured"] is False
    assert BreakEven(1800.0, 7200.0, 0.0, True, 20, 4000).to_json()["once_price"] is None


@given(st.integers(1, 3000), st.integers(1, 400), st.integers(1, 9))
def test_the_slowest_worker_is_the_one_that_gets_most_shards(
    rows: int, shard_rows: int, workers: int
) -> None:
    shards = [min(shard_rows, rows - start) for start in range(0, rows, shard_rows)]
    most = max(sum(shards[w::workers]) for w in range(workers))
    assert most <= slowest(rows, shard_rows, workers) <= most + shard_rows


@pytest.mark.parametrize(
    ("size", "free", "verdict"),
    [
        (Interval.exact(1000), 10**6, "fits"),
        (Interval.exact(10**6), 1_050_000, "fits"),
        (Interval.exact(10**6), 1_049_999, "does not fit"),
        (Interval(10**6, 800_000, 1_200_000), 900_000, "may not fit"),
        (Interval(10**6, 800_000, 1_200_000), 839_999, "does not fit"),
        (Interval(10**6, None, None), 10**5, "does not fit"),
        (Interval.exact(10**12), None, "unknown"),
    ],
)
def test_room_keeps_a_margin_and_refuses_only_what_is_certain(
    size: Interval, free: int | None, verdict: str
) -> None:
    assert room(size, 0, free).verdict == verdict


def test_each_file_wastes_half_a_block() -> None:
    assert room(Interval.exact(100), 10, 10**9).need == 100 + 10 * BLOCK_BYTES // 2
