"""What the Redis store says without a Redis: addresses, errors, and that no error class is forgotten."""

import asyncio
import inspect

import hiredis
import pytest
from redis import exceptions

from app.core.clock import ManualClock
from app.core.errors import HeadraceError, Rejected, SetupError, Unavailable
from app.local.process import free_ports
from app.serving import resp
from app.serving.redis import MEANINGS, RedisStore, translated

NOON_MS = 1_699_963_200_000


def library_errors() -> set[type[Exception]]:
    found = [value for module in (exceptions, hiredis) for value in vars(module).values() if inspect.isclass(value)]
    return {value for value in found if issubclass(value, Exception)}


def test_translation_knows_every_error_class_of_both_libraries() -> None:
    """A new class in redis-py or hiredis fails here until somebody says what it means to us."""
    assert library_errors() == set(MEANINGS) - {OSError}


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (exceptions.TimeoutError("Timeout"), Unavailable, "redis at there does not answer since 12:00:00 UTC: Timeout"),
        (ConnectionRefusedError("no\none"), Unavailable, "redis at there does not answer since 12:00:00 UTC: no one"),
        (TimeoutError(), Unavailable, "redis at there does not answer since 12:00:00 UTC: TimeoutError"),
        (exceptions.AuthenticationError("wrong"), SetupError, "store_password: redis at there does not know"),
        (exceptions.ResponseError("BUSY a script runs"), Unavailable, "does not answer since 12:00:00 UTC: BUSY"),
        (exceptions.ResponseError("WRONGTYPE x"), Rejected, "redis at there refuses: WRONGTYPE x"),
        (hiredis.ReplyError("LOADING the dataset"), Unavailable, "does not answer since 12:00:00 UTC: LOADING"),
        (hiredis.ReplyError("NOAUTH"), SetupError, "store_password: redis at there does not know"),
    ],
)
def test_translation_says_what_the_caller_can_do(error: Exception, kind: type[HeadraceError], text: str) -> None:
    """Errors that pass are Unavailable, the others Rejected, each one line."""
    found = translated(error, "there", NOON_MS)
    assert kind is type(found)
    assert text in str(found)


def test_translation_of_a_refused_login_finds_it_below_a_lost_connection() -> None:
    """So redis-py tells it over a unix socket."""
    error = exceptions.ConnectionError("invalid username-password pair")
    error.__cause__ = exceptions.AuthenticationError("invalid username-password pair")
    found = translated(error, "there", NOON_MS)
    assert isinstance(found, SetupError)
    assert "store_password" == found.setting


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "redis://:secret@127.0.0.1:6379/0?timeout=3",
            "store: redis://***@127.0.0.1:6379/0 has an unknown option timeout",
        ),
        ("redis://127.0.0.1:6379/0?password=secret", "has an unknown option password"),
        ("redis://127.0.0.1:port/0", "redis://127.0.0.1:port/0 is not an address of Redis; "),
        ("redis://:se?cret@h:6379/0", "redis://***@h:6379/0 is not an address of Redis; "),
        ("rediss://127.0.0.1:1/0?ssl_check_hostname=false", "ssl_check_hostname is no option; there are store_ca, "),
    ],
)
def test_redis_store_wrong_address_names_the_setting_and_hides_the_password(address: str, message: str) -> None:
    """A wrong address is a setup error before anything is connected."""
    with pytest.raises(SetupError) as caught:
        RedisStore(address, ManualClock())
    assert message in str(caught.value)
    assert "store" == caught.value.setting
    assert "secret" not in str(caught.value)
    assert "'se'" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("redis://user:se@cret@h:6379/0", "redis://***@h:6379/0"),
        ("redis://:p%3Fw@h:6379/0", "redis://***@h:6379/0"),
        ("unix:///run/redis.sock?db=2", "unix:///run/redis.sock"),
    ],
)
def test_redis_store_address_is_safe_to_show(address: str, shown: str) -> None:
    """Whatever stands in front of the host, or behind the path, is not shown."""
    assert shown == RedisStore(address, ManualClock()).address


@pytest.mark.parametrize("scheme", ["redis", "unix"])
async def test_redis_store_nobody_there_is_unavailable_and_names_the_address(scheme: str) -> None:
    """A server that is not there is told in one line, at once."""
    place = f":secret@127.0.0.1:{free_ports(1)[0]}/0" if scheme == "redis" else "/nowhere/redis.sock"
    store = RedisStore(f"{scheme}://{place}", ManualClock(NOON_MS))
    with pytest.raises(Unavailable) as caught:
        await store.start()
    assert str(caught.value).startswith(f"redis at {store.address} does not answer since 12:00:00 UTC: ")
    assert "secret" not in str(caught.value)
    await store.close()


async def test_redis_store_silent_server_is_unavailable_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes connections and says nothing is given up after the time limit."""
    assert resp.ANSWER_SECONDS + 3 < 10
    monkeypatch.setattr(resp, "ANSWER_SECONDS", 0.1)
    accepted: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: accepted.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    store = RedisStore(f"redis://127.0.0.1:{port}/0", ManualClock())
    async with asyncio.timeout(3):
        with pytest.raises(Unavailable, match=f"redis at redis://127.0.0.1:{port}/0 does not answer"):
            await store.start()
    await store.close()
    for writer in accepted:
        writer.close()
    server.close()
    await server.wait_closed()
