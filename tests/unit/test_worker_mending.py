"""A worker looks after what it owns: an older state that a frozen one wrote behind its own does not stay the last."""

import asyncio

from agents import app
from app.core.clock import Clock, run_virtual
from app.core.record import Record
from app.decisions.actions import MEND_S
from app.decisions.record import EFFECTS
from tests.unit.test_worker import START_MS, Process, order, process


def test_worker_overwrites_an_older_state_of_an_effect() -> None:
    """The actions part does it every minute, beside its decisions."""

    async def main(clock: Clock) -> None:
        made, stopping, ready = await process(clock), asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(made.worker.run(stopping, ready))
            await ready.wait()
            await asyncio.sleep(1)
            await app.publish(order(clock, "o-1", "90000.00"))
            await asyncio.sleep(2)
            first, *_, last = effects(made)
            made.broker.append(EFFECTS, first.value, first.key, first.partition, 0, ())
            await asyncio.sleep(MEND_S)
            stopping.set()
        assert first.value != last.value
        assert states(last) == states(effects(made)[-1])

    run_virtual(main, START_MS)


def effects(made: Process) -> list[Record]:
    return [record for place, log in made.broker.logs.items() if place.topic == EFFECTS for record in log]


def states(record: Record) -> bytes:
    """Without who wrote them."""
    return (record.value or b"").partition(b'"writer"')[0]
