"""What an action's handler may do: one effect, under a key that is the same for every repeat of it.

    @judge_order.action("block")
    async def block_transaction(decision: FraudDecision, effects: Effects) -> None:
        await effects.post({"order_id": effects.alert.order_id, "reason": decision.reason})

The address comes from the configuration and the target from the alert: nothing a model wrote chooses either. Nor does a
handler see a secret: what a receiver must be shown is added here.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from app.broker.base import Producer
from app.core.clock import Clock
from app.core.codec import encode
from app.core.errors import Rejected, Unavailable
from app.core.text import one_line
from app.decisions.decision import MAX_REASON_CHARACTERS
from app.decisions.incidents import Incident
from app.decisions.record import REVIEWS, DecisionRecord, EffectState, ReviewRequest, review_key

logger = logging.getLogger(__name__)


class Poster(Protocol):
    """What posts: `http.client.HttpClient`."""

    async def post_json(self, url: str, body: bytes, headers: Mapping[str, str], timeout_ms: int) -> object: ...


class Receivers(msgspec.Struct, frozen=True):
    """Where effects go. addresses: URL by the name of the action's handler. token: sent to those as bearer token.
    pagerduty_url: where incidents are reported, with the routing key of whom they page."""

    addresses: Mapping[str, str]
    token: str = ""
    timeout_ms: int = 5_000
    pagerduty_url: str = ""
    routing_key: str = ""


class Effects:
    """One effect of one standing decision. A handler makes exactly one: a second one would need a key of its own.

    What is switched off is asked again in the moment in which the effect would be made. Where that refuses it, nothing was
    made, and the handler is run once more when it is known, or its effect withheld.

    alert: the alert that was decided, typed. key: the idempotency key. outcome: DONE or LOGGED once it is made. came_late:
    whether it was refused so, and nothing begun.
    """

    def __init__(
        self,
        name: str,
        key: str,
        *,
        alert: Any,
        record: DecisionRecord,
        decision_offset: int,
        poster: Poster,
        receivers: Receivers,
        producer: Producer,
        clock: Clock,
        may_begin: Callable[[], bool],
        at_most_once: bool = False,
    ) -> None:
        """may_begin: whether nothing is off. at_most_once: a handler that tries again by itself is refused, too."""
        self.name = name
        self.key = key
        self.alert = alert
        self.record = record
        self.outcome: EffectState | None = None
        self.came_late = False
        self._has_begun = False
        self._may_begin = may_begin
        self._at_most_once = at_most_once
        self._decision_offset = decision_offset
        self._poster = poster
        self._receivers = receivers
        self._producer = producer
        self._clock = clock

    async def post(self, body: Mapping[str, Any]) -> None:
        """Posts JSON to the address configured for this effect, with the key as `Idempotency-Key`.

        Without an address it is logged instead. Raises: Unavailable (it will be tried again, with the same key),
        Rejected. On cancellation the receiver may or may not have applied it.
        """
        self._begin()
        url = self._receivers.addresses.get(self.name, "")
        if not url:
            self._log("address")
            return
        token = self._receivers.token
        await self._post(url, body, {"authorization": f"Bearer {token}"} if token else {})

    async def report_incident(self, incident: Incident) -> None:
        """Sends one event of an incident to PagerDuty, under the routing key of the configuration.

        Without a routing key it is logged instead. Raises, and on cancellation: as `post`.
        """
        self._begin()
        if not self._receivers.routing_key:
            self._log("routing key")
            return
        await self._post(self._receivers.pagerduty_url, incident.event(self._receivers.routing_key), {})

    async def _post(self, url: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        sent = {"idempotency-key": header_text(self.key), **headers}
        await self._poster.post_json(url, encode(body), sent, self._receivers.timeout_ms)
        self.outcome = EffectState.DONE

    def _log(self, missing: str) -> None:
        """By its ids alone: a log cannot be forgotten with the person it is about."""
        logger.info("effect %s %s has no %s, logged only", self.name, self.key, missing)
        self.outcome = EffectState.LOGGED

    async def request_review(self, reason: str) -> None:
        """Puts the alert before a person: one acknowledged request on `agent.reviews`.

        Raises: Unavailable. On cancellation the request may or may not be written; its id makes repeats one.
        """
        self._begin()
        await write_review(
            self._producer,
            review_request(self.record, self.key, "decision", reason, self._decision_offset, self._clock.now_ms()),
            self.record,
        )
        self.outcome = EffectState.DONE

    def _begin(self) -> None:
        if self.outcome is not None:
            raise Rejected(f"effect {self.name}: makes a second effect under one key; declare an action of its own")
        if self._has_begun and self._at_most_once:
            raise Unavailable(f"effect {self.name}: its receiver is called once, and was called")
        if not self._may_begin():
            self.came_late = not self._has_begun
            raise Unavailable(f"effect {self.name}: something was switched since its handler began")
        self._has_begun, self.came_late = True, False


def review_request(
    record: DecisionRecord, review_id: str, kind: Any, reason: str, decision_offset: int, now_ms: int
) -> ReviewRequest:
    """The reason is a person's to read, whoever wrote it: one line of at most as many characters as a decision's."""
    return ReviewRequest(
        review_id=review_id,
        kind=kind,
        agent=record.agent,
        alert_id=record.alert_id,
        alert_type=record.alert_type,
        entity=record.entity,
        reason=one_line(reason, MAX_REASON_CHARACTERS),
        codes=record.reasons,
        decision_offset=decision_offset,
        requested_ms=now_ms,
        alert=record.alert,
    )


async def write_review(producer: Producer, request: ReviewRequest, record: DecisionRecord) -> None:
    """Writes a request and awaits its acknowledgement. Raises: as `Producer.confirm`."""
    headers = (
        ("agent", record.agent.encode()),
        ("alert_id", record.alert_id.encode()),
        ("entity", record.entity.encode()),
    )
    key = review_key("review_request", request.review_id)
    await producer.confirm(REVIEWS, encode(request), key, partition=record.alert_partition, headers=headers)


def header_text(key: str) -> str:
    """A key as an HTTP header can carry it: visible ASCII as it is, every other character percent-encoded as UTF-8.

    Two keys never become one: `%` in a key is an escape already, and stays unambiguous by being encoded too.
    """
    return "".join(
        character
        if "!" <= character <= "~" and character != "%"
        else "".join(f"%{byte:02X}" for byte in character.encode(errors="surrogatepass"))
        for character in key
    )
