"""How long it takes to ask what keeps clients out; what it finds is asked of real servers."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from app.broker.diagnosis import diagnose
from app.core.security import OPEN_BROKER, BrokerSecurity


@pytest.fixture
def frozen() -> Iterator[str]:
    """Three servers that take connections and never say a word."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        yield ",".join(f"127.0.0.1:{server.getsockname()[1]}" for server in servers)


@pytest.mark.parametrize("security", [OPEN_BROKER, BrokerSecurity(tls=True)])
def test_diagnose_frozen_servers_ends_in_time(frozen: str, security: BrokerSecurity) -> None:
    """However many questions there are, and servers to ask."""
    began = time.monotonic()
    assert diagnose(frozen, security, 0.5) is None
    assert time.monotonic() - began < 1.5


def test_diagnose_without_time_asks_nobody(frozen: str) -> None:
    """Nor does it take any."""
    began = time.monotonic()
    assert diagnose(frozen, OPEN_BROKER, -1) is None
    assert time.monotonic() - began < 0.1
