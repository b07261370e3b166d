"""The line in front of a model and its permits under arbitrary events: turns are kept, and so are bounds."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.clock import Clock, run_virtual
from app.models.buckets import NOTHING, Buckets
from app.models.line import Line
from app.models.permits import Permits

START_MS = 1_700_000_000_000
LONG_S = 3_600.0


class WatchedLine(Line):
    """Notes who comes and who goes, in order."""

    def __init__(self, concurrency: int) -> None:
        super().__init__(Permits(concurrency), Buckets(0, 0, 0))
        self.seen: list[tuple[str, str]] = []

    def _end_turn(self, agent: str) -> None:
        self.seen.append(("goes", agent))
        super()._end_turn(agent)


def turns_that_were_not_kept(seen: list[tuple[str, str]]) -> list[str]:
    """Who waited while another agent went more than once for each of his own turns."""
    found = []
    for at, (what, agent) in enumerate(seen):
        if what != "comes":
            continue
        before = seen[: at + 1]
        ahead = before.count(("comes", agent)) - before.count(("goes", agent))
        own = [later for later, event in enumerate(seen) if later > at and event == ("goes", agent)]
        meanwhile = seen[at : own[ahead - 1]]
        for other in {name for _, name in meanwhile} - {agent}:
            if meanwhile.count(("goes", other)) > ahead:
                found.append(f"{agent} waited for its turn {ahead} while {other} went more often")
    return found


def line_of(script: list[tuple[str, int, int]], concurrency: int) -> list[str]:
    """Whose turn was not kept, where each caller is (agent, comes, takes) in tenths of a second."""

    async def main(clock: Clock) -> list[str]:
        line = WatchedLine(concurrency)

        async def caller(agent: str, comes: int, takes: int) -> None:
            await asyncio.sleep(comes / 10)
            line.seen.append(("comes", agent))
            place = await line.enter(agent, 0, NOTHING, asyncio.get_running_loop().time() + LONG_S)
            await asyncio.sleep(takes / 10)
            line.leave(place, NOTHING)

        await asyncio.gather(*(caller(*one) for one in script))
        return turns_that_were_not_kept(line.seen)

    return run_virtual(main, START_MS)


@given(
    script=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20), st.integers(1, 5)), max_size=40),
    concurrency=st.integers(1, 3),
)
def test_line_with_any_backlog_of_others_keeps_each_agents_turn(
    script: list[tuple[str, int, int]], concurrency: int
) -> None:
    """However many of another agent wait, it goes at most once for each turn of an agent that waits."""
    assert [] == line_of(script, concurrency)


def test_ablation_agent_that_keeps_its_turn_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose backlog goes as a whole before others have their turn."""
    backlog = [*[("a", 0, 1)] * 9, ("b", 1, 1)]
    assert [] == line_of(backlog, 1)

    def stays_first(self: WatchedLine, agent: str) -> None:
        self.seen.append(("goes", agent))
        self._remove(self._waiting[agent][0])

    monkeypatch.setattr(WatchedLine, "_end_turn", stays_first)
    assert [] != line_of(backlog, 1)


@given(st.lists(st.sampled_from(["take", "back", "good", "bad", "pause", "restart"]), max_size=80), st.integers(1, 9))
def test_permits_under_any_events_keep_their_bounds(events: list[str], most: int) -> None:
    """At least one, at most `most`; a decrease at most once an epoch."""
    permits = Permits(most)
    out: list[int] = []
    allowed: list[tuple[str, int]] = []
    for index, event in enumerate(events):
        now = index * 0.4
        epoch = out[0] if out else 0
        if event == "take" and permits.wait_s(now) == 0:
            out.append(permits.take(now))
        elif event == "back" and out:
            permits.give_back()
            out.pop(0)
        elif event == "good":
            permits.succeeded(epoch, now)
        elif event == "bad":
            permits.overloaded(epoch, now)
            before = permits.allowed(now)
            permits.overloaded(epoch, now)
            assert before == permits.allowed(now)
        elif event == "pause":
            permits.close(now + 1.0)
        elif event == "restart":
            permits.restart()
        allowed.append((event, permits.allowed(now)))
        assert 1 <= permits.allowed(now) <= most
    for (_, before), (event, after) in pairwise(allowed):
        assert after >= before or event in ("bad", "pause", "restart")
