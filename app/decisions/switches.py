"""What operators have switched off, and in which mode each agent is: `agent.switches`, as one process knows it.

A process reads the whole topic before its agents and actions start, and follows it from then on. Once a second it writes
a heartbeat to the same partition and waits to read it back: when that one has come, so has everything that was written
before it. So a process knows, without comparing clocks, that it has missed nothing for longer than `STEADY_SECONDS`; one
that does not know that (the broker is away, or the process was frozen) makes no effect until it does.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import anyio
import msgspec

from app.broker.base import Producer, Reader
from app.core.codec import compact_key, encode
from app.core.errors import SetupError, Unavailable
from app.core.instants import instant
from app.core.notices import Notices
from app.core.record import Record, TopicPartition
from app.core.text import one_line
from app.decisions.agent import Agent
from app.decisions.record import SWITCHES, Mode

logger = logging.getLogger(__name__)

PLACE = TopicPartition(SWITCHES, 0)
EVERYTHING = "all"
HEARTBEAT_KEY = compact_key(heartbeat="workers")
"""One for all processes: compaction leaves a single one, however many have come and gone."""

HEARTBEAT_SECONDS = 1.0
STEADY_SECONDS = 2.0
AGAIN_SECONDS = 0.5

State = Literal["on", "off"]

CAUTION: tuple[Mode, ...] = ("dry-run", "shadow", "live")
"""From the most careful mode to the one that acts."""


class Switch(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", tag="switch"):
    """The last word on one name. who: the operating system's user. at_ms: wall time where it was given."""

    name: str
    state: State
    who: str
    reason: str
    at_ms: int

    @property
    def key(self) -> bytes:
        return compact_key(switch=self.name)


