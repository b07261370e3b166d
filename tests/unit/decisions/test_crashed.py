"""An alert that took its process with it three times."""

from app.decisions.decision import Reason
from app.decisions.outcome import failure_of
from app.dispatch.work import Crashed


def test_failure_of_crashed_alert_names_the_reason() -> None:
    """The fallback decides it under a reason of its own, and no attempt of this process is counted."""
    failure = failure_of(Crashed("the process ended uncleanly, 3 times"), 0)
    assert (Reason.CRASHED, "the process ended uncleanly, 3 times") == (failure.code, failure.detail)
