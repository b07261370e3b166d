"""Rules about what is on record: replayed it comes out the same, and any single damage to a chain is found.

The reference is what was planned: which answers were given, and which one record was changed, removed or moved.
"""

from collections.abc import Callable

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.clock import Clock, run_virtual
from app.core.codec import encode
from app.core.errors import Unavailable
from app.core.record import Record
from app.decisions.context import Context
from app.decisions.decision import Reason
from app.decisions.history import PassedOver, Wanted, newest
from app.decisions.policy import Policy
from app.decisions.record import decision_key, sha256
from app.decisions.replay import Replayer
from app.models.base import FailureCode, ModelFailure, ModelRequest
from app.serving.base import Freshness, OwnEvent
from tests.decisions_kit import (
    START_MS,
    LargeOrder,
    OrderDecision,
    World,
    answering,
    broken_links,
    large_order,
    make_agent,
    until,
)
from tests.examples import examples
from tests.unit.decisions.test_verify import chain, changed, forgotten, renumbered

answers = st.one_of(
    st.sampled_from(["approve", "review", "block"]).map(answering),
    st.text(max_size=30).map(lambda text: lambda request: text),
    st.sampled_from(list(FailureCode)),
)
"""What a model says: a decision, anything, or a failure."""


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Rules that want any action or raise, with any limits and tolerances."""

    def rule(wanted: str | None) -> Callable[[LargeOrder, OrderDecision], str | None]:
        def asked(alert: LargeOrder, decision: OrderDecision) -> str | None:
            if wanted == "raise":
                raise ValueError("a rule's bug")
            return wanted

        return asked

    wanted = st.sampled_from([None, "approve", "review", "block", "sing", "raise"])
    pairs = [("block", "review"), ("block", "approve"), ("review", "approve")]
    return Policy(
        rules=tuple(rule(draw(wanted)) for _ in range(draw(st.integers(0, 2)))),
        may_lower=frozenset(draw(st.sets(st.sampled_from(pairs)))),
        tolerates=frozenset(
            draw(st.sets(st.sampled_from([Reason.FEATURES_STALE, Reason.OWN_EVENT_LATE, Reason.ORIGIN_UNKNOWN])))
        ),
    )


async def catches(alert: LargeOrder, context: Context) -> OrderDecision:
    """A handler that goes on without the answer it asked for, and asks twice."""
    user = await context.features("user_features", alert.user_id)
    try:
        return await context.decide("judge this order", alert=alert, user=user)
    except ModelFailure:
        return await context.decide("judge it again", alert=alert)


async def asks(alert: LargeOrder, context: Context) -> OrderDecision:
    user = await context.features("user_features", alert.user_id)
    return await context.decide("judge this order", alert=alert, user=user)


@given(
    said=st.lists(answers, min_size=1, max_size=8),
    policy=policies(),
    freshness=st.sampled_from(list(Freshness)),
    own_event=st.sampled_from(list(OwnEvent)),
    handler=st.sampled_from([asks, catches]),
    origin=st.sampled_from(["raw.orders/1/17", ""]),
    away=st.booleans(),
)
def test_replay_of_any_decision_is_identical(
    said: list[object],
    policy: Policy,
    freshness: Freshness,
    own_event: OwnEvent,
    handler: Callable[[LargeOrder, Context], object],
    origin: str,
    away: bool,
) -> None:
    """Whatever models, features, handlers and policies did, the record decides the same once more."""
    turns = iter(said * 20)

    def text(request: ModelRequest) -> str:
        turn = next(turns)
        if isinstance(turn, FailureCode):
            raise ModelFailure(turn, "planned")
        assert callable(turn)
        return str(turn(request))

    async def main(clock: Clock) -> None:
        world = await World.create(clock, text)
        world.features.freshness, world.features.own_event = freshness, own_event
        world.features.error = Unavailable("redis: away") if away else None
        agent = make_agent(handler, policy=policy)  # type: ignore[arg-type]
        for number in range(3):
            world.send(large_order(order=f"o-{number}"), headers={"origin": origin})
        async with world.running(world.agent_work(agent)):
            await until(lambda: len(world.records("agent.decisions")) == 3)
        replayer = Replayer({agent.name: agent})
        async for found in newest(world.broker.reader(), 2, Wanted(), 10, PassedOver()):
            one = await replayer.replay(found)
            assert ("", (), ()) == (one.skipped, one.differences, one.changed), found.record.reasons

    run_virtual(main, START_MS)


@st.composite
def logs(draw: st.DrawFn) -> list[Record]:
    """The chains of up to three writers, interleaved, with all that may happen to them."""
    chains = [chain(draw(st.integers(2, 6)), f"judge/1/{number}/0") for number in range(draw(st.integers(1, 3)))]
    log: list[Record] = []
    while any(chains):
        log.append(draw(st.sampled_from([one for one in chains if one])).pop(0))
    for _ in range(draw(st.integers(0, 2))):  # a lost answer
        at = draw(st.integers(0, len(log) - 1))
        log.insert(draw(st.integers(at + 1, len(log))), log[at])
    for _ in range(draw(st.integers(0, 2))):  # an outage
        record = log.pop(draw(st.integers(0, len(log) - 1)))
        log.insert(draw(st.integers(0, len(log))), record)
    if draw(st.booleans()):  # somebody is forgotten, before and after compaction
        at = draw(st.integers(0, len(log) - 1))
        if draw(st.booleans()):
            log.append(forgotten(log[at]))
        else:
            log = [forgotten(one) if one.key == log[at].key else one for one in log]
    return [msgspec.structs.replace(record, offset=offset) for offset, record in enumerate(log)]


@settings(max_examples=examples(200))
@given(logs())
def test_check_finds_nothing_in_what_may_happen(log: list[Record]) -> None:
    """Repeats, outages, several writers and forgotten people are no damage."""
    assert [] == broken_links(log)


@settings(max_examples=examples(400))
@given(logs(), st.data())
def test_check_finds_any_one_damage(log: list[Record], data: st.DataObject) -> None:
    """A record changed, all copies of one removed, or two that swap places in their chain. The last one of a chain has no
    follower: that it was changed or removed only its effects tell, see the unit tests."""
    followed = {(_writer(one), _number(one) - 1) for one in log}
    inner = [one for one in log if (_writer(one), _number(one)) in followed]
    one = data.draw(st.sampled_from(inner))
    damage = data.draw(st.sampled_from(["changed", "copy changed", "removed", "swapped", "unlinked"]))
    same = [other for other in log if other.key == one.key]
    if damage == "removed":
        damaged = [other for other in log if other.key != one.key]
    elif damage == "swapped":
        follower = next(other for other in log if (_writer(other), _number(other)) == (_writer(one), _number(one) + 1))
        damaged = [
            renumbered(other, _number(follower))
            if other.key == one.key
            else renumbered(other, _number(one))
            if other.key == follower.key
            else other
            for other in log
        ]
    elif damage == "unlinked":
        damaged = [_unlinked(other) if other.key == one.key else other for other in log]
    else:
        target = data.draw(st.sampled_from(same)) if damage == "copy changed" else None
        damaged = [
            _changed(other) if other is target or (target is None and other.key == one.key) else other for other in log
        ]
    assert broken_links(damaged)


def _fields(record: Record) -> dict[str, object]:
    return msgspec.json.decode(record.value or b"", type=dict[str, object])


def _writer(record: Record) -> str:
    return str(_fields(record)["writer"])


def _number(record: Record) -> int:
    return int(str(_fields(record)["number"]))


def _changed(record: Record) -> Record:
    """Another value, or of a forgotten record the hash of another value."""
    if "sha256" in _fields(record):
        return msgspec.structs.replace(record, value=encode(_fields(record) | {"sha256": sha256(b"another")}))
    return changed(record)


def _unlinked(record: Record) -> Record:
    value = encode(_fields(record) | {"previous": sha256(b"another")})
    return msgspec.structs.replace(record, key=decision_key(_writer(record), _number(record)), value=value)
