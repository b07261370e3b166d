"""The one HTTP client: posts JSON, follows no redirect, and says of every failure whether another try makes sense.

The only module that imports httpx2; its exceptions are translated in `translate`.
"""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any

import httpcore2  # noqa: F401 - httpx2 would load it on the loop, in the first client
import httpx2
import msgspec

from app.core.errors import HeadraceError, Rejected, Unavailable
from app.core.text import one_line

CONNECTIONS = 64
"""Calls at once; more wait for their turn, within their own time."""

MAX_ANSWER_BYTES = 16 * 2**20

_TRY_AGAIN = frozenset({408, 409, 425, 429})
"""Refusals of now and not for ever: timeout, conflict with a call under way, too early, too many."""


class HttpClient:
    """Posts to any address. `async with`, or `close` it."""

    def __init__(self) -> None:
        limits = httpx2.Limits(max_connections=CONNECTIONS)
        self._client = httpx2.AsyncClient(follow_redirects=False, limits=limits, timeout=None)

    async def __aenter__(self) -> "HttpClient":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def post_json(self, url: str, body: bytes, headers: Mapping[str, str], timeout_ms: int) -> None:
        """Posts one JSON text; returns when the receiver has answered with a status of 200 to 299. The rest of its
        answer is left unread. timeout_ms: for the whole call.

        Raises: Unavailable when it may succeed later (no connection, timeout, 5xx, 408, 409, 425, 429);
                Rejected when it will not (other statuses, a wrong address).
        Whether a call that ended in Unavailable or was cancelled has been applied is not known.
        """
        sent = {"content-type": "application/json", **headers}
        try:
            async with asyncio.timeout(timeout_ms / 1000):  # the library's own is for each wait, and so bounds nothing
                async with self._client.stream("POST", url, content=body, headers=sent) as response:
                    status = response.status_code
        except TimeoutError:
            raise Unavailable(f"{address_of(url)}: no answer within {timeout_ms} ms") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, httpx2.CookieConflict, ssl.SSLError) as error:
            raise translate(error, url) from error
        if status in _TRY_AGAIN or status >= 500:
            raise Unavailable(f"{address_of(url)}: answered {status}")
        if not 200 <= status < 300:
            raise Rejected(f"{address_of(url)}: answered {status}")

    async def request_json(self, method: str, url: str, body: Any, timeout_ms: int) -> Any:
        """Asks with a JSON text, or none, and returns what the answer says, decoded; None where it says nothing.

        Raises: Unavailable as `post_json`, also for an answer that is no JSON or longer than 16 MiB; Rejected with the first
                words of the answer for other statuses.
        """
        content = None if body is None else msgspec.json.encode(body)
        sent = {"content-type": "application/json"} if content is not None else {}
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                async with self._client.stream(method, url, content=content, headers=sent) as response:
                    status, answer = response.status_code, bytearray()
                    async for chunk in response.aiter_bytes():
                        answer += chunk
                        if len(answer) > MAX_ANSWER_BYTES:
                            raise Unavailable(f"{address_of(url)}: answered more than {MAX_ANSWER_BYTES} bytes")
        except TimeoutError:
            raise Unavailable(f"{address_of(url)}: no answer within {timeout_ms} ms") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, httpx2.CookieConflict, ssl.SSLError) as error:
            raise translate(error, url) from error
        said = f"{address_of(url)}: answered {status}: {one_line(bytes(answer[:500]).decode(errors='replace'))}"
        if status in _TRY_AGAIN or status >= 500:
            raise Unavailable(said)
        if not 200 <= status < 300:
            raise Rejected(said)
        try:
            return msgspec.json.decode(bytes(answer)) if answer else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise Unavailable(f"{said}, which is no JSON") from None

    async def close(self) -> None:
        """Gives connections back. Running calls fail."""
        await self._client.aclose()


_LASTING = (
    httpx2.UnsupportedProtocol,
    httpx2.InvalidURL,
    httpx2.LocalProtocolError,
    httpx2.TooManyRedirects,
    httpx2.HTTPStatusError,
    httpx2.CookieConflict,
    httpx2.SSEError,
)
_PASSING = (
    httpx2.TimeoutException,
    httpx2.NetworkError,
    httpx2.ProxyError,
    httpx2.RemoteProtocolError,
    httpx2.DecodingError,
    httpx2.StreamError,
    ssl.SSLError,
)


def translate(error: Exception, url: str) -> HeadraceError:
    """Our error for one of httpx2's: whether the same call may succeed later."""
    message = f"{address_of(url)}: {type(error).__name__}: {one_line(error)}"
    if isinstance(error, _LASTING):
        return Rejected(message)
    assert isinstance(error, _PASSING), f"no rule for {type(error).__name__}"
    return Unavailable(message)


def address_of(url: str) -> str:
    """An address without credentials, path details and query: fit for logs."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        return "an address that is not a URL"
    return f"{parsed.scheme}://{parsed.host}" + (f":{parsed.port}" if parsed.port else "")
