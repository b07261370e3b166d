"""`dead list|show|replay`: records that could not be handled, with the reason and their original bytes."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli import dead_replay, output
from app.cli.loading import DEFAULT_APP, AppOption, BrokerOption, load_app, open_cluster, settings

if TYPE_CHECKING:
    from app.broker.base import Broker
    from app.broker.dead_letters import Letter

NOT_THERE = 1
"""Exit code of `show` where no letter lies."""

NOT_OURS = "no letter of ours"
"""In the place of a reason, for what somebody else has written into a dead-letter topic."""

SHOWN_CHARACTERS = 60

commands = typer.Typer(no_args_is_help=True, help="Dead letters: what could not be handled, and why.")
commands.command("replay")(dead_replay.replay)


@commands.command("list")
def list_letters(
    topic: Annotated[
        str | None, typer.Argument(metavar="[TOPIC]", help="Only of this topic, such as `raw.orders`; else of all.")
    ] = None,
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
    newest: Annotated[int, typer.Option(min=1, help="So many of each partition.")] = 100,
    json: output.JsonOption = False,
) -> None:
    """List dead letters, the last one of each record and group.

    Example: `python -m app dead list raw.orders --json`
    """
    import asyncio

    registry = load_app(app).topics
    names = [spec.name for spec in registry.all() if spec.name.endswith(".dead")]
    if topic is not None:
        names = [dead_replay.letters_of(registry, topic).name]
    letters = asyncio.run(_read(open_cluster(settings(broker=broker)), names, newest))
    letters.sort(key=lambda letter: letter.written_ms)
    if json:
        for letter in letters:
            output.json_line(as_json(letter))
    elif not letters:
        output.note("no dead letters")
    else:
        output.table(
            ("letter", "record", "group", "reason", "replay", "value"),
            [
                (
                    "/".join(map(str, letter.lies_at)),
                    _record(letter),
                    letter.group,
                    letter.reason if letter.is_ours else NOT_OURS,
                    _replay(letter),
                    shortened(letter.value),
                )
                for letter in letters
            ],
        )
        output.note(f"{output.counted(len(letters), 'dead letter')}; `dead show LETTER` shows one whole")


@commands.command()
def show(
    place: Annotated[
        str, typer.Argument(metavar="LETTER", help="Where it lies, as `dead list` says: raw.orders.dead/3/17.")
    ],
    broker: BrokerOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="Write nothing but the original value, byte by byte.")] = False,
    json: output.JsonOption = False,
) -> None:
    """Show one dead letter: the reason, where its record was, and the original bytes.

    Example: `python -m app dead show raw.orders.dead/3/17 --raw > order.json`
    """
    import asyncio
    import sys

    from app.core.errors import SetupError

    topic, _, numbers = place.partition("/")
    partition, _, offset = numbers.partition("/")
    if not partition.isdigit() or not offset.isdigit():
        raise SetupError("LETTER", f"{place!r} is not TOPIC/PARTITION/OFFSET, such as raw.orders.dead/3/17")
    letter = asyncio.run(_find(open_cluster(settings(broker=broker)), topic, int(partition), int(offset)))
    if letter is None:
        output.error(f"{place}: no letter lies there (any more)")
        raise typer.Exit(NOT_THERE)
    if raw:
        sys.stdout.buffer.write(letter.value or b"")
    elif json:
        output.json_line(as_json(letter))
    else:
        for name, value in as_json(letter).items():
            if name == "headers":
                for header, text in value.items():
                    output.line(f"header {header}: {text}")
            else:
                output.line(f"{name:12} {'' if value is None else value}")


async def _read(broker: "Broker", names: list[str], newest: int) -> "list[Letter]":
    from app.broker.dead_letters import read_letters

    admin, reader = broker.admin(), broker.reader()
    try:
        described = await admin.describe(names)
        return [
            letter
            for name, found in described.items()
            if found is not None
            async for letter in read_letters(reader, name, found.partitions, newest)
        ]
    finally:
        await reader.close()
        await admin.close()
        await broker.close()


async def _find(broker: "Broker", topic: str, partition: int, offset: int) -> "Letter | None":
    from app.broker.dead_letters import read_letter
    from app.core.record import TopicPartition

    reader = broker.reader()
    try:
        return await read_letter(reader, TopicPartition(topic, partition), offset)
    finally:
        await reader.close()
        await broker.close()


def _record(letter: "Letter") -> str:
    """Where the record of a letter was, as far as it had a place."""
    if not letter.is_ours:
        return ""
    return f"{letter.topic}/{letter.partition}/{letter.offset}" if letter.offset >= 0 else letter.topic


def _replay(letter: "Letter") -> str:
    before = "" if not letter.replays else "once before" if letter.replays == 1 else f"{letter.replays} times before"
    return ", ".join(filter(None, (before, letter.replay)))


def as_json(letter: "Letter") -> dict[str, Any]:
    """A letter as JSON. Bytes are text where they are UTF-8; else `value_base64` holds them. headers: those that a letter
    has beside its own, whoever wrote them. Places and times that it never had are null."""
    from base64 import b64encode

    shown: dict[str, Any] = {
        "letter": "/".join(map(str, letter.lies_at)),
        "reason": letter.reason if letter.is_ours else NOT_OURS,
        "topic": letter.topic,
        "partition": letter.partition if letter.partition >= 0 else None,
        "offset": letter.offset if letter.offset >= 0 else None,
        "group": letter.group,
        "timestamp_ms": letter.timestamp_ms if letter.timestamp_ms >= 0 else None,
        "written_ms": letter.written_ms,
    }
    if letter.replays or letter.replay:
        shown |= {"replays": letter.replays, "replay": letter.replay or None}
    if letter.headers:
        shown["original_headers"] = {name: text.decode(errors="replace") for name, text in letter.headers}
    if letter.length is not None:
        shown |= {"length": letter.length, "sha256": letter.sha256}
    for name, data in (("key", letter.key), ("value", letter.value)):
        try:
            shown[name] = None if data is None else data.decode()
        except UnicodeDecodeError:
            shown[f"{name}_base64"] = b64encode(data or b"").decode()
    return shown | {"headers": letter.more}


def shortened(value: bytes | None) -> str:
    """The beginning of a value, for a table: whatever cannot be shown is escaped."""
    if value is None:
        return "null"
    text = value[:SHOWN_CHARACTERS].decode(errors="backslashreplace")
    text = "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)
    return text + ("…" if len(value) > SHOWN_CHARACTERS else "")
