"""What tests of switches share: switches that are written, followed, and cut off."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from app.broker.memory import MemoryBroker, MemoryReader
from app.core.clock import Clock, run_virtual
from app.core.record import Record, TopicPartition
from app.decisions.agent import Agent
from app.decisions.switches import (
    ModeSwitch,
    Switch,
    Switches,
    write_switch,
)
from tests.decisions_kit import START_MS, OrderDecision, World, answering, large_order, until


def off(name: str, state: Any = "off", reason: str = "") -> Switch:
    return Switch(name=name, state=state, who="ada", reason=reason, at_ms=START_MS)


def in_mode(agent: str, mode: Any) -> ModeSwitch:
    return ModeSwitch(agent=agent, mode=mode, who="ada", reason="", at_ms=START_MS)


async def write(world: World, *written: Switch | ModeSwitch) -> int:
    offset = -1
    for one in written:
        offset = await write_switch(world.broker.producer(), one)
    return offset


class Cut(MemoryReader):
    """A reader whose line may be cut: nothing that is written after that comes through."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.open = asyncio.Event()
        self.open.set()

    async def follow(self, place: TopicPartition, start: int) -> AsyncIterator[list[Record]]:
        async for batch in super().follow(place, start):
            await self.open.wait()
            yield batch


@asynccontextmanager
async def following(world: World, kind: type[Switches] = Switches, **arguments: Any) -> AsyncIterator[Switches]:
    """Switches of a process, loaded and followed."""
    arguments = {"producer": world.broker.producer(), "reader": world.broker.reader(), "process": "one", **arguments}
    switches, stopping = kind(arguments.pop("producer"), arguments.pop("reader"), **arguments), asyncio.Event()
    await switches.load()
    world.switches = switches
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(switches.run(stopping))
        try:
            yield switches
        finally:
            stopping.set()
            await running


def in_world(main: Callable[[World], Awaitable[Any]], answer: str = "block") -> Any:
    """Runs `main(world)` under virtual time."""

    async def run(clock: Clock) -> Any:
        return await main(await World.create(clock, answering(answer)))

    return run_virtual(run, START_MS)


async def decide_and_act(world: World, agent: Agent[OrderDecision], orders: int = 1) -> None:
    """Alerts through agent and actions, until each of their effects has come to its end."""
    for number in range(orders):
        world.send(large_order(order=f"o-{len(world.decisions())}-{number}"))
    works = world.agent_work(agent), world.actions_work(agent)
    decided = len(world.decisions()) + orders
    async with world.running(*works):
        await until(lambda: len(world.decisions()) == decided)
        await until(lambda: len({entry.alert_id for entry in world.effects()}) == decided)
        await until(lambda: all(state not in ("intended", "called") for state in world.states().values()))
