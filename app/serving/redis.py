"""The feature store in Redis: one hash an entity, readable with `redis-cli HGETALL user_features:u-17`.

    user_features:u-17
        tile:1700000010000:3  ->  4711 2 105000       (tile start ms : source partition -> version, accumulators, - for none)
        order_count_5m        ->  2                   (of the tiles that end after window_end - window)
        order_value_5m        ->  1050.00             (money in dollars)
        window_end            ->  1700000040000       (end of the entity's newest tile, ms)
    headrace:view:user_features
        fingerprint           ->  of the declaration whose tiles these are
        3                     ->  812 1700000012345   (partition -> next offset of the feature topic, as_of ms)

One script merges tiles by version, computes the named values and moves the progress. Versions, values and their sums are
exact up to 2^53, which is above 10^15; the tiles themselves, and so our own readers, have no such limit. An entity's hash
expires `View.ttl_ms` after its last change. Redis Cluster is not supported: the script touches several keys.
"""

import asyncio
import hashlib
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import hiredis
from redis import exceptions
from redis.asyncio import ConnectionPool, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from app.core.clock import Clock
from app.core.errors import HeadraceError, Rejected, SetupError, Unavailable
from app.core.security import OPEN_STORE, StoreSecurity, tls_context
from app.core.settings import without_password
from app.serving import resp
from app.serving.base import Progress, StoredFeatures, TileChange, View
from app.serving.refusals import refusal_in, wrong_scheme
from app.streams.windows import Tile

CONNECT_SECONDS = 3.0
MAX_ENTITIES_A_CALL = 64
"""Redis answers nobody else while a script runs: 64 entities take it about 2 ms."""

_MOVED, _UNEXPECTED, _OTHER_DECLARATION = 1, 0, -1

MERGE = """
-- KEYS: progress of the view, then one hash an entity.
-- ARGV: fingerprint, partition, expected offset ('' for none), progress to store ('' when more calls follow), window, tile
-- and kept in ms, time to live in ms, number of fields, name, kind and function of each; then for each entity the number
-- of its changes, and name and content of each.
local held = redis.call('HMGET', KEYS[1], 'fingerprint', ARGV[2])
if held[1] and held[1] ~= ARGV[1] then return -1 end
if (held[2] and string.match(held[2], '^%d+') or '') ~= ARGV[3] then return 0 end
local window, tile, kept, width = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[9])

local hows = {}
for i = 1, width do
  local how = ARGV[9 + 3 * i]
  hows[#hows + 1] = (how == 'min' or how == 'max') and how or 'sum'
  if how == 'mean' then hows[#hows + 1] = 'sum' end
end

local function merged(how, mine, text)
  local value = text ~= '-' and tonumber(text) or nil
  if mine == nil or value == nil then return mine or value end
  if how == 'sum' then return mine + value end
  return how == 'min' and math.min(mine, value) or math.max(mine, value)
end
local function version(content) return tonumber(string.match(content, '^%d+')) end
local function dollars(cents)
  local sign = ''
  if cents < 0 then sign, cents = '-', -cents end
  local rest = cents % 100
  return string.format('%s%.0f.%02d', sign, (cents - rest) / 100, rest)
end

local function shown(kind, value)
  if value == nil then return '' end
  return kind == 'money' and dollars(value) or string.format('%.0f', value)
end

local at = 10 + 3 * width
for k = 2, #KEYS do
  local hash = redis.call('HGETALL', KEYS[k])
  local tiles, newer = {}, {}
  for i = 1, #hash, 2 do
    if string.sub(hash[i], 1, 5) == 'tile:' then tiles[hash[i]] = hash[i + 1] end
  end
  for i = at + 1, at + 2 * ARGV[at], 2 do
    local name, content = ARGV[i], ARGV[i + 1]
    if not tiles[name] or version(tiles[name]) < version(content) then
      tiles[name], newer[name] = content, true
    end
  end
  at = at + 1 + 2 * ARGV[at]
  if next(newer) then
    local newest, starts, sums, gone, write = nil, {}, {}, {}, {}
    for name in pairs(tiles) do
      starts[name] = tonumber(string.match(name, '^tile:(-?%d+)'))
      if not newest or starts[name] > newest then newest = starts[name] end
    end
    for i, how in ipairs(hows) do if how == 'sum' then sums[i] = 0 end end
    for name, content in pairs(tiles) do
      if starts[name] <= newest - kept then
        gone[#gone + 1], newer[name] = name, nil
      elseif starts[name] > newest - window then
        local i = 0
        for value in string.gmatch(content, ' (-?%d*)') do
          i = i + 1
          sums[i] = merged(hows[i], sums[i], value)
        end
      end
    end
    for name in pairs(newer) do
      write[#write + 1] = name
      write[#write + 1] = tiles[name]
    end
    local from = 1
    for i = 1, width do
      local value = sums[from]
      if ARGV[9 + 3 * i] == 'mean' then
        from = from + 1
        local number = sums[from]
        value = number > 0 and math.floor((2 * value + number) / (2 * number)) or nil
      end
      from = from + 1
      write[#write + 1] = ARGV[7 + 3 * i]
      write[#write + 1] = shown(ARGV[8 + 3 * i], value)
    end
    redis.call('HSET', KEYS[k], 'window_end', string.format('%.0f', newest + tile), unpack(write))
    if #gone > 0 then redis.call('HDEL', KEYS[k], unpack(gone)) end
    redis.call('PEXPIRE', KEYS[k], ARGV[8])
  end
end
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'fingerprint', ARGV[1], ARGV[2], ARGV[4]) end
return 1
"""
_MERGE_SHA = hashlib.sha1(MERGE.encode(), usedforsecurity=False).hexdigest()


