"""What is told of a cluster that is away, and that it is back."""

import threading
import time
from collections.abc import Callable

import pytest
from confluent_kafka import KafkaError, KafkaException

from app.broker.kafka import outage as module
from app.broker.kafka.outage import Outage
from app.core.clock import ManualClock

SINCE = "kafka://k:1 does not answer since 22:13:20 UTC"


class Asked:
    """Answers only after so many questions."""

    def __init__(self, failures: float) -> None:
        self.failures = failures
        self.count = 0

    def __call__(self) -> None:
        self.count += 1
        if self.count <= self.failures:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.001)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def ended() -> bool:
    return not any(thread.name == "kafka-outage" for thread in threading.enumerate())


def test_outage_reported_by_many_clients_is_told_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """Twenty reports, two lines; the next outage has lines of its own."""
    asked = Asked(50)
    outage = Outage("kafka://k:1", ManualClock(), asked)
    for _ in range(20):
        outage.report()
    wait_for(ended)
    assert [SINCE, "kafka://k:1 answers again, after 0 s"] == caplog.messages
    asked.count = 0
    outage.report()
    wait_for(ended)
    assert 4 == len(caplog.messages)


def test_outage_that_lasts_is_told_again(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the time when it began; whoever comes late finds a line that is not old."""
    monkeypatch.setattr(module, "TELL_AGAIN_SECONDS", 0.01)
    outage = Outage("kafka://k:1", ManualClock(), Asked(float("inf")))
    outage.report()
    wait_for(lambda: len(caplog.messages) > 2)
    outage.close()
    wait_for(ended)
    assert {SINCE} == set(caplog.messages)


def test_outage_of_one_connection_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """A client has lost its own connections, and the cluster answers."""
    outage = Outage("kafka://k:1", ManualClock(), Asked(0))
    outage.report()
    wait_for(ended)
    assert [] == caplog.messages


def test_outage_closed_tells_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    """Reports of clients that are on their way out begin nothing."""
    outage = Outage("kafka://k:1", ManualClock(), Asked(float("inf")))
    outage.close()
    outage.report()
    assert ended()
    assert [] == caplog.messages
