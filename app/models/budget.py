"""What an agent may spend a day, and has: reserved before a call, settled by what the call took.

    @app.agent("processed.alerts", ..., budget=Budget(tokens_a_day=20_000_000, usd_a_day=50))

A day is a UTC day. Each partition of the agent's topic has its equal part of the budget, and what was spent belongs to
the partition and goes with it to the next owner: so no change of owners can spend the same money twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation

import msgspec

from app.core.clock import Clock
from app.core.codec import encode
from app.core.errors import SetupError
from app.core.instants import instant
from app.models.base import MAX_ANSWER_TOKENS, SCHEMA_TOKENS, Usage
from app.models.pricing import FREE, Price

_MICRO = 1_000_000
NO_USAGE = Usage(0, 0, 0, 0)

SPENT = "spent"
"""The header of a decision that says what its agent has spent about its partition until then."""


@dataclass(frozen=True)
class Budget:
    """Of one agent and UTC day, over all its processes: tokens of every kind, and dollars. None: not limited.

    Raises: SetupError where neither is given, or one is not more than 0.
    """

    tokens_a_day: int | None = None
    usd_a_day: Decimal | float | str | None = None

    def __post_init__(self) -> None:
        if self.tokens_a_day is None and self.usd_a_day is None:
            raise SetupError("budget", "needs tokens_a_day or usd_a_day")
        if self.tokens_a_day is not None and self.tokens_a_day <= 0:
            raise SetupError("budget", f"tokens_a_day is {self.tokens_a_day}; it must be more than 0")
        micro_usd = self.micro_usd_a_day
        if micro_usd is not None and micro_usd <= 0:
            raise SetupError("budget", f"usd_a_day is {self.usd_a_day}; it must be more than 0")

    @property
    def micro_usd_a_day(self) -> int | None:
        if self.usd_a_day is None:
            return None
        try:
            return int(Decimal(str(self.usd_a_day)) * _MICRO)
        except (InvalidOperation, ValueError, OverflowError):
            raise SetupError("budget", f"usd_a_day is {self.usd_a_day!r}, which is no amount of dollars") from None


class Spent(msgspec.Struct, frozen=True):
    """What one agent has spent about one partition on one UTC day (`2026-11-25`)."""

    day: str
    tokens: int
    micro_usd: int

    def encode(self) -> bytes:
        return encode(self)

    @classmethod
    def decode(cls, data: bytes) -> "Spent | None":
        """None for what is no such record."""
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, ValueError):
            return None


@dataclass(slots=True)
class _Account:
    """One agent's spending about one partition."""

    day: str
    tokens: int = 0
    micro_usd: int = 0
    reserved_tokens: int = 0
    reserved_micro_usd: int = 0


@dataclass(slots=True)
class Reservation:
    """Room for one call."""

    account: _Account
    tokens: int
    micro_usd: int


@dataclass(slots=True)
class _Agent:
    """What an agent has declared, and its accounts by partition."""

    budget: Budget
    partitions: int
    accounts: dict[int, _Account] = field(default_factory=dict)


class BudgetStatistics(msgspec.Struct, frozen=True):
    """Of one agent's owned partitions today. Left: None where it is not limited; what is reserved is not left."""

    tokens_spent: int
    micro_usd_spent: int
    tokens_left: int | None
    micro_usd_left: int | None


