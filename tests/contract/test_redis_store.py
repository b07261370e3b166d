"""What only a real Redis shows: the layout that people read, script and connection losses, limits of its numbers."""

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest
import uvloop
from redis.asyncio import Redis

from app.core.clock import ManualClock
from app.core.errors import SetupError, Unavailable
from app.serving.base import Progress, TileChange, View
from app.serving.redis import MAX_ENTITIES_A_CALL, RedisStore
from app.streams.aggregates import OutputField
from app.streams.expressions import Kind
from app.streams.windows import Tile
from tests.decisions_kit import until

pytestmark = pytest.mark.redis

START_MS = 1_700_000_010_000 - 1_700_000_010_000 % 30_000
FIELDS = (OutputField("order_count_5m", Kind.INTEGER), OutputField("order_value_5m", Kind.MONEY))


@pytest.fixture
async def store(redis_address: str) -> AsyncIterator[RedisStore]:
    opened = RedisStore(redis_address, ManualClock())
    await opened.start()
    yield opened
    await opened.close()


@pytest.fixture
async def redis(redis_address: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_address, decode_responses=True)
    yield client
    await client.aclose()


@pytest.fixture
def view(unique: Callable[[str], str]) -> View:
    name = unique("view")
    return View(name, "user_id", f"features.{name}", "raw.orders", 12, 300_000, 30_000, FIELDS, True, "fingerprint-1")


def change(entity: str, version: int, *values: int, start_ms: int = START_MS) -> TileChange:
    return TileChange(entity, Tile(start_ms, 3, version, values))


async def test_redis_hash_is_readable_by_people(store: RedisStore, redis: Redis, view: View) -> None:
    """`redis-cli HGETALL` shows the tiles, and the named values of the window that ends with the newest tile."""
    changes = [
        change("u-17", 4711, 2, 105_000),
        change("u-17", 4000, 1, 7, start_ms=START_MS - 270_000),
        change("u-17", 3000, 10, 1_000, start_ms=START_MS - 300_000),
    ]
    assert await store.apply(view, 3, None, Progress(812, 1_700_000_012_345), changes)
    expected = {
        f"tile:{START_MS}:3": "4711 2 105000",
        f"tile:{START_MS - 270_000}:3": "4000 1 7",
        f"tile:{START_MS - 300_000}:3": "3000 10 1000",
        "order_count_5m": "3",
        "order_value_5m": "1050.07",
        "window_end": str(START_MS + 30_000),
    }
    assert expected == await redis.hgetall(f"{view.name}:u-17")
    progress = {"fingerprint": "fingerprint-1", "3": "812 1700000012345"}
    assert progress == await redis.hgetall(f"headrace:view:{view.name}")


@pytest.mark.parametrize(
    ("cents", "dollars"),
    [
        (0, "0.00"),
        (5, "0.05"),
        (100, "1.00"),
        (-5, "-0.05"),
        (-12_345, "-123.45"),
        (10**15 - 1, "9999999999999.99"),
        (2**53 - 1, "90071992547409.91"),
    ],
)
async def test_redis_named_money_is_exact(
    store: RedisStore, redis: Redis, view: View, cents: int, dollars: str
) -> None:
    """Dollars with two decimals to the last cent, though Lua knows only doubles and prints 14 digits."""
    assert await store.apply(view, 3, None, Progress(1, 0), [change("u", 1, 10**15 - 1, cents)])
    assert ["999999999999999", dollars] == await redis.hmget(f"{view.name}:u", ["order_count_5m", "order_value_5m"])


async def test_redis_entity_expires_and_progress_does_not(store: RedisStore, redis: Redis, view: View) -> None:
    """An entity goes some time after its last change, the position of the view never."""
    assert await store.apply(view, 3, None, Progress(1, 0), [change("u", 1, 1, 1)])
    left_ms = await redis.pttl(f"{view.name}:u")
    assert view.ttl_ms - 10_000 < left_ms <= view.ttl_ms
    assert -1 == await redis.pttl(f"headrace:view:{view.name}")


