"""The HTTP protocol of nnInteractive's clients (2.5 and 2.6), for 3D Slicer, napari and MITK.

Everything is answered at once but predictions, which wait for each other: they share a network.
"""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from utils.serving.leases import Gone, Lease, Leases, NoRoom
from utils.serving.session import Change, Refused, Session
from utils.serving.wire import WireError, pack, unpack

META, LEASE = "X-Meta", "X-Lease-Token"
VERSION = 2  # of nnInteractive's sessions, whose calls these are
LOCAL = ("127.0.0.1", "localhost", "::1")
SMALL_BODY = 2**20  # bytes of a body of JSON
MAX_SAID = 300  # characters of a message
WORDS = ("include_interaction", "run_prediction")
STALL = 60.0  # seconds that a client may be silent within a body
EXPIRY = 1.0  # seconds between two looks for leases that are over


class Failure(Exception):
    """An answer that is an error: status and text."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


Handler = Callable[["Call"], Awaitable[Response]]


class Call:
    """A request with what has been found out about it.

    Attributes:
        request: As Starlette has it.
        body: Its bytes.
        lease: The client's, where the call needs one.
        notes: For the log.
    """

    def __init__(self, request: Request, lease: Lease | None, notes: list[str]) -> None:
        self.request, self._lease, self.notes = request, lease, notes
        self.body = b""

    @property
    def lease(self) -> Lease:
        assert self._lease is not None
        return self._lease

    @property
    def session(self) -> Session:
        return self.lease.session

    def json(self) -> dict[str, Any]:
        return _object(self.body or b"{}", "the body")

    def meta(self) -> dict[str, Any]:
        return _object(self.request.headers.get(META, "{}").encode(), META)


def _object(text: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Failure(400, f"{name}: expected JSON, got {text[:80]!r}") from error
    if not isinstance(value, dict):
        raise Failure(400, f"{name}: expected a JSON object, got {text[:80]!r}")
    return value


class Server:
    """Answers the calls.

    Args:
        leases: Of the clients.
        api_key: That they show; "" for none.
        max_bytes: Of an image, unpacked; a body may have a little more.
        hosts: Names by which the server may be called, beside LOCAL.
        log: Takes a line for each request.
        draws: Whether the network was trained with drawings.
        size: Voxels along the side of its ROI.
        licence: Of its weights; "" if not known.
    """

    def __init__(
        self,
        leases: Leases,
        api_key: str,
        max_bytes: int,
        hosts: tuple[str, ...] = (),
        log: Callable[[str], None] = print,
        draws: bool = False,
        size: int = 64,
        licence: str = "",
    ) -> None:
        self.leases, self.api_key, self.max_bytes = leases, api_key, max_bytes
        self.hosts = {*LOCAL, *(host.lower() for host in hosts)}
        self.log = log
        self.draws, self.size, self.licence = draws, size, licence
        self._network = asyncio.Lock()
        self._large = {self.set_image, self.add_scribble, self.add_lasso, self.add_initial}

    def app(self) -> Starlette:
        calls: dict[str, tuple[str, Handler, bool]] = {
            "/claim": ("POST", self.claim, False),
            "/release": ("POST", self.release, False),
            "/capabilities": ("GET", self.capabilities, False),
            "/heartbeat": ("POST", self.heartbeat, False),
            "/lease_status": ("GET", self.heartbeat, False),
            "/set_image": ("POST", self.set_image, True),
            "/set_target_buffer": ("POST", self.set_target_buffer, True),
            "/add_point_interaction": ("POST", self.add_point, True),
            "/add_bbox_interaction": ("POST", self.add_box, True),
            "/add_scribble_interaction": ("POST", self.add_scribble, True),
            "/add_lasso_interaction": ("POST", self.add_lasso, True),
            "/add_initial_seg_interaction": ("POST", self.add_initial, True),
            "/undo": ("POST", self.undo, True),
            "/predict": ("POST", self.predict, True),
            "/reset_interactions": ("POST", self.reset, True),
            "/set_do_autozoom": ("POST", self.set_autozoom, True),
        }
        routes = [
            Route(path, self._endpoint(handler, is_action), methods=[method])
            for path, (method, handler, is_action) in calls.items()
        ]
        return Starlette(
            routes=[Route("/healthz", self.healthz, methods=["GET"]), *routes],
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async def expire() -> None:
            while True:
                await asyncio.sleep(EXPIRY)
                self.leases.expire()

        task = asyncio.create_task(expire())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    def _endpoint(
        self, handler: Handler, is_action: bool
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            start = time.perf_counter()
            notes: list[str] = []
            try:
                response = await self._answer(request, handler, is_action, notes)
            except ClientDisconnect:
                response = JSONResponse({"detail": "the client has gone"}, 400)
            except Failure as failure:
                notes.append(failure.detail)
                response = JSONResponse({"detail": _plain(failure.detail)}, failure.status)
            ms = 1000 * (time.perf_counter() - start)
            said = "".join(f"; {_plain(note)}" for note in notes)
            self.log(
                f"{request.method} {request.url.path} {response.status_code} {ms:.0f} ms{said}"
            )
            return response

        return endpoint

    async def _answer(
        self, request: Request, handler: Handler, is_action: bool, notes: list[str]
    ) -> Response:
        self._check_origin(request)
        self._check_key(request)
        lease = None
        try:
            if handler not in (self.claim, self.release):
                lease = self.leases.get(request.headers.get(LEASE, ""), is_action)
            call = Call(request, lease, notes)
            if lease is None or not is_action:
                call.body = await self._body(request, SMALL_BODY)
                return await handler(call)
            limit = self.max_bytes + SMALL_BODY if handler in self._large else SMALL_BODY
            async with lease.turn:  # which keeps it from ending while the body comes in
                if not self.leases.is_held(lease):
                    raise Gone("the session has ended: connect again")
                call.body = await self._body(request, limit)
                response = await handler(call)
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

    def _check_origin(self, request: Request) -> None:
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

    # Leases

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"ok": True})

    async def claim(self, call: Call) -> Response:
        lease = self.leases.claim()
        return JSONResponse(
            {
                "lease_token": lease.token,
                "idle_timeout_seconds": self.leases.idle,
                "liveness_timeout_seconds": self.leases.liveness,
                "max_sessions": self.leases.most,
            }
        )

    async def release(self, call: Call) -> Response:
        self.leases.release(call.request.headers.get(LEASE, ""))
        return JSONResponse({"released": True})

    async def heartbeat(self, call: Call) -> Response:
        return JSONResponse(
            {
                "remaining_seconds": self.leases.remaining(call.lease),
                "idle_timeout_seconds": self.leases.idle,
            }
        )

    async def capabilities(self, call: Call) -> Response:
        kinds = ("points", "bbox2d", "bbox3d", "scribble", "lasso")
        always = ("points", "bbox3d")
        channels = {kind: [2 * i + 1, 2 * i + 2] for i, kind in enumerate(kinds)}
        return JSONResponse(
            {
                "supported_interactions": {k: self.draws or k in always for k in kinds},
                "channel_mapping": {"prev_seg": 0, **channels},
                "num_interaction_channels": 1 + 2 * len(kinds),
                "supports_initial_label": True,
                "supports_zero_shot_label_refinement": False,
                "preferred_scribble_thickness": [1, 1, 1],
                "interaction_decay": 1.0,
                "patch_size": [self.size] * 3,
                "do_autozoom": call.session.do_autozoom,
                "inference_session_version": VERSION,
                "license": self.licence,
                "supports_undo": True,
            }
        )

    # Image and prompts

    async def set_image(self, call: Call) -> Response:
        image = await self._unpacked(call)
        properties = call.meta().get("image_properties")
        call.notes += await run_in_threadpool(call.session.set_image, image, properties)
        return JSONResponse({"original_image_shape": list(image.shape)})

    async def set_target_buffer(self, call: Call) -> Response:
        given = call.json()
        shape = given.get("shape")
        if not isinstance(shape, list):
            raise Refused(f"expected a shape, got {str(shape)[:80]}")
        call.session.set_buffer(shape, given.get("dtype"))
        return JSONResponse({})

    async def add_point(self, call: Call) -> Response:
        given = call.json()
        is_run = _flag(given, "run_prediction")
        call.session.add_point(given.get("coordinates"), _flag(given, "include_interaction"))
        return await self._predicted(call, is_run)

    async def add_box(self, call: Call) -> Response:
        given = call.json()
        is_run = _flag(given, "run_prediction")
        call.session.add_box(given.get("bbox_coords"), _flag(given, "include_interaction"))
        return await self._predicted(call, is_run)

    async def add_scribble(self, call: Call) -> Response:
        return await self._add_drawn(call, is_region=False)

    async def add_lasso(self, call: Call) -> Response:
        return await self._add_drawn(call, is_region=True)

    async def _add_drawn(self, call: Call, is_region: bool) -> Response:
        given, mask = call.meta(), await self._unpacked(call)
        is_foreground, is_run = (_flag(given, word) for word in WORDS)
        bbox = given.get("interaction_bbox")
        await run_in_threadpool(call.session.add_drawn, mask, bbox, is_foreground, is_region)
        return await self._predicted(call, is_run)

    async def add_initial(self, call: Call) -> Response:
        given, labels = call.meta(), await self._unpacked(call)
        is_run = _flag({"run_prediction": False} | given, "run_prediction")
        await run_in_threadpool(call.session.begin_with, labels)
        return await self._predicted(call, is_run)

    async def predict(self, call: Call) -> Response:
        return await self._predicted(call, True)

    async def undo(self, call: Call) -> Response:
        change = await run_in_threadpool(call.session.undo)
        return await run_in_threadpool(_changed, change)

    async def reset(self, call: Call) -> Response:
        call.session.reset()
        return JSONResponse({})

    async def set_autozoom(self, call: Call) -> Response:
        call.session.do_autozoom = _flag(call.json(), "do_autozoom")
        return JSONResponse({})

    async def _unpacked(self, call: Call) -> Any:
        return await run_in_threadpool(unpack, call.body, self.max_bytes)

    async def _predicted(self, call: Call, is_run: bool) -> Response:
        """The answer to new prompts, which may be asked to wait for others."""
        change = Change(False)
        if is_run:
            async with self._network:
                change = await run_in_threadpool(call.session.predict)
        return await run_in_threadpool(_changed, change)


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _plain(text: str) -> str:
    """A text of a client's as one short line of ASCII."""
    return text[:MAX_SAID].encode("unicode_escape").decode()


def _flag(given: dict[str, Any], name: str) -> bool:
    value = given.get(name, True)
    if not isinstance(value, bool):
        raise Refused(f"expected {name} as true or false, got {str(value)[:40]}")
    return value


def _changed(change: Change) -> Response:
    meta = json.dumps({"ran_prediction": change.ran, "bbox": change.bbox})
    body = b"" if change.labels is None else pack(change.labels)
    return Response(body, media_type="application/octet-stream", headers={META: meta})