class Budgets:
    """The budgets of a process's agents. Agents without one are not known here, and nothing of them is counted."""

    def __init__(self, clock: Clock, prices: Mapping[str, Price], model: str) -> None:
        self._clock = clock
        self._price = prices.get(model)
        self._model = model
        self._agents: dict[str, _Agent] = {}

    def declare(self, agent: str, budget: Budget, partitions: int) -> None:
        """Raises: SetupError for dollars without a known price, or so little that no partition could pay one call."""
        where = f"agent {agent}, budget"
        if budget.micro_usd_a_day is not None and self._price is None:
            raise SetupError(
                "model_prices",
                f"agent {agent} has a budget in dollars, and no price of {self._model} is known; set "
                f"{self._model}=input/output/cache-read/cache-write in dollars per million tokens",
            )
        least_tokens = SCHEMA_TOKENS + MAX_ANSWER_TOKENS
        least_micro = (self._price or FREE).most(SCHEMA_TOKENS, MAX_ANSWER_TOKENS)
        for name, value, least in (
            ("tokens_a_day", budget.tokens_a_day, least_tokens),
            ("usd_a_day", budget.micro_usd_a_day, least_micro),
        ):
            if value is not None and value // partitions < least:
                needed = least * partitions
                shown = needed if name == "tokens_a_day" else Decimal(needed) / _MICRO
                raise SetupError(
                    where,
                    f"{name} pays no call: each of {partitions} partitions has its part, and a call may take "
                    f"{MAX_ANSWER_TOKENS} tokens of output, {SCHEMA_TOKENS} of its schema, and its prompt; "
                    f"give more than {shown}",
                )
        self._agents[agent] = _Agent(budget, partitions)

    def assigned(self, agent: str, partition: int, spent: Spent | None) -> None:
        """The partition is ours, and this was spent before, as its decisions say."""
        if agent in self._agents:
            account = _Account(spent.day, spent.tokens, spent.micro_usd) if spent else _Account(self._today())
            self._turn(account)
            self._agents[agent].accounts[partition] = account

    def ended(self, agent: str, partition: int) -> None:
        """The partition is another's, and so is what was spent."""
        if agent in self._agents:
            self._agents[agent].accounts.pop(partition, None)

    def spent(self, agent: str, partition: int) -> Spent | None:
        """What the next owner must know; None for an agent without a budget, or a partition that is not ours."""
        account = self._account(agent, partition)
        return Spent(account.day, account.tokens, account.micro_usd) if account else None

    def reserve(self, agent: str, partition: int, input_tokens: int) -> Reservation | None:
        """Room for a call at its most expensive. None: there is none, or the partition is not ours.

        An agent without a budget always has room.
        """
        known = self._agents.get(agent)
        if known is None:
            return Reservation(_Account(self._today()), 0, 0)
        account = self._account(agent, partition)
        if account is None:
            return None
        tokens, micro_usd = self._most(input_tokens)
        if not _fits(tokens, micro_usd, _left(known, account)):
            return None
        account.reserved_tokens += tokens
        account.reserved_micro_usd += micro_usd
        return Reservation(account, tokens, micro_usd)

    def pays(self, agent: str, input_tokens: int) -> bool:
        """Whether a partition's part of a whole day has room for such a call."""
        known = self._agents.get(agent)
        return known is None or _fits(*self._most(input_tokens), _left(known, _Account("")))

    def settle(self, reservation: Reservation, usage: Usage) -> None:
        """The call is over and has taken this; whatever day it began, it counts today."""
        account = reservation.account
        self._turn(account)
        account.reserved_tokens -= reservation.tokens
        account.reserved_micro_usd -= reservation.micro_usd
        account.tokens += usage.total
        account.micro_usd += self.cost(usage)

    def cost(self, usage: Usage) -> int:
        """Micro-dollars; 0 where the price is not known."""
        return (self._price or FREE).cost(usage)

    def statistics(self) -> dict[str, BudgetStatistics]:
        """By agent."""
        return {name: self._statistics_of(known) for name, known in self._agents.items()}

    @property
    def reserved(self) -> tuple[int, int]:
        """Tokens and micro-dollars that running calls hold."""
        accounts = [account for known in self._agents.values() for account in known.accounts.values()]
        return sum(a.reserved_tokens for a in accounts), sum(a.reserved_micro_usd for a in accounts)

    def _statistics_of(self, known: _Agent) -> BudgetStatistics:
        accounts = list(known.accounts.values())
        for account in accounts:
            self._turn(account)
        left = [_left(known, account) for account in accounts]
        tokens, micro_usd = [t for t, _ in left if t is not None], [m for _, m in left if m is not None]
        return BudgetStatistics(
            sum(account.tokens for account in accounts),
            sum(account.micro_usd for account in accounts),
            sum(tokens) if known.budget.tokens_a_day is not None else None,
            sum(micro_usd) if known.budget.micro_usd_a_day is not None else None,
        )

    def _most(self, input_tokens: int) -> tuple[int, int]:
        """Tokens and micro-dollars of a call at its most expensive."""
        return input_tokens + MAX_ANSWER_TOKENS, (self._price or FREE).most(input_tokens, MAX_ANSWER_TOKENS)

    def _today(self) -> str:
        return instant(self._clock.now_ms()).date().isoformat()

    def _account(self, agent: str, partition: int) -> _Account | None:
        known = self._agents.get(agent)
        account = known.accounts.get(partition) if known else None
        if account is not None:
            self._turn(account)
        return account

    def _turn(self, account: _Account) -> None:
        """Begins a new day where one has begun; a clock that is set back begins none."""
        today = self._today()
        if account.day < today:
            account.day, account.tokens, account.micro_usd = today, 0, 0


def _left(known: _Agent, account: _Account) -> tuple[int | None, int | None]:
    """Tokens and micro-dollars of one partition's part."""
    tokens, micro_usd = known.budget.tokens_a_day, known.budget.micro_usd_a_day
    return (
        None if tokens is None else tokens // known.partitions - account.tokens - account.reserved_tokens,
        None if micro_usd is None else micro_usd // known.partitions - account.micro_usd - account.reserved_micro_usd,
    )


def _fits(tokens: int, micro_usd: int, left: tuple[int | None, int | None]) -> bool:
    return all(room is None or takes <= room for takes, room in zip((tokens, micro_usd), left, strict=True))
