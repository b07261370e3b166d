"""Clocks, and the loop whose time jumps."""

import asyncio
import time

import anyio
import pytest

from app.core.clock import Clock, ManualClock, SystemClock, VirtualLoop, run_virtual

HOUR_MS = 3_600_000


def test_system_clock_is_the_wall_clock() -> None:
    """Milliseconds since 1970 in UTC."""
    before_ms = time.time_ns() // 1_000_000  # noqa: TID251 - compared with what it wraps
    now_ms = SystemClock().now_ms()
    assert before_ms <= now_ms <= before_ms + 10_000


def test_manual_clock_stands_until_it_is_moved() -> None:
    """Time is what the test says."""
    clock = ManualClock(1_000)
    clock.advance(500)
    assert 1_500 == clock.now_ms()


def test_manual_clock_never_goes_back() -> None:
    """Moving back is a mistake of the test."""
    with pytest.raises(AssertionError):
        ManualClock().advance(-1)


def test_run_virtual_sleep_takes_no_time() -> None:
    """An hour of sleep passes at once, on the loop and on the wall clock."""

    async def main(clock: Clock) -> int:
        await asyncio.sleep(3_600)
        return clock.now_ms()

    began = time.monotonic()
    assert 5 + HOUR_MS == run_virtual(main, start_ms=5)
    assert time.monotonic() - began < 5


def test_run_virtual_timers_fire_in_order() -> None:
    """Sleepers wake in the order of their times, at exactly those times."""

    async def main(clock: Clock) -> list[int]:
        woken: list[int] = []

        async def sleeper(seconds: int) -> None:
            await asyncio.sleep(seconds)
            woken.append(clock.now_ms())

        async with asyncio.TaskGroup() as group:
            for seconds in (30, 10, 20):
                group.create_task(sleeper(seconds))
        return woken

    assert [10_000, 20_000, 30_000] == run_virtual(main, start_ms=0)


def test_run_virtual_timeouts_are_virtual_too() -> None:
    """A limit around a longer sleep ends it at the limit."""

    async def main(clock: Clock) -> tuple[bool, int]:
        with anyio.move_on_after(100) as scope:
            await asyncio.sleep(3_600)
        return scope.cancelled_caught, clock.now_ms()

    assert (True, 100_000) == run_virtual(main, start_ms=0)


def test_run_virtual_busy_tasks_hold_time() -> None:
    """While something is ready to run, time stands."""

    async def main(clock: Clock) -> int:
        for _ in range(1_000):
            await asyncio.sleep(0)
        return clock.now_ms()

    assert 0 == run_virtual(main, start_ms=0)


def test_run_virtual_error_comes_out() -> None:
    """What the coroutine raises is raised."""

    async def main(_clock: Clock) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        run_virtual(main, start_ms=0)


def test_virtual_loop_begins_at_zero() -> None:
    """Runs are alike because each begins at the same time."""
    loop = VirtualLoop()
    try:
        assert 0.0 == loop.time()
    finally:
        loop.close()
