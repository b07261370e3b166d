"""The running process: which parts it has, how they start, what restarts them, and in which order they stop.

A part that meets an outage (`Unavailable`) is started again with a growing pause: its state lives in topics and the
store, so it goes on where it was. Everything else that a part raises ends the worker.

Stopping: agents and actions take no new records and let running calls finish as long as `drain_ms`; then streams and
features follow. Every part flushes, commits and leaves its group. What had to be cancelled is uncommitted, and the next
owner handles it again. A part that cannot end, because its broker is away, is cancelled before the platform's patience
is over.
"""

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast

import anyio

from app.application import GATES_GROUP, STREAMS_GROUP, App
from app.broker.base import Broker, Producer
from app.broker.publisher import Publisher
from app.core.clock import Clock
from app.core.errors import HeadraceError, SetupError, Unavailable, cause_of
from app.core.garbage import exempt_what_lasts
from app.core.settings import ACTION_URL_PREFIX, Settings
from app.decisions.actions import HANDLER_SECONDS, RETRY, ActionsWork
from app.decisions.agent import Agent
from app.decisions.effects import Receivers
from app.decisions.handling import AgentWork
from app.decisions.record import Mode
from app.decisions.switches import Switches
from app.dispatch.consumer import DispatchConfig, Dispatcher
from app.dispatch.retries import RetryPolicy
from app.http.client import HttpClient
from app.models.base import Model
from app.models.buckets import Buckets
from app.models.budget import Budgets
from app.models.gate import ModelGate
from app.models.pricing import parse_prices
from app.models.rules import require_rules
from app.serving.base import FeatureStore
from app.serving.features import FeatureReader
from app.serving.materializer import Materializer
from app.streams.elsewhere import Elsewhere
from app.streams.engine import Engine
from app.streams.generations import known_generations
from app.streams.handover import handed_to_engine
from app.streams.kept_jobs import require_no_job

logger = logging.getLogger(__name__)

PARTS = ("streams", "features", "agents", "actions")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
CLOSE_S = 5.0
MARGIN_S = 2.0
"""So long before the grace is over everything that still runs is cancelled."""

Run = Callable[[asyncio.Event], Awaitable[None]]