async def test_redis_repeat_changes_nothing_and_does_not_prolong(store: RedisStore, redis: Redis, view: View) -> None:
    """A replayed change leaves values and time to live alone."""
    item = change("u", 1, 1, 1)
    assert await store.apply(view, 3, None, Progress(1, 0), [item])
    await redis.pexpire(f"{view.name}:u", 5_000)
    before = await redis.hgetall(f"{view.name}:u")
    assert await store.apply(view, 3, 1, Progress(2, 0), [item])
    assert before == await redis.hgetall(f"{view.name}:u")
    assert await redis.pttl(f"{view.name}:u") <= 5_000


async def test_redis_foreign_fields_of_a_hash_are_left_alone(store: RedisStore, redis: Redis, view: View) -> None:
    """What others write into the hash is neither read as a tile nor removed."""
    await redis.hset(f"{view.name}:u", mapping={"note": "vip", "tiles": "x"})
    assert await store.apply(view, 3, None, Progress(1, 0), [change("u", 1, 1, 1)])
    assert (change("u", 1, 1, 1).tile,) == (await store.read(view, "u")).tiles
    assert ["vip", "x"] == await redis.hmget(f"{view.name}:u", ["note", "tiles"])


async def test_redis_emptied_by_flushall_says_that_it_knows_nothing(
    store: RedisStore, redis: Redis, view: View
) -> None:
    """After FLUSHALL the position is None, and a writer that goes on is told so."""
    assert await store.apply(view, 3, None, Progress(1, 0), [change("u", 1, 1, 1)])
    await redis.flushall()
    assert {} == await store.progress(view)
    assert not await store.apply(view, 3, 1, Progress(2, 0), [change("u", 2, 2, 2)])
    assert () == (await store.read(view, "u")).tiles


async def test_redis_forgotten_script_is_sent_again(store: RedisStore, redis: Redis, view: View) -> None:
    """A Redis that lost its scripts learns this one again within the call."""
    assert await store.apply(view, 3, None, Progress(1, 0), [])
    await redis.script_flush()
    assert await store.apply(view, 3, 1, Progress(2, 0), [change("u", 1, 1, 1)])
    calls_before = (await redis.info("commandstats"))["cmdstat_eval"]["calls"]
    assert await store.apply(view, 3, 2, Progress(3, 0), [])
    assert calls_before == (await redis.info("commandstats"))["cmdstat_eval"]["calls"]


