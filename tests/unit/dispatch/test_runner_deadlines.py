"""Records that have begun end in time, whatever else runs, and what was refused unseen uses up no attempt."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.clock import Clock, run_virtual
from app.core.errors import HeadraceError, Unavailable
from app.core.record import Record
from app.dispatch.lanes import Lane, Lanes
from app.dispatch.retries import RetryPolicy
from app.dispatch.runner import Runner
from app.dispatch.work import DispatchConfig
from tests.dispatching import START_MS, Handler, Place, Stage, on_stage, place_of, staged, until

WITHIN_S = 20.0
RETRY = RetryPolicy(max_attempts=3, within_ms=int(WITHIN_S * 1000))


def refusal(asked_ms: int | None = None) -> HeadraceError:
    error = Unavailable("nothing is tried just now")
    error.was_tried = False
    error.retry_after_ms = asked_ms
    return error


class Watch:
    """When each record's handler began first, and when the record reached its end."""

    def __init__(self, stage: Stage) -> None:
        self.began: dict[Place, float] = {}
        self.ended: dict[Place, float] = {}
        stage.work.give_up_handler = self.give_up

    def in_time(self, handler: Handler) -> Handler:
        """As handlers of agents are: at its deadline a record is at its end, decided by the fallback."""

        async def handle(record: Record, attempt: int) -> None:
            loop = asyncio.get_running_loop()
            began = self.began.setdefault(place_of(record), loop.time())
            limit = asyncio.timeout_at(began + WITHIN_S)
            try:
                async with limit:
                    await handler(record, attempt)
            except TimeoutError:
                if not limit.expired():
                    raise
            self.ended[place_of(record)] = loop.time()

        return handle

    async def give_up(self, record: Record, attempts: int) -> None:
        self.ended[place_of(record)] = asyncio.get_running_loop().time()

    def late(self) -> list[Place]:
        return [place for place, at in self.ended.items() if at > self.began[place] + WITHIN_S + 1]


def test_runner_refusal_uses_up_no_attempt() -> None:
    """Ten refusals, then two attempts that fail and one that does not: attempts are numbered as if nothing had been."""

    async def play(stage: Stage) -> None:
        seen: list[int] = []

        async def handle(record: Record, attempt: int) -> None:
            seen.append(attempt)
            if len(seen) <= 5:
                raise refusal(1_000)
            if attempt < 3:
                raise Unavailable("tried")

        stage.work.handler = handle
        stage.send("u-1")
        async with stage.running(DispatchConfig(retry=RETRY)):
            await until(stage.all_ended)
        assert [1] * 6 + [2, 3] == seen
        assert [] == stage.history.given_up

    on_stage(play)


def test_runner_refusals_without_a_time_limit_are_attempts() -> None:
    """Else nothing would bound them."""

    async def play(stage: Stage) -> None:
        async def handle(record: Record, attempt: int) -> None:
            raise refusal()

        stage.work.handler = handle
        stage.send("u-1")
        async with stage.running(DispatchConfig(retry=RetryPolicy(max_attempts=3))):
            await until(stage.all_ended)
        assert 3 == len(stage.history.begun)

    on_stage(play)


def test_runner_refusals_end_by_the_deadline_after_few_runs() -> None:
    """What is refused for ever is given up in time, as its first attempt, and waits longer each time."""

    async def play(stage: Stage) -> None:
        async def handle(record: Record, attempt: int) -> None:
            raise refusal()

        watch = Watch(stage)
        stage.work.handler = watch.in_time(handle)
        stage.send(*[f"u-{number}" for number in range(100)])
        async with stage.running(DispatchConfig(retry=RETRY)):
            await until(stage.all_ended)
        assert [] == watch.late()
        assert {1} == {attempts for _, _, attempts in stage.history.given_up}
        assert 30 > len(stage.history.begun) / 100

    on_stage(play)


def test_runner_records_that_were_told_to_wait_equally_long_do_not_come_together() -> None:
    """A breaker refuses two hundred records in one moment, for a second."""

    async def play(stage: Stage) -> None:
        loop = asyncio.get_running_loop()
        second: list[float] = []
        begun: set[int] = set()

        async def handle(record: Record, attempt: int) -> None:
            if record.offset not in begun:
                begun.add(record.offset)
                raise refusal(1_000)
            second.append(loop.time())

        stage.work.handler = handle
        stage.send(*[f"u-{number}" for number in range(200)])
        async with stage.running(DispatchConfig(retry=RETRY)):
            started = loop.time()
            await until(stage.all_ended)
        assert min(second) >= started + 1
        assert 20 > max(sum(at <= other < at + 0.005 for other in second) for at in second)

    on_stage(play)


def hanging_for(seconds: float) -> Handler:
    async def handle(record: Record, attempt: int) -> None:
        await asyncio.sleep(seconds)
        raise Unavailable("hangs")

    return handle


async def late_of(stage: Stage, handler: Handler, count: int, every_s: float) -> tuple[Watch, float]:
    """Plays so many records that come one after the other, to their ends."""
    watch = Watch(stage)
    stage.work.handler = watch.in_time(handler)
    loop = asyncio.get_running_loop()
    async with stage.running(DispatchConfig(retry=RETRY)):
        for number in range(count):
            stage.send(f"u-{number}")
            await asyncio.sleep(every_s)
        await until(stage.all_ended, within_seconds=3_600)
    return watch, loop.time()


