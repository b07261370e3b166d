"""Errors: one line for a person, and a tree by what the caller can do."""

import inspect

import pytest

from app.core import errors
from app.core.errors import BadRecord, HeadraceError, RecordError, RecordTooLarge, SetupError, Unavailable, cause_of

CLASSES = [found for _, found in inspect.getmembers(errors, inspect.isclass) if found.__module__ == errors.__name__]


def test_setup_error_names_its_setting() -> None:
    """The setting stands first, as the user wrote it."""
    error = SetupError("HEADRACE_BROKER", "must begin with kafka://")
    assert ("HEADRACE_BROKER", "HEADRACE_BROKER: must begin with kafka://") == (error.setting, str(error))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BadRecord("no JSON"), "no JSON"),
        (RecordTooLarge("2 MB", topic="raw.orders"), "raw.orders: 2 MB"),
        (RecordError("late", topic="raw.orders", partition=0, offset=0), "raw.orders/0/0: late"),
    ],
)
def test_record_error_names_the_place_it_knows(error: RecordError, expected: str) -> None:
    """Topic, partition and offset stand first, as far as they are known."""
    assert expected == str(error)


@pytest.mark.parametrize("found", CLASSES)
def test_errors_are_in_the_drawn_tree(found: type) -> None:
    """The drawing at the top of the module is complete, and everything in it is ours."""
    assert issubclass(found, HeadraceError)
    assert found.__name__ in (errors.__doc__ or "")


OUTAGE, WRONG, WORSE = Unavailable("no broker answers"), SetupError("topics", "are missing"), ValueError("x")


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([OUTAGE], OUTAGE),
        ([OUTAGE, OUTAGE], OUTAGE),
        ([OUTAGE, ExceptionGroup("nested", [OUTAGE, WRONG])], WRONG),
        ([WRONG], WRONG),
        ([WRONG, WORSE], None),
    ],
)
def test_cause_of_a_group_is_the_outage_or_what_is_none(errors: list[Exception], expected: Exception | None) -> None:
    """One outage may meet several tasks; an error that is none speaks for itself, and several stay together."""
    group = ExceptionGroup("tasks", errors)
    assert (expected or group) is cause_of(group)