async def test_redis_large_batch_moves_its_position_with_the_last_call(
    store: RedisStore, view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers at work during a batch of many calls never see the position before the values."""
    count = 3 * MAX_ENTITIES_A_CALL + 1
    merge, calls = store._merge, 0

    async def check_and_merge(keys: list[str], words: list[str | int]) -> int:
        nonlocal calls
        assert {} == await store.progress(view)
        assert len(keys) - 1 <= MAX_ENTITIES_A_CALL
        calls += 1
        return await merge(keys, words)

    monkeypatch.setattr(store, "_merge", check_and_merge)
    assert await store.apply(view, 3, None, Progress(9, 0), [change(f"u-{n}", 1, n, n) for n in range(count)])
    assert 4 == calls
    assert {3: Progress(9, 0)} == await store.progress(view)


async def test_redis_killed_connections_are_made_again(store: RedisStore, redis: Redis, view: View) -> None:
    """Connections that the server ended while they were idle fail nobody."""
    assert await store.apply(view, 3, None, Progress(1, 0), [change("u", 1, 1, 1)])
    await store.read(view, "u")
    await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")  # type: ignore[no-untyped-call]
    connection = store._connection
    assert connection is not None
    await until(lambda: connection.closed)
    assert (change("u", 1, 1, 1).tile,) == (await store.read(view, "u")).tiles
    assert await store.apply(view, 3, 1, Progress(2, 0), [])


async def test_redis_paused_server_is_unavailable_and_comes_back(
    store: RedisStore, redis: Redis, view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the server hangs, reads fail in time; afterwards every answer belongs to its question again."""
    changes = [change(f"u-{n}", 1, n, n) for n in range(20)]
    assert await store.apply(view, 3, None, Progress(1, 0), changes)
    monkeypatch.setattr("app.serving.resp.ANSWER_SECONDS", 0.1)
    await redis.execute_command("CLIENT", "PAUSE", 400, "ALL")  # type: ignore[no-untyped-call]
    outcomes = await asyncio.gather(*(store.read(view, f"u-{n}") for n in range(20)), return_exceptions=True)
    assert {Unavailable} == {type(outcome) for outcome in outcomes}
    monkeypatch.setattr("app.serving.resp.ANSWER_SECONDS", 5)
    for n in range(20):
        assert (changes[n].tile,) == (await store.read(view, f"u-{n}")).tiles


async def test_redis_eviction_is_refused_at_the_start(redis: Redis, redis_address: str) -> None:
    """A Redis that may evict what it holds would lose tiles silently: it is refused, with the command that helps."""
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    store = RedisStore(redis_address, ManualClock())
    try:
        with pytest.raises(SetupError, match=r"allkeys-lru\); type: redis-cli config set maxmemory-policy noeviction"):
            await store.start()
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")
        await store.close()


async def test_redis_user_and_password_are_used_by_both_connections(
    redis: Redis, redis_address: str, view: View, unique: Callable[[str], str]
) -> None:
    """Reads and writes log in alike; a wrong password is refused and not shown."""
    user = unique("user")
    await redis.acl_setuser(user, enabled=True, passwords=["+se/cret"], keys=["*"], categories=["+@all"])
    try:
        place = redis_address.removeprefix("redis://")
        store = RedisStore(f"redis://{user}:se%2Fcret@{place}", ManualClock())
        await store.start()
        assert await store.apply(view, 3, None, Progress(1, 0), [change("u", 1, 1, 1)])
        assert (change("u", 1, 1, 1).tile,) == (await store.read(view, "u")).tiles
        await store.close()
        wrong = RedisStore(f"redis://{user}:wrong@{place}", ManualClock())
        with pytest.raises(SetupError, match=rf"^store_password: redis at redis://\*\*\*@{place} does not know"):
            await wrong.start()
        await wrong.close()
    finally:
        await redis.acl_deluser(user)


def test_redis_unix_socket_and_uvloop_work_alike(redis_socket: str, view: View) -> None:
    """Over a unix socket, on uvloop, with the database in the address, and cancelled reads in between."""

    async def main() -> None:
        store = RedisStore(f"{redis_socket}?db=3", ManualClock())
        await store.start()
        changes = [change(f"u-{n}", 1, n, n) for n in range(30)]
        assert await store.apply(view, 3, None, Progress(1, 0), changes)
        for _ in range(20):
            reads = [asyncio.ensure_future(store.read(view, f"u-{n}")) for n in range(30)]
            await asyncio.sleep(0)
            for read in reads[::3]:
                read.cancel()
            for n, outcome in enumerate(await asyncio.gather(*reads, return_exceptions=True)):
                if n % 3:
                    assert not isinstance(outcome, BaseException)
                    assert (changes[n].tile,) == outcome.tiles
        await store.close()

    uvloop.run(main())


async def test_redis_cancelled_writes_under_load_leave_every_answer_in_its_place(store: RedisStore, view: View) -> None:
    """Writers cancelled at any moment poison no connection of the pool: later outcomes are those of their own calls."""
    views = [msgspec.structs.replace(view, name=f"{view.name}-{n}") for n in range(8)]
    for round_number in range(30):
        tasks = [
            asyncio.ensure_future(store.apply(each, 3, -1, Progress(1, 0), [change("u", 1, 1, 1)])) for each in views
        ]
        for _ in range(round_number):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        first = msgspec.structs.replace(view, name=f"{views[0].name}-{round_number}")
        assert await store.apply(first, 3, None, Progress(1, 0), [])
        assert not await store.apply(first, 3, None, Progress(1, 0), [])