def test_runner_all_handlers_taken_records_that_have_begun_end_in_time() -> None:
    """Twenty records a second, of which each attempt holds a handler for eight: all 64 are taken, always, and hundreds
    wait that have not begun. They wait; what has begun ends."""

    async def play(stage: Stage) -> None:
        watch, _ = await late_of(stage, hanging_for(8), 400, 0.05)
        assert 64 == stage.history.most_running
        assert [] == watch.late()

    on_stage(play)


def test_runner_retry_that_gets_no_handler_is_given_up_at_its_deadline() -> None:
    """The handlers were all taken, for twenty seconds, in the moment in which its retry was due."""

    async def play(stage: Stage) -> None:
        async def handle(record: Record, attempt: int) -> None:
            if record.key == b"early" and attempt == 1:
                error = Unavailable("slow")
                error.retry_after_ms = 5_000
                raise error
            await asyncio.sleep(60)

        watch = Watch(stage)
        stage.work.handler = watch.in_time(handle)
        stage.send("early")
        async with stage.running(DispatchConfig(concurrency=8, retry=RETRY)):
            await asyncio.sleep(1)
            stage.send(*[f"late-{number}" for number in range(20)])
            await until(stage.all_ended)
        early = ("processed.alerts", 0, 0)
        assert WITHIN_S == pytest.approx(watch.ended[early] - watch.began[early], abs=0.01)
        assert [(early, "slow", 1)] == stage.history.given_up
        assert [] == watch.late()
        assert 8 == stage.history.most_running

    on_stage(play)


def test_runner_refusals_starve_no_record_that_has_not_begun() -> None:
    """Hundreds are refused again and again until their deadlines; one that comes then begins at once."""

    async def play(stage: Stage) -> None:
        async def handle(record: Record, attempt: int) -> None:
            if record.key != b"fresh":
                await asyncio.sleep(0.02)
                raise refusal(1_000)

        watch = Watch(stage)
        stage.work.handler = watch.in_time(handle)
        stage.send(*[f"u-{number}" for number in range(500)])
        async with stage.running(DispatchConfig(concurrency=16, retry=RETRY)):
            await asyncio.sleep(3)
            sent = asyncio.get_running_loop().time()
            stage.send("fresh")
            await until(stage.all_ended)
        assert watch.began["processed.alerts", 0, 500] < sent + 1
        assert [] == watch.late()

    on_stage(play)


outcomes = st.lists(
    st.tuples(st.floats(0, 25), st.sampled_from(["done", "fails", "refused", "asked", "raises"])),
    min_size=1,
    max_size=6,
)


def late_after(script: list[list[tuple[float, str]]], concurrency: int) -> list[Place]:
    """Of records whose attempts take so long and end so, the last one of each again and again."""

    async def main(clock: Clock) -> list[Place]:
        stage = await staged(clock)
        watch = Watch(stage)
        runs: dict[int, int] = {}

        async def handle(record: Record, attempt: int) -> None:
            run = runs[record.offset] = runs.get(record.offset, -1) + 1
            attempts = script[record.offset]
            seconds, how = attempts[min(run, len(attempts) - 1)]
            await asyncio.sleep(seconds)
            if how == "raises":
                raise ZeroDivisionError
            if how != "done":
                error = Unavailable(how)
                error.was_tried = how != "refused"
                error.retry_after_ms = 3_000 if how == "asked" else None
                raise error

        stage.work.handler = watch.in_time(handle)
        stage.send(*[f"u-{number % 7}" for number in range(len(script))])
        async with stage.running(DispatchConfig(concurrency=concurrency, retry=RETRY)):
            await until(stage.all_ended, within_seconds=36_000)
        assert [] == stage.history.violations
        assert concurrency >= stage.history.most_running
        return watch.late()

    return run_virtual(main, START_MS)


@settings(max_examples=60)
@given(script=st.lists(outcomes, min_size=1, max_size=30), concurrency=st.integers(1, 4))
def test_runner_any_load_records_that_have_begun_end_by_their_deadline(
    script: list[list[tuple[float, str]]], concurrency: int
) -> None:
    """A second after it at the latest, however few handlers there are, however they end and whatever waits."""
    assert [] == late_after(script, concurrency)


def test_ablation_deadlines_that_wait_for_a_handler_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that have begun go first, and still one of them is late when nothing ends it without a handler."""
    script = [[(5.0, "asked"), (0.1, "done")], *[[(25.0, "done")]] * 7]
    assert [] == late_after(script, 1)
    monkeypatch.setattr(Runner, "_end_in_time", lambda *_: None)
    assert [] != late_after(script, 1)


def test_ablation_retries_behind_what_has_not_begun_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With both safeguards out: retries wait for everybody's first attempt."""

    def at_the_back(self: Lanes[object], lane: Lane[object]) -> None:
        unpark(self, lane)
        del self._due[lane]
        self._ready.append(lane)

    unpark = Lanes.unpark
    monkeypatch.setattr(Runner, "_end_in_time", lambda *_: None)
    monkeypatch.setattr(Lanes, "unpark", at_the_back)
    assert [] != late_after([[(1.0, "fails"), (0.1, "done")], *[[(6.0, "done")]] * 6], 1)
