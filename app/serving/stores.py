"""The feature store of an address."""

from app.core.clock import Clock
from app.core.errors import SetupError
from app.core.security import OPEN_STORE, StoreSecurity
from app.serving.base import FeatureStore


def open_store(address: str, clock: Clock, security: StoreSecurity = OPEN_STORE) -> FeatureStore:
    """A store that has still to be started. memory:// is a new, empty one.

    Raises: SetupError for anything but memory://, redis://, rediss:// and unix://.
    """
    scheme = address.partition("://")[0]
    if scheme == "memory":
        from app.serving.memory import MemoryStore

        return MemoryStore(clock)
    if scheme in ("redis", "rediss", "unix"):
        from app.serving.redis import RedisStore  # only here: whoever uses memory need not load redis-py

        return RedisStore(address, clock, security)
    raise SetupError("store", "must begin with redis://, rediss://, unix:// or memory://")
