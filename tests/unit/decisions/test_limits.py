"""How often an action may be decided: per entity exactly, per minute by the share of the partitions, also after a restart."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.application import App
from app.broker.memory import Fault
from app.core.clock import Clock, run_virtual
from app.core.errors import RecordTooLarge, SetupError
from app.decisions.decision import Fallback, review
from app.decisions.limits import Limits, Past, past_decisions
from app.decisions.policy import Limit, Policy
from features import fraud, records
from tests.decisions_kit import (
    START_MS,
    LargeOrder,
    OrderDecision,
    World,
    answering,
    ask_model,
    large_order,
    make_agent,
    until,
)


def owning(partitions: int, owned: Sequence[int], *limits: Limit) -> Limits:
    """Limits of somebody who owns these partitions, in which nothing was decided."""
    made = Limits(limits, partitions)
    for partition in owned:
        made.begin(partition, ())
    return made


def test_limit_of_an_entity_is_its_own_and_slides() -> None:
    """The third within the duration is refused, another entity's is not, and the first one's age frees a place."""
    limits = owning(1, [0], Limit("block", an_entity=2, within="10s"))
    assert [True, True, False] == [limits.take(0, "u-1", "block", at) for at in (0, 4_000, 9_999)]
    assert limits.take(0, "u-2", "block", 9_999)
    assert limits.take(0, "u-1", "approve", 9_999)
    assert [True, False] == [limits.take(0, "u-1", "block", at) for at in (10_000, 13_999)]


def test_limit_a_minute_is_of_all_entities() -> None:
    """Whoever they are for, so many within any sixty seconds."""
    limits = owning(1, [0], Limit("block", a_minute=3))
    assert [True] * 3 + [False] == [limits.take(0, f"u-{n}", "block", n * 10_000) for n in range(4)]
    assert [True, False] == [limits.take(0, "u-9", "block", at) for at in (60_000, 60_001)]


def test_limit_refused_counts_nothing() -> None:
    """Of two limits of one action the one that refuses leaves the other as it was."""
    limits = owning(1, [0], Limit("block", a_minute=10), Limit("block", an_entity=1, within="1h"))
    assert [True, False, False] == [limits.take(0, "u-1", "block", at) for at in range(3)]
    assert [True] * 9 == [limits.take(0, f"v-{n}", "block", 10) for n in range(9)]
    assert not limits.take(0, "w", "block", 11)


def test_limit_given_back_is_free_again() -> None:
    """A decision that was not written does not count."""
    limits = owning(1, [0], Limit("block", an_entity=1, a_minute=1))
    assert limits.take(0, "u-1", "block", 5)
    limits.give_back(0, "u-1", "block")
    assert [True, False] == [limits.take(0, "u-1", "block", at) for at in (6, 7)]


@given(a_minute=st.integers(1, 50), partitions=st.integers(1, 24), owners=st.integers(1, 6))
def test_limit_a_minute_is_shared_out_whole(a_minute: int, partitions: int, owners: int) -> None:
    """However the partitions are spread, all processes together take exactly the number and no more."""
    taken = 0
    for owner in range(min(owners, partitions)):
        owned = range(owner, partitions, owners)
        limits = owning(partitions, owned, Limit("block", a_minute=a_minute))
        taken += sum(limits.take(owned[n % len(owned)], f"u-{n}", "block", n) for n in range(a_minute + 1))
    assert a_minute == taken


@given(
    steps=st.lists(st.tuples(st.integers(0, 4_000), st.sampled_from(["u", "v"]), st.booleans()), max_size=40),
    an_entity=st.integers(1, 4),
)
def test_limit_counts_as_a_plain_reading_of_the_log(steps: list[tuple[int, str, bool]], an_entity: int) -> None:
    """Whenever owners change, what is allowed is what counting the decisions written so far allows."""
    limit, now_ms, written = Limit("block", an_entity=an_entity, within="10s"), 0, list[Past]()
    limits = owning(1, [0], limit)
    for passed_ms, entity, owner_changes in steps:
        now_ms += passed_ms
        if owner_changes:
            limits = Limits([limit], 1)
            limits.begin(0, [past for past in written if past.at_ms > now_ms - 10_000])
        expected = sum(past.entity == entity and past.at_ms > now_ms - 10_000 for past in written) < an_entity
        assert expected == limits.take(0, entity, "block", now_ms)
        if expected:
            written.append(Past(entity, "block", now_ms))


def test_limits_forget_entities_whose_time_is_over() -> None:
    """Memory holds those of the last `within`, not all there ever were."""
    limits = owning(1, [0], Limit("block", an_entity=1, within="10s"))
    for number in range(10_000):
        assert limits.take(0, f"u-{number}", "block", number * 10)
    (times,) = limits._owned[0]
    assert len(times._entities) <= 1_001


LIMITED = Policy(limits=(Limit("block", an_entity=2, within="5m"),))


async def decide(world: World, orders: Sequence[str], user: str = "u-1") -> None:
    """These orders of one user, by an agent that starts now and stops behind them."""
    work = world.agent_work(make_agent(policy=LIMITED))
    for order in orders:
        world.send(large_order(user, order), key=user)
    written = len(world.decisions()) + len(orders)
    async with world.running(work):
        await until(lambda: len(world.decisions()) == written)


def blocks_after_a_restart() -> tuple[list[str], list[tuple[str, ...]]]:
    """Actions and reasons of four orders of one user, with a restart behind the first."""

    async def main(clock: Clock) -> tuple[list[str], list[tuple[str, ...]]]:
        world = await World.create(clock, answering("block"))
        await decide(world, ["o-1"])
        await asyncio.sleep(60)
        await decide(world, ["o-2", "o-3", "o-4"])
        return world.decided(), [record.reasons for record in world.decisions()]

    return run_virtual(main, START_MS)


def test_limit_reached_ends_in_the_fallback_also_after_a_restart() -> None:
    """The third block of one user within the time is a review that says why, whoever made the first ones."""
    actions, reasons = blocks_after_a_restart()
    assert ["block", "block", "review", "review"] == actions
    assert [(), (), ("limit_reached",), ("limit_reached",)] == reasons


def test_limit_that_is_not_rebuilt_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: an owner that counts from nothing allows more than the limit."""

    async def nothing(*arguments: object) -> list[Past]:
        return []

    monkeypatch.setattr("app.decisions.limits.past_decisions", nothing)
    assert ["block"] * 3 == blocks_after_a_restart()[0][:3]


