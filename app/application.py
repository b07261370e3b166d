"""`App`: what one application consists of. A registry; nothing runs here.

    app = App(features=[records, fraud])

    @app.agent("processed.alerts", alert=HighValueOrder, decides=FraudDecision, fallback=review)
    async def judge_order(alert: HighValueOrder, context: Context) -> FraudDecision: ...

A worker loads it by name (`-A agents:app`) and runs what it declares.
"""

from collections.abc import Awaitable, Callable, Iterable
from types import ModuleType
from typing import Any, Protocol

import msgspec

from app.broker.topics import TopicRegistry, dead_letters_of
from app.core.errors import SetupError
from app.decisions.agent import CONCURRENCY, DEADLINE, MAX_AGE, MAX_ATTEMPTS, Agent
from app.decisions.context import Context
from app.decisions.decision import Decision, Fallback
from app.decisions.limits import require_parts
from app.decisions.policy import Policy
from app.decisions.record import decision_topic, effect_topic, review_topic, switch_topic
from app.decisions.switches import require_own_names
from app.models.budget import Budget
from app.serving.base import View, view_of
from app.streams.generations import TOPIC as GENERATIONS
from app.streams.generations import Known, numbered
from app.streams.graph import Topic
from app.streams.kept_jobs import TOPIC as FLINK_JOBS
from app.streams.outputs import ALERT_PARTITIONS, topics_of
from app.streams.pipelines import (
    AlertPipeline,
    LivePipeline,
    Pipeline,
    Source,
    fingerprint,
    pipelines_in,
    raised_by,
    sources_of,
    table_of,
    unique_names,
)

STREAMS_GROUP = "headrace.streams"
GATES_GROUP = "headrace.gates"
"""What the groups begin with in which workers judge the records of one topic each, while its streams run on Flink."""
FLINK_GROUP = "headrace.flink"
"""What the groups begin with in which Flink's jobs commit their source offsets, each generation in its own."""

Rule = Callable[..., Decision]


class Publishing(Protocol):
    """What publishes an event: `broker.publisher.Publisher`."""

    async def confirm(self, event: msgspec.Struct) -> object: ...