class ModeSwitch(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", tag="mode"):
    """The last word on one agent's mode."""

    agent: str
    mode: Mode
    who: str
    reason: str
    at_ms: int

    @property
    def key(self) -> bytes:
        return compact_key(mode=self.agent)


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", tag="heartbeat"):
    """A process that runs agents or actions, once a second. known: the offset up to which it has read the topic."""

    process: str
    number: int
    known: int


class _Key(msgspec.Struct):
    switch: str = ""
    mode: str = ""


class SwitchStatistics(msgspec.Struct, frozen=True):
    """What one process knows now. off: names; modes: agents whose mode is switched. steady: it has missed nothing, so
    effects are made; heartbeat_age_ms: since the newest heartbeat that came back was written, None before the first.
    held: effects that wait; withheld effects are counted where they end."""

    off: tuple[str, ...]
    modes: dict[str, Mode]
    steady: bool
    heartbeat_age_ms: int | None
    heartbeats: int
    unreadable: int
    held: int


class Switches:
    """The switches of one process. mode: the one that it was started in. process: a name that no other process has."""

    def __init__(self, producer: Producer, reader: Reader, *, process: str, mode: Mode = "live") -> None:
        self.switched: dict[str, Switch] = {}
        self.modes: dict[str, ModeSwitch] = {}
        self._producer = producer
        self._reader = reader
        self._process = process
        self._mode: Mode = mode
        self._not_live_since: dict[str, int] = {}
        """When the modes of agents that are not live were written, ms of the broker's clock."""
        self._known = 0
        self._number = 0
        self._sent: dict[int, float] = {}
        """When heartbeats were offered that have not come back, loop time, by number."""
        self._heard: float | None = None
        """When the newest heartbeat that came back was offered: what was written until then is known."""
        self._came_back = asyncio.Event()
        self._held = 0
        self._holding_since: float | None = None
        """Since when effects are held, loop time, once that was told."""
        self._notices = Notices(logger, logging.WARNING)
        self._unreadable = 0
        self._loaded = False
        """False while what is read was told in its time, by those who ran then."""
        self._watchers: list[Callable[[], None]] = []

    async def load(self) -> None:
        """Reads the whole topic, and tells what is off or not live now. Raises: Unavailable, Rejected."""
        end = (await self._reader.end_offsets([PLACE]))[PLACE]
        async for batch in self._reader.read(PLACE, self._known, end):
            self._take(batch)
        self._known = max(self._known, end)
        self._loaded = True
        for switch in self.switched.values():
            if switch.state == "off":
                said = f"{switch.name} is off since {_since(switch)}, by {switch.who}"
                logger.warning("%s", one_line(_because(said, switch.reason), 400))
        for mode in self.modes.values():
            if mode.mode != "live":
                said = f"agent {mode.agent} is in mode {mode.mode} since {_since(mode)}, by {mode.who}"
                logger.warning("%s", one_line(_because(said, mode.reason), 400))

    async def run(self, stopping: asyncio.Event) -> None:
        """Follows the topic and writes heartbeats until `stopping` is set. Outages are waited out.

        Raises: Rejected.
        """
        async with asyncio.TaskGroup() as tasks:
            services = [tasks.create_task(self._follow()), tasks.create_task(self._beat())]
            await stopping.wait()
            for service in services:
                service.cancel()

    def is_off(self, *names: str) -> bool:
        return any((switch := self.switched.get(name)) is not None and switch.state == "off" for name in names)

    def agent_is_off(self, agent: str) -> bool:
        """Whether its fallback decides in its place."""
        return self.is_off(EVERYTHING, agent)

    def bars(self, agent: str, action: str) -> bool:
        """Whether the agent may not decide that action now."""
        return self.is_off(EVERYTHING, agent, *_names_of(agent, action))

    def withholds(self, agent: str, action: str, written_ms: int, *, asks_a_person: bool) -> str:
        """Why the effects of a live decision may not be made now; empty where they may.

        written_ms: when it was written, by the broker's clock: what was decided live behind a switch to another mode is
        from a worker that had not read it. asks_a_person: whether it is a fallback that leaves the matter to a person.
        Its effects are made also while the agent is off: they are how that person hears of it.
        """
        names = [EVERYTHING, *_names_of(agent, action)]
        if not asks_a_person:
            names.append(agent)
        for name in names:
            switch = self.switched.get(name)
            if switch is not None and switch.state == "off":
                return _because(f"{name} was switched off by {switch.who}", switch.reason)
        since_ms = self._not_live_since.get(agent)
        if since_ms is not None and written_ms >= since_ms:
            mode = self.modes[agent]
            return _because(f"{agent} had been set to {mode.mode} by {mode.who} before this was decided", mode.reason)
        return ""

    def mode(self, agent: str) -> Mode:
        """The more careful one of the process's and the switched one: no switch makes a shadow worker act."""
        switched = self.modes.get(agent)
        return self._mode if switched is None else min(self._mode, switched.mode, key=CAUTION.index)

    @property
    def steady(self) -> bool:
        """Whether everything is known that was written until `STEADY_SECONDS` ago."""
        heard = self._heard
        return heard is not None and asyncio.get_running_loop().time() < heard + STEADY_SECONDS

    async def hold(self) -> None:
        """Returns as soon as the process is steady, at once where it is. Holds nothing on cancellation."""
        if self.steady:
            return
        began = asyncio.get_running_loop().time()
        self._held += 1
        try:
            while not self.steady:
                with anyio.move_on_after(HEARTBEAT_SECONDS) as waiting:
                    await self._came_back.wait()
                if waiting.cancelled_caught:
                    self._tell_holding(began)
        finally:
            self._held -= 1

    def _tell_holding(self, since: float) -> None:
        """Once for all that is held; what is over within a second, as at every start, is not worth a line."""
        if self._holding_since is None:
            self._holding_since = since
            age_ms = self.statistics().heartbeat_age_ms
            heard = "yet" if age_ms is None else f"for {age_ms / 1000:.1f} s"
            logger.warning(
                "effects are held: no heartbeat on %s has come back %s, so a switch may be unknown here",
                SWITCHES,
                heard,
            )

    def _tell_held(self) -> None:
        if self._holding_since is not None and self.steady:
            held_s = asyncio.get_running_loop().time() - self._holding_since
            self._holding_since = None
            logger.warning("effects are made again: a heartbeat on %s came back, after %.1f s", SWITCHES, held_s)

    @contextmanager
    def watched(self, changed: Callable[[], None]) -> Iterator[None]:
        """Calls `changed` after every change of a switch or mode."""
        self._watchers.append(changed)
        try:
            yield
        finally:
            self._watchers.remove(changed)

    def statistics(self) -> SwitchStatistics:
        age_ms = None
        if self._heard is not None:
            age_ms = round((asyncio.get_running_loop().time() - self._heard) * 1000)
        return SwitchStatistics(
            off=tuple(sorted(name for name in self.switched if self.is_off(name))),
            modes={agent: switch.mode for agent, switch in sorted(self.modes.items())},
            steady=self.steady,
            heartbeat_age_ms=age_ms,
            heartbeats=self._number,
            unreadable=self._unreadable,
            held=self._held,
        )

    async def _follow(self) -> None:
        while True:
            try:
                async for batch in self._reader.follow(PLACE, self._known):
                    self._take(batch)
            except Unavailable as error:
                self._notices.tell("follow", f"switches are not heard of: {one_line(error)}")
            await asyncio.sleep(AGAIN_SECONDS)

    async def _beat(self) -> None:
        """One at a time: while the broker is away they do not pile up, and the next one follows its return at once."""
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            self._number += 1
            self._sent = {number: at for number, at in self._sent.items() if at > now - STEADY_SECONDS}
            self._sent[self._number] = now
            beat = Heartbeat(process=self._process, number=self._number, known=self._known)
            try:
                await self._producer.confirm(SWITCHES, encode(beat), HEARTBEAT_KEY, partition=0)
            except Unavailable as error:
                self._notices.tell("heartbeat", f"no heartbeat on {SWITCHES}: {one_line(error)}")
            await asyncio.sleep(max(0.0, now + HEARTBEAT_SECONDS - loop.time()))

    def _take(self, records: Iterable[Record]) -> None:
        changed = False
        for record in records:
            self._known = record.offset + 1
            if record.key == HEARTBEAT_KEY:
                self._hear(record.value or b"")
            else:
                changed |= self._learn(record)
        if changed:
            for watcher in list(self._watchers):
                watcher()

    def _hear(self, value: bytes) -> None:
        beat = _decoded(value)
        if isinstance(beat, Heartbeat) and beat.process == self._process:
            sent = self._sent.pop(beat.number, None)
            if sent is not None:
                self._heard = sent if self._heard is None else max(self._heard, sent)
                self._tell_held()
                came_back, self._came_back = self._came_back, asyncio.Event()
                came_back.set()

    def _learn(self, record: Record) -> bool:
        """Takes a switch. One that cannot be read is off, and a mode is the most careful one: somebody meant to stop
        something. A tombstone takes it back."""
        try:
            key = msgspec.json.decode(record.key or b"", type=_Key)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            key = _Key()
        found = _decoded(record.value or b"")
        if record.value is None:
            self.switched.pop(key.switch, None)
            self.modes.pop(key.mode, None)
            self._not_live_since.pop(key.mode, None)
        elif key.switch and not (isinstance(found, Switch) and found.name == key.switch):
            self._unreadable += 1
            self._tell(
                logging.ERROR, f"{PLACE}/{record.offset}: no switch that can be read: {one_line(key.switch)} is off"
            )
            self.switched[key.switch] = Switch(
                name=key.switch, state="off", who="nobody", reason="unreadable", at_ms=record.timestamp_ms
            )
        elif key.mode and not (isinstance(found, ModeSwitch) and found.agent == key.mode):
            self._unreadable += 1
            self._tell(
                logging.ERROR, f"{PLACE}/{record.offset}: no mode that can be read: {one_line(key.mode)} acts no more"
            )
            careful = ModeSwitch(
                agent=key.mode, mode=CAUTION[0], who="nobody", reason="unreadable", at_ms=record.timestamp_ms
            )
            self._set_mode(careful, record.timestamp_ms)
        elif isinstance(found, Switch):
            self.switched[found.name] = found
            self._tell(logging.INFO, _because(f"{found.name} is {found.state}, by {found.who}", found.reason))
        elif isinstance(found, ModeSwitch):
            self._set_mode(found, record.timestamp_ms)
            said = f"agent {found.agent} is in mode {found.mode}, by {found.who}"
            self._tell(logging.INFO, _because(said, found.reason))
        else:
            return False
        return True

    def _tell(self, level: int, text: str) -> None:
        logger.log(level if self._loaded else logging.DEBUG, "%s", one_line(text, 400))

    def _set_mode(self, switch: ModeSwitch, written_ms: int) -> None:
        """From one mode that is not live to another, the first one's time counts."""
        self.modes[switch.agent] = switch
        if switch.mode == "live":
            self._not_live_since.pop(switch.agent, None)
        else:
            self._not_live_since.setdefault(switch.agent, written_ms)


def _because(said: str, reason: str) -> str:
    return f"{said}: {reason}" if reason else said


def _since(switch: Switch | ModeSwitch) -> str:
    try:
        return f"{instant(switch.at_ms):%Y-%m-%d %H:%M:%S} UTC"
    except OverflowError:  # whoever writes to the topic may write any number
        return f"{switch.at_ms} ms"


def _names_of(agent: str, action: str) -> tuple[str, str]:
    """The switches of an action: of all agents, and of this one."""
    return action, f"{agent}.{action}"


def _decoded(value: bytes) -> Switch | ModeSwitch | Heartbeat | None:
    try:
        found: Switch | ModeSwitch | Heartbeat = _decoder.decode(value)
        return found
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


_decoder = msgspec.json.Decoder(Switch | ModeSwitch | Heartbeat)


def switch_names(agents: Mapping[str, Agent[Any]]) -> tuple[str, ...]:
    """Everything that can be switched off: all, agents, actions of all agents, and those of each."""
    actions = {action for agent in agents.values() for action in agent.actions_allowed}
    of_each = [f"{name}.{action}" for name, agent in agents.items() for action in agent.actions_allowed]
    return tuple(dict.fromkeys((EVERYTHING, *agents, *sorted(actions), *of_each)))


def covering(name: str, agents: Mapping[str, Agent[Any]]) -> tuple[str, ...]:
    """The other switches that turn this one off with them, widest first."""
    if name == EVERYTHING:
        return ()
    agent, _, action = name.partition(".")
    return (EVERYTHING, agent, action) if action and agent in agents else (EVERYTHING,)


def require_own_names(agents: Mapping[str, Agent[Any]]) -> None:
    """Raises: SetupError where one switch would mean two things: an agent or action `all`, an agent called as an action."""
    actions = {action for agent in agents.values() for action in agent.actions_allowed}
    of_agents = {f"{name}.{action}" for name, agent in agents.items() for action in agent.actions_allowed}
    for name, agent in agents.items():
        if name == EVERYTHING or EVERYTHING in agent.actions_allowed:
            raise SetupError(f"agent {name}", f"`switch off {EVERYTHING}` means everything; call it otherwise")
        for shared in ({name} & actions) | (set(agent.actions_allowed) & (of_agents | agents.keys())):
            raise SetupError(
                f"agent {name}", f"{shared!r} names an agent and an action, which would share a switch; rename one"
            )


async def write_switch(producer: Producer, switch: Switch | ModeSwitch) -> int:
    """Writes a switch; the offset at which it stands, acknowledged, or -1. Raises: Unavailable, Rejected."""
    return (await producer.confirm(SWITCHES, encode(switch), switch.key, partition=0)).offset


async def take_back(producer: Producer, name: str) -> int:
    """Removes what was said of a name, as a switch and as an agent; the last offset, or -1. Raises: Unavailable, Rejected."""
    await producer.confirm(SWITCHES, None, compact_key(mode=name), partition=0)
    return (await producer.confirm(SWITCHES, None, compact_key(switch=name), partition=0)).offset


async def heard(reader: Reader, offset: int, seconds: float) -> dict[str, bool]:
    """Whose heartbeats are seen behind `offset` within that time, and whether each has read it. -1: an offset that the
    broker did not say, somewhere before the end.

    Raises: Unavailable, Rejected.
    """
    if offset < 0:
        offset = (await reader.end_offsets([PLACE]))[PLACE] - 1
    processes: dict[str, bool] = {}
    with anyio.move_on_after(seconds):
        async for batch in reader.follow(PLACE, offset):
            for record in batch:
                beat = _decoded(record.value or b"") if record.key == HEARTBEAT_KEY else None
                if isinstance(beat, Heartbeat):
                    processes[beat.process] = beat.known > offset
    return processes