def test_limit_is_over_when_its_time_is() -> None:
    """After the duration the user may be blocked again."""

    async def main(clock: Clock) -> list[str]:
        world = await World.create(clock, answering("block"))
        await decide(world, ["o-1", "o-2", "o-3"])
        await asyncio.sleep(301)
        await decide(world, ["o-4"])
        return world.decided()

    assert ["block", "block", "review", "block"] == run_virtual(main, START_MS)


def test_limit_counts_its_own_mode_only() -> None:
    """What a shadow has decided takes nothing from the live agent, nor the other way round."""

    async def main(clock: Clock) -> tuple[list[Past], list[Past]]:
        world = await World.create(clock, answering("block"))
        world.send(large_order())
        async with world.running(world.agent_work(make_agent(policy=LIMITED), mode="shadow")):
            await until(lambda: bool(world.decisions()))
        partition = world.decisions()[0].alert_partition
        reader = world.broker.reader()
        return (
            await past_decisions(reader, "ask_model", "live", partition, {"block": 0}),
            await past_decisions(reader, "ask_model", "shadow", partition, {"block": 0}),
        )

    assert ([], [Past("u-1", "block", START_MS)]) == run_virtual(main, START_MS)


def test_past_decisions_of_actions_without_a_limit_are_not_kept() -> None:
    """What cannot be counted takes no memory, nor what is older than its own limit's time."""

    async def main(clock: Clock) -> list[list[Past]]:
        world = await World.create(clock, answering("approve"))
        await decide(world, ["o-1", "o-2"])
        partition, reader = world.decisions()[0].alert_partition, world.broker.reader()
        return [
            await past_decisions(reader, "ask_model", "live", partition, since_ms)
            for since_ms in ({"block": 0}, {"block": 0, "approve": START_MS + 60_000}, {"approve": 0})
        ]

    assert [0, 0, 2] == [len(found) for found in run_virtual(main, START_MS)]


def test_limit_counts_back_no_longer_than_it_must() -> None:
    """A minute for a number a minute; `within` says nothing where no entity is counted."""
    limits = Limit("block", a_minute=9, within="24h"), Limit("block", an_entity=1, within="2s")
    both = Limit("block", an_entity=1, within="2s", a_minute=9)
    assert [60_000, 2_000, 60_000] == [limit.counted_ms for limit in (*limits, both)]


def test_limit_a_minute_without_a_part_for_each_partition_is_refused() -> None:
    """It would forbid the action in some of them for ever; a mistake is found where the agent is declared."""

    def declare(*limits: Limit) -> App:
        app = App(features=[records, fraud], alert_partitions=12)
        agent = app.agent(
            "processed.alerts",
            alert=LargeOrder,
            decides=OrderDecision,
            fallback=review,
            policy=Policy(limits=limits),
        )
        agent(ask_model)
        return app

    assert ["ask_model"] == [*declare(Limit("block", a_minute=12), Limit("block", an_entity=1)).agents]
    said = "agent ask_model, policy, limit of block: a_minute=11 is less than one for each of the topic's 12 partitions"
    with pytest.raises(SetupError, match=said):
        declare(Limit("block", a_minute=11))


def test_limit_of_a_decision_that_does_not_fit_is_given_back() -> None:
    """What could not be written, and ended as the bare fallback, is not counted."""

    async def main(clock: Clock) -> list[str]:
        world = await World.create(clock, answering("block"))
        world.broker.plan(Fault("confirm", "fail", RecordTooLarge("too large")))
        world.broker.plan(Fault("confirm", "fail", RecordTooLarge("too large, also without its texts")))
        await decide(world, ["o-1", "o-2", "o-3", "o-4"])
        return world.decided()

    assert ["review", "block", "block", "review"] == run_virtual(main, START_MS)


@pytest.mark.parametrize(
    ("limit", "fallback", "said"),
    [
        (Limit("explode", an_entity=1), review, "no such action"),
        (Limit("block", an_entity=1), None, "needs a fallback"),
        (Limit("review", an_entity=1), review, "is the fallback"),
        (Limit("block"), review, "an_entity, a_minute or both"),
        (Limit("block", a_minute=0), review, "at least 1"),
        (Limit("block", an_entity=1, within="25h"), review, "more than 1d"),
        (Limit("block", an_entity=1, within="soon"), review, "not a duration"),
    ],
)
def test_limit_that_cannot_hold_is_refused(limit: Limit, fallback: Fallback | None, said: str) -> None:
    """A mistake is found where the agent is declared."""
    with pytest.raises(SetupError, match=said):
        make_agent(policy=Policy(limits=(limit,)), fallback=fallback)
