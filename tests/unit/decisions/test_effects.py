"""One effect a handler, under its key, to the configured address."""

from collections.abc import Callable, Mapping

import pytest

from app.core.clock import Clock, run_virtual
from app.core.errors import Rejected, Unavailable
from app.decisions.effects import Effects, Receivers, header_text
from app.decisions.log import Link
from app.decisions.record import EffectState
from tests.decisions_kit import START_MS, World, large_order
from tests.unit.decisions.test_log import record


class Listening:
    """Notes what is posted."""

    def __init__(self) -> None:
        self.headers: list[Mapping[str, str]] = []

    async def post_json(self, url: str, body: bytes, headers: Mapping[str, str], timeout_ms: int) -> object:
        self.headers.append(headers)
        return None


class Failing(Listening):
    """Is posted to, and fails."""

    async def post_json(self, url: str, body: bytes, headers: Mapping[str, str], timeout_ms: int) -> object:
        await super().post_json(url, body, headers, timeout_ms)
        raise Unavailable("http://a.test: answered 503")


def effects_of(
    world: World,
    poster: Listening,
    receivers: Receivers,
    *,
    may_begin: Callable[[], bool] = lambda: True,
    at_most_once: bool = False,
) -> Effects:
    decided = record(Link("w", 0, ""))
    return Effects(
        "stop",
        "judge:stop:a:0",
        alert=large_order(),
        record=decided,
        decision_offset=0,
        poster=poster,
        receivers=receivers,
        producer=world.broker.producer(),
        clock=world.clock,
        may_begin=may_begin,
        at_most_once=at_most_once,
    )


def test_post_sends_key_and_token() -> None:
    """Both travel as headers; the outcome is done."""

    async def main(clock: Clock) -> None:
        poster = Listening()
        effects = effects_of(await World.create(clock), poster, Receivers({"stop": "http://a.test/"}, "secret"))
        await effects.post({"x": 1})
        assert [{"idempotency-key": "judge:stop:a:0", "authorization": "Bearer secret"}] == poster.headers
        assert EffectState.DONE is effects.outcome

    run_virtual(main, START_MS)


def test_effect_that_may_not_begin_any_more_is_not_made() -> None:
    """Neither a post nor a request for a person; whoever called the handler sees that it came late."""

    async def main(clock: Clock) -> None:
        poster, world = Listening(), await World.create(clock)
        receivers = Receivers({"stop": "http://a.test/"})
        for kind in ("post", "review"):
            effects = effects_of(world, poster, receivers, may_begin=lambda: False)
            with pytest.raises(Unavailable, match="switched since its handler began"):
                await (effects.post({}) if kind == "post" else effects.request_review("look"))
            assert (None, True) == (effects.outcome, effects.came_late)
        assert ([], []) == (poster.headers, world.reviews())

    run_virtual(main, START_MS)


@pytest.mark.parametrize(("at_most_once", "posts"), [(False, 2), (True, 1)])
def test_handler_that_tries_again_by_itself(at_most_once: bool, posts: int) -> None:
    """What was refused before anything began may be tried again, and has not come late then; a receiver that is called once
    is not called again, and what has begun never counts as late."""

    async def main(clock: Clock) -> None:
        poster, world, answers = Failing(), await World.create(clock), [False, True, True, False]
        effects = effects_of(
            world,
            poster,
            Receivers({"stop": "http://a.test/"}),
            may_begin=lambda: answers.pop(0),
            at_most_once=at_most_once,
        )
        with pytest.raises(Unavailable, match="switched"):
            await effects.post({})
        with pytest.raises(Unavailable, match="answered 503"):
            await effects.post({})
        assert (None, False) == (effects.outcome, effects.came_late)
        for _ in range(2):
            with pytest.raises(Unavailable):
                await effects.post({})
        assert (posts, None, False) == (len(poster.headers), effects.outcome, effects.came_late)

    run_virtual(main, START_MS)


def test_post_without_token_sends_none() -> None:
    """No token, no header."""

    async def main(clock: Clock) -> None:
        poster = Listening()
        await effects_of(await World.create(clock), poster, Receivers({"stop": "http://a.test/"})).post({})
        assert [{"idempotency-key": "judge:stop:a:0"}] == poster.headers

    run_virtual(main, START_MS)


def test_post_without_address_is_logged_by_its_ids_alone(caplog: pytest.LogCaptureFixture) -> None:
    """What stands in a log cannot be forgotten with the person it is about."""
    caplog.set_level("INFO")

    async def main(clock: Clock) -> None:
        effects = effects_of(await World.create(clock), Listening(), Receivers({}))
        await effects.post({"user_id": "u-of-the-body"})
        assert EffectState.LOGGED is effects.outcome

    run_virtual(main, START_MS)
    assert ["effect stop judge:stop:a:0 has no address, logged only"] == caplog.messages


def test_second_effect_is_refused() -> None:
    """Two effects under one key would be one for the receiver, so the second is refused."""

    async def main(clock: Clock) -> None:
        effects = effects_of(await World.create(clock), Listening(), Receivers({}))
        await effects.post({})
        with pytest.raises(Rejected, match="second effect"):
            await effects.request_review("r")

    run_virtual(main, START_MS)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("judge:stop:large_order:u-1:o-1", "judge:stop:large_order:u-1:o-1"),
        ("a b\r\nx: y", "a%20b%0D%0Ax:%20y"),
        ("ü", "%C3%BC"),
        ("100%3A", "100%253A"),
    ],
)
def test_header_text_is_visible_and_unambiguous(key: str, expected: str) -> None:
    """No id can end a header or pose as another one."""
    assert expected == header_text(key)