class RedisStore:
    """Keeps the contract of `base.FeatureStore`. Writes go through redis-py, reads through `resp`."""

    def __init__(self, address: str, clock: Clock, security: StoreSecurity = OPEN_STORE) -> None:
        """address: redis://, rediss:// or unix://. Raises: SetupError naming what is wrong in it, or in the certificates."""
        self.address = without_password(address)
        self._clock = clock
        self._pool = _pool(address, self.address, security)
        self._client = Redis(connection_pool=self._pool)
        self._endpoint = _endpoint(self._pool)
        self._connection: resp.Connection | None = None
        self._connecting = asyncio.Lock()
        self._failing_since_ms: int | None = None

    async def start(self) -> None:
        try:
            with self._translated():
                policy = (await self._client.info("memory")).get("maxmemory_policy")
                await self._connected()
        except Unavailable as error:
            host, port, tls = self._endpoint.host, self._endpoint.port, self._endpoint.tls is not None
            refusal = await wrong_scheme(host, port, self.address, tls=tls) if host else None
            raise refusal or error from None
        if policy != "noeviction":
            raise SetupError(
                "store",
                f"{self.address} may evict what it holds (maxmemory-policy {policy}); "
                "type: redis-cli config set maxmemory-policy noeviction",
            )

    async def progress(self, view: View) -> Mapping[int, Progress]:
        with self._translated():
            (flat,) = await self._ask(resp.pack("HGETALL", _progress_key(view)), 1)
        stored = dict(zip(flat[::2], flat[1::2], strict=True))
        _refuse_other(view, stored.pop(b"fingerprint", None))
        return {int(partition): _progress(text) for partition, text in stored.items()}

    async def apply(
        self, view: View, partition: int, expected: int | None, progress: Progress, changes: Sequence[TileChange]
    ) -> bool:
        tiles: dict[str, list[Tile]] = {}
        for entity, tile in changes:
            tiles.setdefault(entity, []).append(tile)
        entities = list(tiles.items())
        starts = range(0, len(entities), MAX_ENTITIES_A_CALL) or range(1)
        for start in starts:
            call = entities[start : start + MAX_ENTITIES_A_CALL]
            target = f"{progress.offset} {progress.as_of_ms}" if start == starts[-1] else ""
            with self._translated():
                outcome = await self._merge(*_merge_words(view, partition, expected, target, call))
            if outcome == _OTHER_DECLARATION:
                raise view.other_declaration()
            if outcome == _UNEXPECTED:
                return False
            assert outcome == _MOVED
        return True

    async def _merge(self, keys: list[str], words: list[str | int]) -> int:
        try:
            outcome = await self._client.evalsha(_MERGE_SHA, len(keys), *keys, *words)
        except exceptions.NoScriptError:  # a Redis that was restarted, or flushed its scripts; EVAL teaches it again
            outcome = await self._client.eval(MERGE, len(keys), *keys, *words)
        return int(outcome)

    async def read(self, view: View, entity: str) -> StoredFeatures:
        partition = view.partition_of(entity)
        # Progress first: what is applied between the two answers makes the tiles newer than it says, never older.
        question = resp.pack("HMGET", _progress_key(view), "fingerprint", partition)
        question += resp.pack("HGETALL", f"{view.stored}:{entity}")
        with self._translated():
            (fingerprint, progress), tiles = await self._ask(question, 2)
        _refuse_other(view, fingerprint)
        return StoredFeatures(_tiles(tiles), _progress(progress) if progress is not None else None)

    async def forget(self, view: View, entity: str) -> bool:
        with self._translated():
            ((fingerprint,),) = await self._ask(resp.pack("HMGET", _progress_key(view), "fingerprint"), 1)
            _refuse_other(view, fingerprint)
            return bool(await self._client.unlink(f"{view.stored}:{entity}"))

    async def clear(self, view: View) -> None:
        with self._translated():
            await self._client.delete(_progress_key(view))
            async for key in self._client.scan_iter(match=f"{_escaped(view.stored)}:*", count=1000):
                await self._client.unlink(key)
            # Again: a materializer that saw it gone may have begun anew, and then lost what it wrote to the scan.
            await self._client.delete(_progress_key(view))

    async def grant(self, user: str, words: str) -> None:
        """Sets what a user of Redis may do, and on which keys, in the words of `ACL SETUSER`; his password stays. One that
        is not there yet is made, and can log in when somebody gives him a password. Raises: Unavailable, Rejected."""
        with self._translated():
            await self._client.execute_command("ACL", "SETUSER", user, *words.split())  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        await self._client.aclose()
        await self._pool.disconnect()

    async def _ask(self, commands: bytes, expected: int) -> list[Any]:
        connection = self._connection
        if connection is None or connection.closed:
            connection = await self._connected()
        answers = await connection.ask(commands, expected)
        for answer in answers:
            if isinstance(answer, hiredis.ReplyError):
                raise answer
        self._failing_since_ms = None
        return answers

    async def _connected(self) -> resp.Connection:
        """The reading connection. Whoever waits for another one's attempt shares its time limit."""
        async with asyncio.timeout(CONNECT_SECONDS), self._connecting:
            if self._connection is None or self._connection.closed:
                self._connection = await resp.connect(self._endpoint)
            return self._connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except tuple(MEANINGS) as error:
            if self._failing_since_ms is None:
                self._failing_since_ms = self._clock.now_ms()
            raise translated(error, self.address, self._failing_since_ms) from error