class App:
    """Topics, streams, views and agents of one application.

    features: modules whose variables are topics and pipelines; a pipeline's name is its variable's. alert_partitions: of
    each topic of alerts, and so of decisions, effects and reviews: at most so many workers decide at the same time.
    Raises: SetupError for names that are taken and declarations that contradict each other.
    """

    def __init__(self, features: Iterable[ModuleType], *, alert_partitions: int = ALERT_PARTITIONS) -> None:
        self._alert_partitions = alert_partitions
        self.pipelines: dict[str, Pipeline] = {}
        self.sources: dict[str, Source] = {}
        self.agents: dict[str, Agent[Any]] = {}
        self.rules: dict[str, Rule] = {}
        self._publisher: Publishing | None = None
        for module in features:
            self._include(module)
        unique_names(self.pipelines)

    def _include(self, module: ModuleType) -> None:
        pipelines = pipelines_in(module)
        for name, pipeline in pipelines.items():
            if self.pipelines.setdefault(name, pipeline) is not pipeline:
                raise SetupError(f"{module.__name__}.{name}", "another module declares a pipeline of this name")
        topics = [value.source for value in vars(module).values() if isinstance(value, Topic)]
        self.sources = sources_of(pipelines.values(), [*self.sources.values(), *topics])

    def number(self, known: Known) -> None:
        """Gives its pipelines the generations that they are on a cluster; until then each is the first one.

        Raises: SetupError for a changed declaration that has no topics there.
        """
        self.pipelines = numbered(self.pipelines, known)

    @property
    def topics(self) -> TopicRegistry:
        """Every topic that the application reads or writes."""
        registry = TopicRegistry()
        for spec in topics_of(self.sources.values(), self.pipelines, self._alert_partitions):
            registry.add(spec)
        alert_topics = [registry.named(name) for name in sorted({agent.topic for agent in self.agents.values()})]
        if alert_topics:
            decisions = decision_topic(alert_topics)
            dead = dead_letters_of(decisions)
            for spec in (decisions, effect_topic(decisions), review_topic(decisions), switch_topic(), dead):
                registry.add(spec)
        if any(table_of(name, pipeline) for name, pipeline in self.pipelines.items()):
            registry.add(GENERATIONS)
        if self.pipelines:
            registry.add(FLINK_JOBS)
        return registry

    @property
    def alert_tags(self) -> frozenset[str]:
        """`alert_type` of every alert that the streams raise or an agent decides."""
        raised = {raised.tag for p in self.pipelines.values() if (raised := raised_by(p)) is not None}
        return frozenset(raised.union(*(agent.alert_types for agent in self.agents.values())))

    @property
    def views(self) -> dict[str, View]:
        """The served views, by name."""
        return {
            pipeline.view: msgspec.structs.replace(
                view_of(pipeline, pipeline.stream.source.spec.partitions, fingerprint(pipeline)),
                comparable=pipeline.comparable and self._alerts_are_seen_by(pipeline),
            )
            for pipeline in self.pipelines.values()
            if isinstance(pipeline, LivePipeline)
        }

    def _alerts_are_seen_by(self, view: LivePipeline) -> bool:
        """Whether the view takes every record that raises an alert: `once` may drop some that alerts do not drop."""
        rule, source = view.stream.once_rule, view.stream.source.spec.name
        return rule is None or all(
            alert.stream.once_rule == rule
            for alert in self.pipelines.values()
            if isinstance(alert, AlertPipeline) and alert.stream.source.spec.name == source
        )

    def agent(
        self,
        topic: str,
        *,
        alert: Any,
        decides: type[Decision],
        fallback: Fallback | None = None,
        policy: Policy | None = None,
        concurrency: int = CONCURRENCY,
        deadline: str = DEADLINE,
        max_attempts: int = MAX_ATTEMPTS,
        max_age: str = MAX_AGE,
        budget: Budget | None = None,
        rules: Rule | None = None,
    ) -> Callable[[Callable[[Any, Context], Awaitable[Any]]], Agent[Any]]:
        """Declares the agent that decides alerts of one topic; see `decisions.agent.Agent`.

        rules: what answers in the model's place with `--model rules`; called with what `context.decide` is shown.
        """

        def declare(handler: Callable[[Any, Context], Awaitable[Any]]) -> Agent[Any]:
            partitions = self.topics.named(topic).partitions
            agent = Agent(
                handler,
                topic,
                alert=alert,
                decides=decides,
                fallback=fallback,
                policy=policy,
                concurrency=concurrency,
                deadline=deadline,
                max_attempts=max_attempts,
                max_age=max_age,
                budget=budget,
            )
            if agent.name in self.agents:
                raise SetupError(f"agent {agent.name}", "the name is taken; it names a consumer group")
            require_parts(agent.policy.limits, f"agent {agent.name}", partitions)
            require_own_names({**self.agents, agent.name: agent})
            self.agents[agent.name] = agent
            if rules is not None:
                self.rules[agent.name] = rules
            return agent

        return declare

    def connect(self, publisher: Publishing | None) -> None:
        """Where `publish` publishes; a running worker connects its own."""
        self._publisher = publisher

    async def publish(self, event: msgspec.Struct) -> None:
        """Publishes an event to the topic that carries its type; returns when the broker has acknowledged it. For many
        events at once there is `broker.publisher.Publisher.typed`.

        Raises: SetupError outside a worker or for a type without a topic; RecordError for this event alone;
        Unavailable; Rejected. On cancellation the event may or may not be published.
        """
        if self._publisher is None:
            raise SetupError("publish", "nothing is connected; publish inside a worker, or use `python -m app send`")
        await self._publisher.confirm(event)
