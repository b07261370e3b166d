"""PagerDuty's Events API v2 as it is documented, on loopback: what it takes, what it answers, and the incidents that follow."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

ROUTING_KEY = "0123456789abcdef0123456789abcdef"
PATH = "/v2/enqueue"


class Payload(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    summary: Annotated[str, msgspec.Meta(min_length=1, max_length=1_024)]
    source: Annotated[str, msgspec.Meta(min_length=1)]
    severity: Literal["critical", "error", "warning", "info"]
    timestamp: datetime | None = None
    component: str | None = None
    group: str | None = None
    class_: str | None = msgspec.field(name="class", default=None)
    custom_details: dict[str, Any] | None = None


class _Event(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="event_action"):
    routing_key: Annotated[str, msgspec.Meta(min_length=32, max_length=32)]


class Trigger(_Event, tag="trigger"):
    payload: Payload
    dedup_key: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] | None = None
    client: str | None = None
    client_url: str | None = None
    links: list[Any] | None = None
    images: list[Any] | None = None


class _Change(_Event):
    dedup_key: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class Acknowledge(_Change, tag="acknowledge"):
    pass


class Resolve(_Change, tag="resolve"):
    pass


Event = Trigger | Acknowledge | Resolve


class PagerDuty:
    """Refuses what is not valid with 400, and as many calls as `busy` with 429; calls somebody for each new incident."""

    def __init__(self, busy: int = 0) -> None:
        self.busy = busy
        self.events: list[Event] = []
        self.refused: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.incidents: dict[str, str] = {}
        """Where each stands, by its key."""
        self.called: list[str] = []

    async def receive(self, request: Request) -> Response:
        self.headers.append(dict(request.headers))
        try:
            event = msgspec.json.decode(await request.body(), type=Event)
        except msgspec.MsgspecError as error:
            self.refused.append(str(error))
            return JSONResponse(
                {"status": "invalid event", "message": "Event object is invalid", "errors": [str(error)]}, 400
            )
        if event.routing_key != ROUTING_KEY:
            self.refused.append("routing key")
            return JSONResponse({"status": "invalid event", "message": "Invalid routing key", "errors": []}, 400)
        if self.busy:
            self.busy -= 1
            return JSONResponse({"status": "throttle exceeded"}, 429)
        self.events.append(event)
        key = event.dedup_key or "made up"
        self._follow(event, key)
        return JSONResponse({"status": "success", "message": "Event processed", "dedup_key": key}, 202)

    def _follow(self, event: Event, key: str) -> None:
        state = self.incidents.get(key, "resolved")
        match event:
            case Trigger() if state == "resolved":
                self.incidents[key] = "triggered"
                self.called.append(key)
            case Acknowledge() if state == "triggered":
                self.incidents[key] = "acknowledged"
            case Resolve() if key in self.incidents:
                self.incidents[key] = "resolved"
