"""The whole system in one process: memory broker, memory store, asyncio engine, agents and actions, and a scenario.

Under the virtual clock it runs as fast as it can and gives the same counts for the same seed; under the machine's clock
a person can watch it.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator

import anyio
import msgspec

from app.application import App
from app.broker.memory import MemoryBroker
from app.core.clock import Clock
from app.core.errors import Unavailable
from app.core.record import TopicPartition
from app.core.settings import Settings
from app.models.base import Model
from app.serving.memory import MemoryStore
from app.sources.generator import Publication, play
from app.worker import Worker

Scenario = Callable[[int, int, int], Iterator[Publication]]
"""(events, seed, start_ms) -> that many publications."""

SETTLE_STEP_S = 0.1
SETTLE_LIMIT_S = 120.0


class Summary(msgspec.Struct, kw_only=True):
    """What a run of the demo came to. seconds: on `clock`. late: by pipeline; alerts: by type; decisions: of each agent by
    action; effects: ended ones by name; dead_letters: records on all dead-letter topics."""

    clock: str
    seconds: float
    events: int
    malformed: int
    late: dict[str, int]
    alerts: dict[str, int]
    decisions: dict[str, dict[str, int]]
    effects: dict[str, int]
    dead_letters: int


class Demo:
    """One run. `broker`, `worker` and `published` can be watched while it runs."""

    def __init__(self, app: App, settings: Settings, model: Model, clock: Clock) -> None:
        self.app = app
        self.clock = clock
        self.broker = MemoryBroker(clock)
        self.store = MemoryStore(clock)
        self.worker = Worker(app, settings, broker=self.broker, store=self.store, model=model, clock=clock)
        self.published = 0
        self._alerts = Counter(dict.fromkeys(_types_of_alerts(app), 0))
        self._counted_alerts: Counter[TopicPartition] = Counter()

    async def run(self, scenario: Scenario, events: int, seed: int, clock_name: str) -> Summary:
        """Plays the scenario to its end, waits until every alert has come to its end, and stops the worker."""
        started_ms = self.clock.now_ms()
        await self.broker.admin().create(self.app.topics.all())
        stopping, ready = asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.worker.run(stopping, ready))
            await ready.wait()
            producer = self.broker.producer()
            await play(self._counted(scenario(events, seed, started_ms)), producer, self.clock)
            await self._settled()
            stopping.set()
        seconds = (self.clock.now_ms() - started_ms) / 1000
        return self.summary(clock_name, seconds)

    def _counted(self, publications: Iterator[Publication]) -> Iterator[Publication]:
        for publication in publications:
            self.published += 1
            yield publication

    async def _settled(self) -> None:
        """Waits until every group has committed everything there is."""
        with anyio.move_on_after(SETTLE_LIMIT_S):
            while not self._is_settled():  # noqa: ASYNC110 - a few groups, none of which tells
                await asyncio.sleep(SETTLE_STEP_S)
            return
        raise Unavailable(f"the demo did not come to its end within {SETTLE_LIMIT_S:.0f} s")

    def _is_settled(self) -> bool:
        return all(
            committed.offset == len(self.broker.logs[place])
            for group in self.broker.groups.values()
            for place, committed in group.committed.items()
        ) and all(self._has_commits(name) for name in self.broker.groups)

    def _has_commits(self, group_name: str) -> bool:
        """Whether every partition that holds records has a commit of the group; the materializer commits to its store."""
        group = self.broker.groups[group_name]
        if not group.committed and group_name.endswith(".features"):
            return True
        return all(place in group.committed or not self.broker.logs[place] for place in group.owner)

    def summary(self, clock_name: str, seconds: float) -> Summary:
        """The counts so far."""
        engine, actions = self.worker.engine, self.worker.actions
        decisions = {
            name: {action: work.statistics.decided[action] for action in work.agent.actions_allowed}
            for name, work in self.worker.agents.items()
        }
        effects: Counter[str] = Counter()
        for agent in self.app.agents.values():
            effects.update(dict.fromkeys(agent.action_names, 0))
        for name_and_state, count in (actions.statistics.effects if actions else {}).items():
            effects[name_and_state.partition(":")[0]] += count
        return Summary(
            clock=clock_name,
            seconds=seconds,
            events=self.published,
            malformed=engine.statistics.malformed if engine else 0,
            late=dict(sorted(engine.statistics.late.items())) if engine else {},
            alerts=self._count_alerts(),
            decisions=decisions,
            effects=dict(effects),
            dead_letters=sum(len(log) for place, log in self.broker.logs.items() if place.topic.endswith(".dead")),
        )

    def _count_alerts(self) -> dict[str, int]:
        """By type, with those that are new in the logs."""
        topics = {agent.topic for agent in self.app.agents.values()}
        for place, log in self.broker.logs.items():
            if place.topic in topics:
                new = log[self._counted_alerts[place] :]
                self._alerts.update((record.header("alert_type") or b"").decode() for record in new)
                self._counted_alerts[place] += len(new)
        return dict(self._alerts)


def _types_of_alerts(app: App) -> list[str]:
    """Of every agent, in the order of their declaration."""
    return [tag for agent in app.agents.values() for tag in agent.alert_types]
