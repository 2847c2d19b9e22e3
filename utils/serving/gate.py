"""Who may call the server, and how a call is answered, whatever it asks."""

import asyncio
import hmac
import json
import time
import traceback
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from utils.serving.leases import Closable, Gone, Lease, Leases, NoRoom
from utils.serving.session import Refused
from utils.serving.wire import WireError

META, LEASE = "X-Meta", "X-Lease-Token"
LOCAL = ("127.0.0.1", "localhost", "::1")
SMALL_BODY = 2**20  # bytes of a body of JSON
MAX_SAID = 300  # characters of a message
STALL = 60.0  # seconds that a client may be silent within a body

S = TypeVar("S", bound=Closable)  # a lease's session


class Kind(Enum):
    """What a call is.

    Attributes:
        FREE: It needs no lease.
        WATCH: It needs one, and says only that the client is alive.
        ACTION: The user did something.
        LARGE: An action with a body that may be as large as an image.
    """

    FREE = auto()
    WATCH = auto()
    ACTION = auto()
    LARGE = auto()


class Failure(Exception):
    """An answer that is an error: status and text."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class Call(Generic[S]):
    """A request with what has been found out about it.

    Attributes:
        request: As Starlette has it.
        body: Its bytes.
        lease: The client's, where the call needs one.
        notes: For the log.
    """

    def __init__(self, request: Request, lease: Lease[S] | None, notes: list[str]) -> None:
        self.request, self._lease, self.notes = request, lease, notes
        self.body = b""

    @property
    def lease(self) -> Lease[S]:
        assert self._lease is not None
        return self._lease

    @property
    def session(self) -> S:
        return self.lease.session

    def json(self) -> dict[str, Any]:
        return _object(self.body or b"{}", "the body")

    def meta(self) -> dict[str, Any]:
        return _object(self.request.headers.get(META, "{}").encode(), META)


Handler = Callable[[Call[S]], Awaitable[Response]]


class Gate(Generic[S]):
    """Lets calls in that come with the key, from this machine's pages, with a lease.

    Args:
        leases: Of the clients.
        api_key: That they show; "" for none.
        max_bytes: Of a large body.
        hosts: Names by which the server may be called, beside LOCAL.
        log: Takes a line for each request.
    """

    def __init__(
        self,
        leases: Leases[S],
        api_key: str,
        max_bytes: int,
        hosts: tuple[str, ...] = (),
        log: Callable[[str], None] = print,
    ) -> None:
        self.leases, self.api_key, self.max_bytes = leases, api_key, max_bytes
        self.hosts = {*LOCAL, *(host.lower() for host in hosts)}
        self.log = log

    def route(self, method: str, path: str, handler: Handler[S], kind: Kind) -> Route:
        """A call at a path, which is answered and logged."""

        async def endpoint(request: Request) -> Response:
            start = time.perf_counter()
            notes: list[str] = []
            try:
                response = await self._answer(request, handler, kind, notes)
            except ClientDisconnect:
                response = JSONResponse({"detail": "the client has gone"}, 400)
            except Failure as failure:
                notes.append(failure.detail)
                response = JSONResponse({"detail": plain(failure.detail)}, failure.status)
            except Exception as error:  # a mistake of this program; the log has all of it
                notes.append(f"{type(error).__name__}: {error}")
                traceback.print_exc()
                response = JSONResponse({"detail": "the server made a mistake: see its log"}, 500)
            ms = 1000 * (time.perf_counter() - start)
            said = "".join(f"; {plain(note)}" for note in notes)
            self.log(
                f"{request.method} {request.url.path} {response.status_code} {ms:.0f} ms{said}"
            )
            return response

        return Route(path, endpoint, methods=[method])

    async def _answer(
        self, request: Request, handler: Handler[S], kind: Kind, notes: list[str]
    ) -> Response:
        self.check_origin(request)
        self._check_key(request)
        lease = None
        try:
            if kind is not Kind.FREE:
                lease = self.leases.get(request.headers.get(LEASE, ""), kind is not Kind.WATCH)
            call = Call(request, lease, notes)
            if lease is None or kind is Kind.WATCH:
                call.body = await self._body(request, SMALL_BODY)
                return await handler(call)
            limit = SMALL_BODY + (self.max_bytes if kind is Kind.LARGE else 0)
            async with lease.turn:  # which keeps it from ending while the body comes in
                if not self.leases.is_held(lease):
                    raise Gone("the session has ended: connect again")
                call.body = await self._body(request, limit)
                try:
                    response = await handler(call)
                except Exception as error:  # of whatever kind, where all was taken away meanwhile
                    if not self.leases.is_held(lease):
                        raise Gone("the session ended while this was worked on") from error
                    raise
            lease.acted = lease.alive = self.leases.clock()  # from the end of the work
            if not self.leases.is_held(lease):
                raise Gone("the session ended while this was worked on")
            return response
        except NoRoom as error:
            raise Failure(503, str(error)) from error
        except Gone as error:
            raise Failure(410, str(error)) from error
        except (Refused, WireError) as error:
            raise Failure(400, str(error)) from error
        except MemoryError as error:
            raise Failure(413, "expected less than the memory that is left") from error

    def check_origin(self, request: Request) -> None:
        """A page of another site, or a name that leads here (DNS rebinding), asks for nothing."""
        host = request.headers.get("host", "")
        if _hostname(f"//{host}") not in self.hosts:
            known = ", ".join(sorted(self.hosts))
            raise Failure(403, f"expected a Host of {known}, got {host[:80]!r}")
        origin = request.headers.get("origin")
        if origin is not None and (not _hostname(origin) or urlsplit(origin).netloc != host):
            raise Failure(403, f"expected no page of another site, got {origin[:80]!r}")

    def _check_key(self, request: Request) -> None:
        shown = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.api_key and not hmac.compare_digest(shown.encode(), self.api_key.encode()):
            raise Failure(
                401, "expected the key that the server printed, as Authorization: Bearer KEY"
            )

    async def _body(self, request: Request, limit: int) -> bytes:
        """The body, whose size is limited before and while it is read."""
        stated = request.headers.get("content-length", "0")
        if not stated.isdecimal() or int(stated) > limit:
            raise Failure(413, f"expected a body of at most {limit} bytes, got {stated[:20]}")
        parts: list[bytes] = []
        size = 0
        chunks = request.stream()
        while True:
            try:
                part = await asyncio.wait_for(anext(chunks, None), STALL)
            except TimeoutError:
                raise Failure(408, f"expected a body, got nothing for {STALL:.0f} s") from None
            if part is None:
                return b"".join(parts)
            size += len(part)
            if size > limit:
                raise Failure(413, f"expected a body of at most {limit} bytes, got more")
            parts.append(part)


def _object(text: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Failure(400, f"{name}: expected JSON, got {text[:80]!r}") from error
    if not isinstance(value, dict):
        raise Failure(400, f"{name}: expected a JSON object, got {text[:80]!r}")
    return value


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def plain(text: str) -> str:
    """A text of a client's as one short line of ASCII."""
    return text[:MAX_SAID].encode("unicode_escape").decode()
