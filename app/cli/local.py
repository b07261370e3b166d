"""`local up|down|status`: Kafka, Redis and Flink on this machine, without Docker."""

from enum import StrEnum
from shlex import quote
from typing import Annotated

import typer

from app.cli import output

commands = typer.Typer(no_args_is_help=True, help="Kafka, Redis and Flink on this machine, without Docker.")


class Only(StrEnum):
    """The servers there are."""

    KAFKA = "kafka"
    REDIS = "redis"
    SECURE_KAFKA = "secure-kafka"
    SECURE_REDIS = "secure-redis"
    FLINK = "flink"


OnlyOption = Annotated[list[Only] | None, typer.Option("--only", help="Just this one; may be given twice.")]

NOT_ALL_RUNNING = 1


@commands.command()
def up(
    only: OnlyOption = None,
    flink: Annotated[bool, typer.Option("--flink", help="A Flink cluster too; needs make setup-flink.")] = False,
    secure: Annotated[
        bool, typer.Option("--secure", help="With TLS, passwords and rights; nobody but the user `admin` has any.")
    ] = False,
    json: output.JsonOption = False,
) -> None:
    """Start the servers on free loopback ports, wait until they answer, print their addresses.

    Called twice it prints the addresses of those that run. Kafka needs Java 17 and, once, Maven.

    Examples: `eval "$(python -m app local up)"` starts them and points this shell's commands at them;
    `eval "$(python -m app local up --secure)"` those with TLS and passwords (`docs/security.md`);
    `eval "$(python -m app local up --flink)"` Flink beside Kafka and Redis.
    """
    from app.local import services

    wanted = _services(only) or (services.SECURE_SERVICES if secure else services.SERVICES)
    if flink:
        wanted = (*wanted, *services.FLINK_SERVICES)
    addresses = services.up(services.DEFAULT_DIRECTORY, wanted)
    if json:
        output.json_line(addresses)
        return
    if addresses.flink:
        output.line(f"export HEADRACE_FLINK={quote(addresses.flink)}")
    if secure:
        for name, value in addresses.variables.items():
            output.line(f"export {name}={quote(value)}")
        return
    if addresses.kafka:
        output.line(f"export HEADRACE_BROKER={quote(addresses.kafka)}")
    if addresses.redis:
        output.line(f"export HEADRACE_STORE={quote(addresses.redis_socket)}")
        output.note(f"redis: also at {addresses.redis}")


@commands.command()
def down(
    only: OnlyOption = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Those that test runs have left behind or are using, too.")
    ] = False,
    json: output.JsonOption = False,
) -> None:
    """End the servers and remove their data; the downloaded jars stay.

    Example: `python -m app local down --only redis`
    """
    from app.local import services

    directories = services.directories() if all_ else [services.DEFAULT_DIRECTORY]
    wanted = _services(only) or services.ALL_SERVICES
    ended = [name for directory in directories for name in services.down(directory, wanted)]
    if json:
        output.json_line({"ended": ended})
    elif not ended:
        output.note("nothing was running")


@commands.command()
def status(json: output.JsonOption = False) -> None:
    """Say which servers answer, and where. Exit code 1 unless all that were started do.

    Example: `python -m app local status --json`
    """
    from app.local import services

    found = services.status(services.DEFAULT_DIRECTORY)
    if json:
        for each in found:
            output.json_line(each)
    elif found:
        rows = [(each.name, each.state, each.address, each.pid, each.log) for each in found]
        output.table(("server", "state", "address", "pid", "log"), rows)
    else:
        output.note("nothing was started; type: python -m app local up")
    if not found or any(each.state != "running" for each in found):
        raise typer.Exit(NOT_ALL_RUNNING)


def _services(only: list[Only] | None) -> tuple[str, ...]:
    """The servers that were asked for; Flink's job manager and task manager go together."""
    from app.local.services import FLINK_SERVICES

    return tuple(name for each in only or () for name in (FLINK_SERVICES if each is Only.FLINK else (each.value,)))