MEANINGS: dict[type[Exception], type[HeadraceError]] = {
    OSError: Unavailable,
    hiredis.HiredisError: Unavailable,
    hiredis.ProtocolError: Unavailable,
    hiredis.ReplyError: Rejected,
    exceptions.RedisError: Rejected,
    exceptions.ConnectionError: Unavailable,
    exceptions.TimeoutError: Unavailable,
    exceptions.BusyLoadingError: Unavailable,
    exceptions.MaxConnectionsError: Unavailable,
    exceptions.InvalidResponse: Unavailable,
    exceptions.ReadOnlyError: Unavailable,
    exceptions.OutOfMemoryError: Unavailable,
    exceptions.ClusterError: Unavailable,
    exceptions.ClusterDownError: Unavailable,
    exceptions.MasterDownError: Unavailable,
    exceptions.TryAgainError: Unavailable,
    exceptions.SlotNotCoveredError: Unavailable,
    exceptions.AuthenticationError: Rejected,
    exceptions.AuthorizationError: Rejected,
    exceptions.AuthenticationWrongNumberOfArgsError: Rejected,
    exceptions.ExternalAuthProviderError: Rejected,
    exceptions.NoPermissionError: Rejected,
    exceptions.ResponseError: Rejected,
    exceptions.DataError: Rejected,
    exceptions.NoScriptError: Rejected,
    exceptions.ModuleError: Rejected,
    exceptions.NoSuchFieldsetError: Rejected,
    exceptions.ExecAbortError: Rejected,
    exceptions.PubSubError: Rejected,
    exceptions.WatchError: Rejected,
    exceptions.LockError: Rejected,
    exceptions.LockNotOwnedError: Rejected,
    exceptions.ChildDeadlockedError: Rejected,
    exceptions.RedisClusterException: Rejected,
    exceptions.AskError: Rejected,
    exceptions.MovedError: Rejected,
    exceptions.ClusterCrossSlotError: Rejected,
    exceptions.CrossSlotTransactionError: Rejected,
    exceptions.InvalidPipelineStack: Rejected,
    exceptions.IncorrectPolicyType: Rejected,
}
"""What each error of our two libraries means to us. Those of commands that we never send are here to be complete."""

PASSING_ANSWERS = frozenset(
    {"BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY"}
)
"""First words of error answers that end by themselves, or by somebody's help, without a change of ours."""


OLD_NOPERM_IN_SCRIPT = "The user executing the script can't run this command"
"""What Redis before 7.2 says of a right that a script lacks; it does not name it."""


def translated(error: Exception, address: str, since_ms: int) -> HeadraceError:
    """Our error for one of redis-py's, hiredis' or the socket's. since_ms: when the failures began."""
    refusal = refusal_in(error, address)
    if refusal is not None:
        return refusal
    meaning = next(MEANINGS[kind] for kind in type(error).__mro__ if kind in MEANINGS)
    text = " ".join(str(error).split()) or type(error).__name__
    if _is_of_login(error) or text.startswith(("WRONGPASS", "NOAUTH")):
        return SetupError("store_password", f"redis at {address} does not know the user with this password: {text}")
    if isinstance(error, exceptions.NoPermissionError) or text.startswith(("NOPERM", OLD_NOPERM_IN_SCRIPT)):
        return Rejected(f"redis at {address} refuses: {text} (docs/security.md has the rights that are needed)")
    if meaning is Rejected and text.split(" ", 1)[0] in PASSING_ANSWERS:
        meaning = Unavailable
    if meaning is Rejected:
        return Rejected(f"redis at {address} refuses: {text}")
    since = datetime.fromtimestamp(since_ms / 1000, UTC).strftime("%H:%M:%S")
    return Unavailable(f"redis at {address} does not answer since {since} UTC: {text}")


