"""What tests of the use cases share: alerts of declared streams over a few events, and a loopback receiver."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.application import App
from app.broker.memory import MemoryBroker
from app.broker.publisher import HEARTBEAT
from app.core.clock import Clock, run_virtual
from app.core.codec import encode
from app.core.instants import instant_ms
from app.serving.base import Features, Freshness, OwnEvent
from app.streams.engine import Engine
from features import records
from tests.decisions_kit import until

START_MS, DAY_MS = 1_800_000_000_000, 86_400_000


def alerts_of(module: ModuleType, events: Iterable[msgspec.Struct], until_ms: int) -> list[dict[str, Any]]:
    """The alerts that a module's streams raise for events in this order, read until a moment of event time."""

    async def main(clock: Clock) -> list[dict[str, Any]]:
        app, broker = App(features=[records, module]), MemoryBroker(clock)
        await broker.admin().create(app.topics.all())
        producer = broker.producer()
        for event in events:
            spec = next(spec for spec in app.topics.all() if spec.type is type(event))
            key = getattr(event, str(spec.key)).encode()
            await producer.send(spec.name, encode(event), key, timestamp_ms=instant_ms(event.timestamp))  # type: ignore[attr-defined]
        for name, source in app.sources.items():
            for partition in range(source.spec.partitions):
                await producer.send(name, HEARTBEAT, None, partition=partition, timestamp_ms=until_ms)
        engine = Engine(broker, list(app.sources.values()), app.pipelines, clock, "streams")
        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(engine.run(stopping))
            await asyncio.sleep(5)
            stopping.set()
        return [
            msgspec.json.decode(record.value or b"")
            for place, log in broker.logs.items()
            if place.topic == "processed.alerts"
            for record in log
        ]

    return run_virtual(main, until_ms + DAY_MS)


def features_of(view: str, entity: str, **values: Any) -> Features:
    """Fresh features that hold the own event."""
    return Features(
        view=view,
        entity=entity,
        values=values,
        window_end_ms=START_MS,
        as_of_ms=START_MS,
        age_ms=0,
        freshness=Freshness.FRESH,
        own_event=OwnEvent.SEEN,
    )


@asynccontextmanager
async def listening(routes: Mapping[str, Callable[[Request], Awaitable[Response]]]) -> AsyncIterator[str]:
    """A service on a free loopback port, by path; gives its address."""
    app = Starlette(routes=[Route(path, receive, methods=["POST"]) for path, receive in routes.items()])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
        running = asyncio.create_task(server.serve([listener]))
        await until(lambda: server.started, 10)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running
