"""Which store an address means."""

import pytest

from app.core.clock import ManualClock
from app.core.errors import SetupError
from app.serving.memory import MemoryStore
from app.serving.redis import RedisStore
from app.serving.stores import open_store


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("memory://", MemoryStore),
        ("redis://127.0.0.1:6379/0", RedisStore),
        ("rediss://127.0.0.1:6379/0", RedisStore),
        ("unix:///run/redis.sock", RedisStore),
    ],
)
def test_open_store_address_gives_its_kind(address: str, kind: type) -> None:
    """The scheme of the address says which store it is."""
    store = open_store(address, ManualClock())
    assert kind is type(store)
    assert address == store.address


def test_open_store_unknown_scheme_is_refused() -> None:
    """Another scheme is a setup error that names the setting."""
    with pytest.raises(SetupError, match=r"^store: must begin with redis://"):
        open_store("http://127.0.0.1", ManualClock())
