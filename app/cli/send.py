"""`send`: one record to a topic, checked against the topic's type before it goes."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli import output
from app.cli.loading import DEFAULT_APP, AppOption, BrokerOption, load_app, open_cluster, settings

if TYPE_CHECKING:
    import msgspec

    from app.broker.base import Broker, Confirmation
    from app.broker.topics import TopicRegistry


def send(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="A declared topic; `topics list` has them.")],
    event: Annotated[str, typer.Argument(metavar="JSON", help="The record's value.")],
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
    json: output.JsonOption = False,
) -> None:
    """Publish one event: its key and its time come from its fields. Waits until the broker has it.

    Example: `python -m app send raw.orders '{"order_id": "o-1", "user_id": "u-1", "amount_usd": 12.50, "status":
    "placed", "timestamp": "2026-11-24T10:00:00Z"}'`
    """
    import asyncio

    registry = load_app(app).topics
    decoded = decode(registry, topic, event)
    confirmation = asyncio.run(_confirm(open_cluster(settings(broker=broker)), registry, decoded))
    if json:
        output.json_line({"topic": topic, **confirmation._asdict()})
    else:
        output.line(confirmation.place_in(topic))


def decode(registry: "TopicRegistry", topic: str, event: str) -> "msgspec.Struct":
    """The event as the topic's type.

    Raises: SetupError for a topic without one; BadRecord for a value that the topic's reader would refuse.
    """
    import msgspec

    from app.core.codec import to_cents
    from app.core.errors import BadRecord, SetupError
    from app.streams.expressions import Kind, field_kinds

    declared: Any = registry.named(topic).type
    if declared is None:
        raise SetupError(topic, "carries no declared record type, so nothing can be sent to it by hand")
    try:
        decoded: msgspec.Struct = msgspec.json.decode(event.encode(), type=declared)
    except UnicodeEncodeError:
        raise BadRecord("the value is not UTF-8", topic=topic) from None
    except msgspec.DecodeError as error:
        raise BadRecord(str(error), topic=topic) from None
    for name in (name for name, kind in field_kinds(type(decoded)).items() if kind is Kind.MONEY):
        try:
            to_cents(getattr(decoded, name))
        except ValueError as error:
            raise BadRecord(f"{name}: {error}", topic=topic) from None
    return decoded


async def _confirm(broker: "Broker", registry: "TopicRegistry", event: "msgspec.Struct") -> "Confirmation":
    from app.broker.publisher import Publisher

    producer = broker.producer()
    try:
        await producer.start()
        return await Publisher(producer, registry).typed(type(event)).confirm(event)
    finally:
        await producer.close()
        await broker.close()