def _is_of_login(error: BaseException | None) -> bool:
    """Over a unix socket redis-py wraps a refused login into an error of the connection."""
    while error is not None and not isinstance(error, exceptions.AuthenticationError):
        error = error.__cause__
    return error is not None


ADDRESS_FORM = "write redis://[[user]:password@]host[:port][/database] or unix:///path, special characters as %XX"


def _pool(address: str, shown: str, security: StoreSecurity) -> ConnectionPool:
    """Connections as we want them: no retries (redis-py would repeat what it cannot know to be undone), time limits, and
    with TLS certificate and host name always verified."""
    for option in parse_qs(urlsplit(address).query):
        if option.startswith("ssl_"):
            raise SetupError(
                "store", f"{shown}: {option} is no option; there are store_ca, store_certificate, store_key"
            )
        if option != "db":
            raise SetupError("store", f"{shown} has an unknown option {option}; there is db")
    login = {"username": security.user or None, "password": security.password} if security.password else {}
    try:
        pool = ConnectionPool.from_url(
            address,
            **login,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=resp.ANSWER_SECONDS,
            protocol=2,
            driver_info=None,
        )
        if address.startswith("rediss://"):
            pool.connection_class = _VerifiedConnection
            pool.connection_kwargs["context"] = tls_context("store", security)
        pool.make_connection()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, exceptions.RedisError):  # whose text may quote a part of the password
        raise SetupError("store", f"{shown} is not an address of Redis; {ADDRESS_FORM}") from None
    return pool


class _VerifiedConnection(SSLConnection):
    """redis-py's connection over our context; its own trusts the system's authorities whatever else it is given."""

    def __init__(self, context: ssl.SSLContext, **words: Any) -> None:
        super().__init__(**words)
        self.ssl_context.context = context


def _endpoint(pool: ConnectionPool) -> resp.Endpoint:
    """The same server, for the reading connection."""
    connection: Any = pool.make_connection()  # type: ignore[no-untyped-call]
    tls: ssl.SSLContext | None = connection.ssl_context.get() if isinstance(connection, SSLConnection) else None
    return resp.Endpoint(
        host=getattr(connection, "host", ""),
        port=int(getattr(connection, "port", 0)),
        path=getattr(connection, "path", ""),
        username=connection.username or "",
        password=connection.password or "",
        database=int(connection.db),
        tls=tls,
    )


def _merge_words(
    view: View, partition: int, expected: int | None, target: str, entities: Sequence[tuple[str, Sequence[Tile]]]
) -> tuple[list[str], list[str | int]]:
    """KEYS and ARGV of one call of the script."""
    keys = [_progress_key(view)]
    words: list[str | int] = [view.fingerprint, partition, "" if expected is None else expected, target]
    words += [view.window_ms, view.tile_ms, view.kept_ms, view.ttl_ms, len(view.fields)]
    for output in view.fields:
        words += [output.name, output.kind.value, output.function]
    for entity, tiles in entities:
        keys.append(f"{view.stored}:{entity}")
        words.append(len(tiles))
        for tile in tiles:
            words.append(f"tile:{tile.start_ms}:{tile.partition}")
            words.append(" ".join("-" if value is None else str(value) for value in (tile.version, *tile.values)))
    return keys, words


def _progress_key(view: View) -> str:
    return f"headrace:view:{view.stored}"


def _refuse_other(view: View, fingerprint: bytes | None) -> None:
    if fingerprint is not None and fingerprint.decode() != view.fingerprint:
        raise view.other_declaration()


def _progress(text: bytes) -> Progress:
    offset, as_of_ms = text.split()
    return Progress(int(offset), int(as_of_ms))


def _tiles(flat: list[bytes]) -> tuple[Tile, ...]:
    tiles = []
    for index in range(0, len(flat), 2):
        name = flat[index]
        if name.startswith(b"tile:"):
            _, start_ms, partition = name.split(b":")
            version, *values = flat[index + 1].split()
            amounts = tuple(None if value == b"-" else int(value) for value in values)
            tiles.append(Tile(int(start_ms), int(partition), int(version), amounts))
    return tuple(tiles)


def _escaped(text: str) -> str:
    """The text itself as a pattern of SCAN."""
    return "".join(f"\\{letter}" if letter in "*?[]^\\-" else letter for letter in text)
