"""Which generation a declaration is, and what its tables are called."""

import asyncio

import pytest

from app.broker.memory import MemoryBroker
from app.core.clock import ManualClock
from app.core.errors import SetupError
from app.streams.generations import PLACE, TOPIC, add_generations, known_generations, numbered, others
from app.streams.graph import count
from app.streams.pipelines import LivePipeline, Pipeline, fingerprint, table_of
from features.fraud import high_value_orders
from features.records import order_events


def declared(size: str) -> dict[str, Pipeline]:
    return {
        "rate": order_events.tumbling(size).aggregate(n=count()).to("rates"),
        "view": order_events.live(size, tile="30s").aggregate(n=count()).serve("orders"),
        "large": high_value_orders,
    }


def tables(pipelines: dict[str, Pipeline]) -> list[str | None]:
    return [table_of(name, pipeline) for name, pipeline in pipelines.items()]


def added(*versions: dict[str, Pipeline]) -> MemoryBroker:
    """A broker on which the topics of these versions were made, one after the other."""
    broker = MemoryBroker(ManualClock(0))
    for version in versions:
        asyncio.run(add_generations(broker, version))
    return broker


def known_to(broker: MemoryBroker) -> dict[str, list[str]]:
    return dict(asyncio.run(known_generations(broker)))


def test_generations_have_the_number_of_their_first_appearance() -> None:
    """The first has the plain name, and a declaration that comes back has the number that it had."""
    broker = added(declared("1m"), declared("2m"), declared("1m"))
    known = known_to(broker)
    assert ["state.rate", "features.orders", None] == tables(numbered(declared("1m"), known))
    second = numbered(declared("2m"), known)
    assert ["state.rate.2", "features.orders.2", None] == tables(second)
    assert "rates" == second["rate"].topic
    assert 4 == len(broker.log(PLACE))


def test_generation_does_not_change_what_is_computed() -> None:
    """The number is no part of the declaration, or it would make another one."""
    view = numbered(declared("2m"), known_to(added(declared("1m"), declared("2m"))))["view"]
    assert isinstance(view, LivePipeline)
    assert fingerprint(declared("2m")["view"]) == fingerprint(view)


def test_generations_before_anything_was_made_are_first_ones() -> None:
    """A cluster whose topics somebody else makes has no log."""
    assert ["state.rate", "features.orders", None] == tables(numbered(declared("1m"), known_to(added())))


def test_generation_without_topics_is_refused() -> None:
    """A worker of a changed declaration names the command that makes them."""
    with pytest.raises(SetupError, match=r"rate: its declaration has changed, .*python -m app topics create"):
        numbered(declared("2m"), known_to(added(declared("1m"))))


def test_generations_that_two_added_at_once_count_once() -> None:
    """Two who read the log before either has written agree afterwards: what stands first counts."""
    broker = added(declared("1m"))
    for record in list(broker.log(PLACE)):
        broker.append(TOPIC.name, record.value, record.key, 0, 0, ())
    asyncio.run(add_generations(broker, declared("2m")))
    assert ["state.rate.2", "features.orders.2", None] == tables(numbered(declared("2m"), known_to(broker)))


def test_generations_of_others_are_all_but_the_declared_one() -> None:
    """What may be deleted when only this declaration is used."""
    known = known_to(added(declared("1m"), declared("2m"), declared("3m")))
    found = {table_of(name, pipeline) for name, pipeline in others(declared("2m"), known)}
    assert {"state.rate", "features.orders", "state.rate.3", "features.orders.3"} == found


def test_generations_log_that_is_none_is_named() -> None:
    """Records of somebody else are no numbers."""
    broker = added(declared("1m"))
    broker.append(TOPIC.name, b"{}", None, 0, 0, ())
    with pytest.raises(SetupError, match=r"streams.generations: holds what these streams did not write"):
        known_to(broker)