@dataclass
class _Part:
    """One thing that runs. supplies: others need it to finish their work, so it stops after them."""

    name: str
    make: Callable[[], Run]
    supplies: bool = False
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Worker:
    """One process of an application. `run` once.

    parts: some of `PARTS`. model: None where agents are not among them. Whoever owns the broker, store and model closes them.
    """

    def __init__(
        self,
        app: App,
        settings: Settings,
        *,
        broker: Broker,
        store: FeatureStore,
        model: Model | None,
        clock: Clock,
        parts: Sequence[str] = PARTS,
        random: Random | None = None,
    ) -> None:
        unknown = set(parts) - set(PARTS)
        if unknown:
            raise SetupError("--only", f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
        self._app = app
        self._settings = settings
        self._broker = broker
        self._store = store
        self._clock = clock
        self._parts = _acting(parts, settings)
        self._random = random or Random()
        self._gate = _gate(model, settings, clock, app) if model is not None else None
        self._producer: Producer = broker.producer()
        self._reader = broker.reader()
        process = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
        self.switches = Switches(self._producer, self._reader, process=process, mode=cast("Mode", settings.mode))
        self._http = HttpClient()
        self.engine: Engine | None = None
        self.agents: dict[str, AgentWork] = {}
        self.actions: ActionsWork | None = None
        self._dispatchers: dict[str, Dispatcher] = {}
        """The last one of each group."""
        self._abandoned_before = 0
        if ("features" in parts) != ("agents" in parts) and store.address.startswith("memory://"):
            raise SetupError("store", "memory:// is seen by one process only; features and agents must both run in it")
        self._require_fitting_times()
        self._require_known_actions()
        if settings.model == "rules" and "agents" in parts:
            require_rules(app.rules, app.agents)

    def _require_fitting_times(self) -> None:
        """Model attempt < deadline < drain < grace, and an effect's handler < drain, or they could not end where they
        should."""
        drain_ms, grace_ms = self._settings.drain_ms, self._settings.grace_ms
        if not drain_ms + MARGIN_S * 1000 <= grace_ms:
            raise SetupError(
                "grace_ms", f"must be {MARGIN_S:.0f} s longer than drain_ms, {drain_ms} ms, to commit and leave"
            )
        if "actions" in self._parts and not self._settings.action_timeout_ms + HANDLER_SECONDS * 1000 < drain_ms:
            raise SetupError(
                "action_timeout_ms",
                f"must be {HANDLER_SECONDS:.0f} s shorter than drain_ms, {drain_ms} ms: so long may an action take beside it",
            )
        for agent in self._app.agents.values():
            if not self._settings.model_attempt_ms < agent.deadline_ms:
                raise SetupError(
                    "model_attempt_ms", f"must be shorter than the deadline of {agent.name}, {agent.deadline_ms} ms"
                )
            if not agent.deadline_ms < self._settings.drain_ms:
                raise SetupError(
                    "drain_ms", f"must be longer than the deadline of {agent.name}, {agent.deadline_ms} ms"
                )

    def _require_known_actions(self) -> None:
        known = {name for agent in self._app.agents.values() for name in agent.action_names}
        unknown = self._settings.action_urls.keys() - known
        if unknown:
            names = ", ".join(sorted(unknown))
            raise SetupError("action_urls", f"no action is called {names}; there are {', '.join(sorted(known))}")

    def _tell_missing_addresses(self) -> None:
        """Not in a demo, where nothing outlives the process anyway."""
        if "actions" not in self._parts or self._broker.address.startswith("memory://"):
            return
        names = {name for agent in self._app.agents.values() for name in agent.action_names}
        missing = sorted(names - self._settings.action_urls.keys())
        if missing:
            logger.warning(
                "without an address, so that what they post is only logged: %s; set %s%s and so on, unless they only ask people "
                "or report incidents",
                ", ".join(missing),
                ACTION_URL_PREFIX,
                missing[0].upper(),
            )

    async def run(self, stopping: asyncio.Event, ready: asyncio.Event | None = None) -> None:
        """Until `stopping` is set, then drains and returns. `ready` is set when all servers have
        answered and every part begins.

        On cancellation everything ends at once, uncommitted.
        Raises: SetupError for missing topics; Unavailable within 10 s when a server does not answer; Rejected.
        """
        exempt_what_lasts()
        logger.debug("settings %s", self._settings.redacted())
        parts = self._runs()
        try:
            self._app.number(await known_generations(self._broker))
            await self._require_topics()
            if "streams" in self._parts and self._settings.engine == "asyncio":
                await require_no_job(self._broker, self._app.sources)
            if set(self._parts) != {"features"}:  # which only reads: a producer needs the right to write somewhere
                await self._producer.start()
            if {"features", "agents"} & set(self._parts):
                await self._store.start()
            if any(part.name == "switches" for part in parts):
                await self.switches.load()
            self._app.connect(Publisher(self._producer, self._app.topics))
            async with asyncio.TaskGroup() as tasks:
                for part in parts:
                    part.task = tasks.create_task(self._supervise(part), name=part.name)
                tasks.create_task(self._stop_in_order(parts, stopping))
                addresses = self._broker.address, self._store.address
                logger.info("running %s on %s, features in %s", ", ".join(self._parts), *addresses)
                self._tell_missing_addresses()
                if ready is not None:
                    ready.set()
        except BaseExceptionGroup as group:
            raise cause_of(group) from None
        finally:
            self._app.connect(None)
            await self._close()
        left = self._abandoned() - self._abandoned_before
        logger.info(
            "stopped; %s", f"the next worker handles {left} that are not finished" if left else "nothing is left over"
        )

    async def _stop_in_order(self, parts: Sequence[_Part], stopping: asyncio.Event) -> None:
        """Those that decide and act first, since they need what the others give; all within the grace while the broker
        answers. Without it leaving takes some 20 s more, and saves nothing: whoever is killed then has lost no more."""
        await stopping.wait()
        self._abandoned_before = self._abandoned()
        running = sum(one.statistics().in_flight for one in self._dispatchers.values())
        logger.info(
            "stopping: %s, for up to %.0f s; a second SIGTERM or Ctrl-C ends at once",
            "1 handler runs" if running == 1 else f"{running} handlers run",
            self._settings.drain_ms / 1000,
        )
        limit_s = max(self._settings.drain_ms, self._settings.grace_ms - MARGIN_S * 1000) / 1000
        with anyio.move_on_after(limit_s):
            for supplies in (False, True):
                phase = [part for part in parts if part.supplies is supplies]
                for part in phase:
                    part.stopping.set()
                for part in phase:
                    await part.ended.wait()
        for part in parts:
            if part.task is not None and not part.ended.is_set():
                logger.warning("%s: not ended after %.0f s, ends uncommitted", part.name, limit_s)
                part.task.cancel()

    async def _close(self) -> None:
        """Closes what the parts share, whatever becomes of each."""
        gate = [self._gate.close] if self._gate is not None else []
        for close in (*gate, self._http.close, self._producer.close, self._reader.close):
            with anyio.move_on_after(CLOSE_S, shield=True):
                try:
                    await close()
                except HeadraceError as error:
                    logger.warning("while closing: %s", error)

    async def _require_topics(self) -> None:
        """Raises: SetupError for what is missing, or has other partitions than declared: keys would be looked for, and
        decisions written, where they are not."""
        specs = self._app.topics.all()
        admin = self._broker.admin()
        try:
            found = await admin.describe([spec.name for spec in specs])
        finally:
            await admin.close()
        missing = [spec.name for spec in specs if found[spec.name] is None]
        if missing:
            raise SetupError(
                "topics", f"{len(missing)} are missing, such as {missing[0]}; create them: python -m app topics create"
            )
        for spec in specs:
            topic = found[spec.name]
            if topic is not None and topic.partitions != spec.partitions:
                raise SetupError(
                    spec.name,
                    f"has {topic.partitions} partitions, {spec.partitions} are declared; declare what there is, or "
                    "make the topic anew",
                )
            for setting in ("message.timestamp.type", "cleanup.policy"):
                if topic is not None and topic.config.get(setting) not in (None, spec.config()[setting]):
                    raise SetupError(
                        spec.name, f"{setting} is {topic.config[setting]}, {spec.config()[setting]} is declared"
                    )

    def _runs(self) -> list[_Part]:
        parts: list[_Part] = []
        if "streams" in self._parts:
            parts.append(_Part("streams", self._make_streams, supplies=True))
        if "features" in self._parts and self._app.views:
            parts.append(_Part("features", self._make_features, supplies=True))
        if "agents" in self._parts:
            parts += [_Part(f"agent {agent.name}", self._agent_maker(agent)) for agent in self._app.agents.values()]
        if "actions" in self._parts and self._app.agents:
            parts.append(_Part("actions", self._make_actions))
        if self._app.agents and {"agents", "actions"} & set(self._parts):
            parts.append(_Part("switches", lambda: self.switches.run, supplies=True))
        return parts

    def _make_streams(self) -> Run:
        sources, pipelines = list(self._app.sources.values()), self._app.pipelines
        if self._settings.engine == "flink":
            return Elsewhere(self._broker, sources, pipelines, self._clock, GATES_GROUP, STREAMS_GROUP).run

        async def run(stopping: asyncio.Event) -> None:
            await require_no_job(self._broker, self._app.sources)  # again: it may have been away for a while
            handed = await handed_to_engine(self._broker, self._app.sources, pipelines, STREAMS_GROUP, GATES_GROUP)
            self.engine = Engine(self._broker, sources, pipelines, self._clock, STREAMS_GROUP, handed)
            await self.engine.run(stopping)

        return run

    def _make_features(self) -> Run:
        return Materializer(self._broker, self._store, self._app.views).run

    def _agent_maker(self, agent: Agent[Any]) -> Callable[[], Run]:
        gate = self._gate
        assert gate is not None, "agents need a model"

        def make(mode: Mode) -> Run:
            work = AgentWork(
                agent,
                producer=self._producer,
                reader=self._reader,
                features=FeatureReader(self._store, self._clock, self._app.views),
                gate=gate,
                clock=self._clock,
                declared=self._app.alert_tags,
                partitions=self._app.topics.named(agent.topic).partitions,
                switches=self.switches,
                mode=mode,
            )
            self.agents[agent.name] = work
            retry = RetryPolicy(max_attempts=agent.max_attempts, within_ms=agent.deadline_ms)
            return self._dispatcher(
                work, DispatchConfig(concurrency=agent.concurrency, retry=retry, drain_ms=self._settings.drain_ms)
            )

        async def run(stopping: asyncio.Event) -> None:
            while not stopping.is_set():
                mode = self.switches.mode(agent.name)
                if not await self._run_in_mode(agent, mode, make(mode), stopping):
                    return

        return lambda: run

    async def _run_in_mode(self, agent: Agent[Any], mode: Mode, run: Run, stopping: asyncio.Event) -> bool:
        """Runs an agent until it is to stop, or until its mode is another one, and with it its group: then what it had
        begun is cancelled uncommitted, and the answer is True."""
        if mode != "live":
            logger.warning("agent %s runs in mode %s: nobody acts on what it decides", agent.name, mode)
        with anyio.CancelScope() as scope:

            def changed() -> None:
                if self.switches.mode(agent.name) != mode:
                    scope.cancel()

            with self.switches.watched(changed):
                await run(stopping)
        return scope.cancelled_caught

    def _make_actions(self) -> Run:
        settings = self._settings
        receivers = Receivers(
            settings.action_urls,
            settings.action_token,
            settings.action_timeout_ms,
            settings.pagerduty_url,
            settings.pagerduty_routing_key,
        )
        self.actions = ActionsWork(
            self._app.agents.values(),
            producer=self._producer,
            reader=self._reader,
            poster=self._http,
            receivers=receivers,
            clock=self._clock,
            switches=self.switches,
        )
        dispatch = self._dispatcher(self.actions, DispatchConfig(retry=RETRY, drain_ms=settings.drain_ms))
        mend = self.actions.mend

        async def run(stopping: asyncio.Event) -> None:
            try:
                async with asyncio.TaskGroup() as tasks:
                    mending = tasks.create_task(mend())
                    await dispatch(stopping)
                    mending.cancel()
            except BaseExceptionGroup as group:
                raise cause_of(group) from None

        return run

    def _dispatcher(self, work: AgentWork | ActionsWork, config: DispatchConfig) -> Run:
        dispatcher = self._dispatchers[work.group] = Dispatcher(self._broker, work, config, self._random)
        return dispatcher.run

    def _abandoned(self) -> int:
        """Records that were begun or waited, and went to another owner unfinished."""
        return sum(one.statistics().abandoned for one in self._dispatchers.values())

    async def _supervise(self, part: _Part) -> None:
        """Runs a part until it is to stop; after an outage makes it anew."""
        loop = asyncio.get_running_loop()
        pause_s = FIRST_PAUSE_S
        try:
            while not part.stopping.is_set():
                began = loop.time()
                try:
                    await part.make()(part.stopping)
                    return
                except asyncio.CancelledError:
                    assert _is_being_cancelled(), f"{part.name} was cancelled from within"  # or it would end unheard
                    raise
                except Unavailable as error:
                    if _is_being_cancelled():
                        raise  # an outage while being cancelled must not become a new beginning
                    if loop.time() - began > LONGEST_PAUSE_S:  # it was well for a while
                        pause_s = FIRST_PAUSE_S
                    logger.warning("%s: %s; starts again in %.1f s", part.name, error, pause_s)
                with anyio.move_on_after(pause_s):
                    await part.stopping.wait()
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        finally:
            part.ended.set()


def parts_in(mode: str) -> tuple[str, ...]:
    """What a worker runs that was not told: everything, or, where it decides beside the live workers, agents alone. Streams and
    features know no mode: those of such a worker would take partitions of the live ones, and serve what its code computes."""
    return PARTS if mode == "live" else ("agents",)


def _acting(parts: Sequence[str], settings: Settings) -> Sequence[str]:
    """The parts that run in this mode: only a live worker acts. Raises: SetupError when none is left."""
    if settings.mode == "live":
        return parts
    left = tuple(part for part in parts if part != "actions")
    if not left:
        raise SetupError("mode", f"a worker in mode {settings.mode} does not act, and has nothing to do but actions")
    return left


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _gate(model: Model, settings: Settings, clock: Clock, app: App) -> ModelGate:
    """Raises: SetupError for prices that are none, and budgets that cannot be kept."""
    gate = ModelGate(
        model,
        concurrency=settings.model_concurrency,
        attempt_ms=settings.model_attempt_ms,
        buckets=Buckets(
            settings.model_requests_per_minute,
            settings.model_input_tokens_per_minute,
            settings.model_output_tokens_per_minute,
        ),
        budgets=Budgets(clock, parse_prices(settings.model_prices), model.name),
    )
    for agent in app.agents.values():
        gate.declare(agent.name, app.topics.named(agent.topic).partitions, agent.budget)
    return gate
