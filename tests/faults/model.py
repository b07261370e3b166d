"""The Messages API stub as a process of its own: seeded latencies and faults, and a log of every call.

    python -m tests.faults.model --log FILE --seconds QUICK,SLOW [--slow SHARE] [--answer ACTION:SHARE …] [--seed N]

An answer says which call of its alert it is, and another call may get another action: so an effect can be traced to the
answer that it came from. It is healthy until `play` says otherwise.
"""

import argparse
import asyncio
import re
import socket
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zlib import crc32

import msgspec
import uvicorn

from app.core.clock import SystemClock
from app.core.codec import encode
from app.local import messages_api
from app.local.messages_api import FAULTS, MessagesApi, Receive, Scope, Send
from app.local.messages_schema import MessagesRequest
from tests.faults.history import Call
from tests.faults.lines import LineLog
from tests.faults.processes import die_with_parent

ALERT_ID = re.compile(rb'alert_id\\":\\"([^"\\]+)')
ANSWERS = ("block:0.7",)
"""Unless told otherwise; the rest is reviewed."""

CONTROL = "/faults"
_number: ContextVar[tuple[str, int]] = ContextVar("call")


def play(address: str, faults: Mapping[str, float]) -> None:
    """Tells a running model what happens to calls from now on, and to which share of them: names of `messages_api.FAULTS`;
    empty for a healthy one."""
    connection = HTTPConnection(urlsplit(address).netloc, timeout=10)
    connection.request("POST", CONTROL, encode(dict(faults)))
    assert connection.getresponse().status == 204
    connection.close()


class LoggedApi(MessagesApi):
    """slow: the share of alerts that take the longer of `seconds`. answers: actions, and how often each is answered; review
    for the rest."""

    def __init__(
        self,
        log: LineLog,
        seconds: tuple[float, float],
        slow: float,
        answers: Mapping[str, float],
        seed: int,
    ) -> None:
        super().__init__(self._judge, 0, (), SystemClock())
        self._log = log
        self._wall = SystemClock()
        self._seconds = seconds
        self._slow = slow
        self._happens: dict[str, float] = {}
        self._answers = answers
        self._seed = seed
        self._asked = Counter[str]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = bytearray()
        more = True
        while more:
            event = await receive()
            body += event.get("body", b"")
            more = event.get("more_body", False)
        if scope["path"] == CONTROL:
            self._happens = msgspec.json.decode(body, type=dict[str, float])
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        found = ALERT_ID.search(body)
        alert_id = found[1].decode() if found else ""
        self._asked[alert_id] += 1
        number = self._asked[alert_id]
        _number.set((alert_id, number))
        start_ms = self._wall.now_ms()
        self._log.write(Call(alert_id, number, start_ms, 0))
        await asyncio.sleep(self._seconds[self._share(alert_id) < self._slow])
        fault = _drawn(self._happens.items(), self._share(f"fault {alert_id} {number}"))
        self.play(FAULTS.get(fault))
        events = iter([{"type": "http.request", "body": bytes(body), "more_body": False}])

        async def again() -> Any:
            event = next(events, None)
            return event if event is not None else await receive()

        await super().__call__(scope, again, send)
        self._log.write(Call(alert_id, number, start_ms, self._wall.now_ms(), fault))

    def _share(self, text: str) -> float:
        """A number from 0 to 1, the same for the same text and seed."""
        return crc32(f"{self._seed} {text}".encode()) / 2**32

    def _judge(self, request: MessagesRequest) -> dict[str, str]:
        alert_id, number = _number.get()
        action = _drawn(self._answers.items(), self._share(f"action {alert_id} {number}")) or "review"
        return {"action": action, "risk_level": "HIGH", "reason": f"call {number}"}


def _drawn(shares: Iterable[tuple[str, float]], drawn: float) -> str:
    """Which of these comes at a number from 0 to 1; empty beyond their shares."""
    for one, share in shares:
        drawn -= share
        if drawn < 0:
            return one
    return ""


async def serve(api: LoggedApi) -> None:
    """Until the process ends; says where on the first line of output."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    config = uvicorn.Config(api, lifespan="off", log_config=None, access_log=False, ws="none", loop="uvloop")
    await uvicorn.Server(config).serve(sockets=[listener])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.model")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--seconds", required=True)
    parser.add_argument("--slow", type=float, default=0.1)
    parser.add_argument("--answer", action="append", default=[])
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    die_with_parent()
    quick, slow = (float(text) for text in options.seconds.split(","))
    shares = (text.partition(":") for text in options.answer or ANSWERS)
    answers = {action: float(share) for action, _, share in shares}
    messages_api._LIMITS_A_MINUTE = dict.fromkeys(
        messages_api._LIMITS_A_MINUTE, 10**9
    )  # what is reported as the limits
    api = LoggedApi(LineLog(options.log), (quick, slow), options.slow, answers, options.seed)
    import uvloop

    uvloop.run(serve(api))


if __name__ == "__main__":
    main()
