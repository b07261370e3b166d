"""The whole way: an alert, a decision on `agent.decisions`, its effects."""

from app.core.clock import Clock, run_virtual
from tests.decisions_kit import START_MS, World, answering, large_order, make_agent, until, with_actions


def test_path_blocked_alert_makes_each_effect_once() -> None:
    """A blocked order: one acknowledged decision, two posts with their keys, both effects done."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        agent = with_actions(make_agent())
        async with world.running(world.agent_work(agent), world.actions_work(agent)):
            world.send(large_order())
            await until(lambda: set(world.states().values()) == {"done"})
        assert ["block"] == world.decided()
        assert [
            "ask_model:block_order:large_order:u-1:o-1",
            "ask_model:notify:large_order:u-1:o-1",
        ] == world.receiver.called_keys()

    run_virtual(main, START_MS)


def test_path_without_addresses_logs_effects() -> None:
    """Without an address an effect is logged, its state says so, and nobody is called."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        world.addresses.clear()
        agent = with_actions(make_agent())
        async with world.running(world.agent_work(agent), world.actions_work(agent)):
            world.send(large_order())
            await until(lambda: set(world.states().values()) == {"logged"})
        assert {"block_order": "logged", "notify": "logged"} == world.states()
        assert [] == world.receiver.calls

    run_virtual(main, START_MS)


def test_path_review_asks_a_person_once() -> None:
    """A review is one request on `agent.reviews`, at the partition of its alert."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock, answering("review"))
        agent = with_actions(make_agent())
        async with world.running(world.agent_work(agent), world.actions_work(agent)):
            world.send(large_order())
            await until(lambda: world.states() == {"queue": "done"})
        assert ["ask_model:queue:large_order:u-1:o-1"] == [request.review_id for request in world.reviews()]
        alert, request = world.records("processed.alerts")[0], world.records("agent.reviews")[0]
        assert (alert.partition, alert.key) == (request.partition, request.header("entity"))

    run_virtual(main, START_MS)
