"""A client is lost when it alone reaches nobody, for long enough."""

import pytest
from confluent_kafka import KafkaError, KafkaException

from app.broker.kafka.lost import LOOK_SECONDS, LOST_SECONDS, Lookout


class Ends:
    """A client, and the cluster as others see it: whether each is reached. `asked` counts the questions to the client."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        self.reaches = self.others_reach = True
        self.asked = 0
        monkeypatch.setattr("app.broker.kafka.lost.time.monotonic", lambda: self.now_s)
        self.lookout = Lookout(lambda: self._answer(reached=self.others_reach))

    def list_topics(self, topic: str, seconds: float) -> None:
        self.asked += 1
        self._answer(reached=self.reaches)

    def _answer(self, *, reached: bool) -> None:
        if not reached:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    def is_lost_within(self, seconds: float) -> bool:
        """Asks every tenth of a second, for so long."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += 0.1
            if self.lookout.is_lost(self, "raw.orders"):  # type: ignore[arg-type]
                return True
        return False


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Ends:
    return Ends(monkeypatch)


def test_lookout_client_that_alone_reaches_nobody_is_lost(ends: Ends) -> None:
    """Not before its time, and soon after."""
    ends.reaches = False
    assert not ends.is_lost_within(LOST_SECONDS)
    assert ends.is_lost_within(2 * LOOK_SECONDS)


def test_lookout_outage_loses_no_client(ends: Ends) -> None:
    """Where nobody reaches the cluster, it is the cluster; time counts from when others reach it again."""
    ends.reaches = ends.others_reach = False
    assert not ends.is_lost_within(100)
    ends.others_reach = True
    assert not ends.is_lost_within(LOST_SECONDS)
    assert ends.is_lost_within(2 * LOOK_SECONDS)


def test_lookout_quiet_client_that_reaches_a_broker_is_not_lost(ends: Ends) -> None:
    """It is asked now and then, and not at each poll."""
    assert not ends.is_lost_within(100)
    assert 10 < ends.asked <= 100 / LOOK_SECONDS


def test_lookout_moment_in_which_nobody_answers_does_not_count_and_takes_nothing_back(ends: Ends) -> None:
    """A question that had no answer says nothing about the client."""
    ends.reaches = False
    assert not ends.is_lost_within(LOST_SECONDS - 1)
    ends.others_reach = False
    assert not ends.is_lost_within(5 * LOOK_SECONDS)
    ends.others_reach = True
    assert not ends.is_lost_within(1)
    assert ends.is_lost_within(4 * LOOK_SECONDS)


def test_lookout_client_that_hears_something_begins_anew(ends: Ends) -> None:
    """A moment without a broker is none with a record in between."""
    ends.reaches = False
    for _ in range(10):
        assert not ends.is_lost_within(LOST_SECONDS - 1)
        ends.lookout.heard()
