"""The HTTP protocol of nnInteractive's clients (2.5 and 2.6), for 3D Slicer, napari and MITK.

Everything is answered at once but predictions, which wait for each other: they share a network.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from utils.serving.ahead import ahead
from utils.serving.browser import Page
from utils.serving.gate import LEASE, META, Call, Gate, Handler, Kind
from utils.serving.leases import Leases
from utils.serving.session import Change, Refused, Session
from utils.serving.wire import pack, unpack

VERSION = 2  # of nnInteractive's sessions, whose calls these are
WORDS = ("include_interaction", "run_prediction")
EXPIRY = 1.0  # seconds between two looks for leases that are over


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
        leases: Leases[Session],
        api_key: str,
        max_bytes: int,
        hosts: tuple[str, ...] = (),
        log: Callable[[str], None] = print,
        draws: bool = False,
        size: int = 64,
        licence: str = "",
    ) -> None:
        self.gate = Gate(leases, api_key, max_bytes, hosts, log)
        self.leases, self.max_bytes = leases, max_bytes
        self.draws, self.size, self.licence = draws, size, licence
        self.network = asyncio.Lock()

    def app(self, page: Page | None = None) -> Starlette:
        """What answers; with the page, if one is given."""
        free, watch, action, large = Kind
        calls: tuple[tuple[str, str, Handler[Session], Kind], ...] = (
            ("POST", "/claim", self.claim, free),
            ("POST", "/release", self.release, free),
            ("GET", "/capabilities", self.capabilities, watch),
            ("POST", "/heartbeat", self.heartbeat, watch),
            ("GET", "/lease_status", self.heartbeat, watch),
            ("POST", "/set_image", self.set_image, large),
            ("POST", "/set_target_buffer", self.set_target_buffer, action),
            ("POST", "/add_point_interaction", self.add_point, action),
            ("POST", "/add_bbox_interaction", self.add_box, action),
            ("POST", "/add_scribble_interaction", self.add_scribble, large),
            ("POST", "/add_lasso_interaction", self.add_lasso, large),
            ("POST", "/add_initial_seg_interaction", self.add_initial, large),
            ("POST", "/undo", self.undo, action),
            ("POST", "/predict", self.predict, action),
            ("POST", "/reset_interactions", self.reset, action),
            ("POST", "/set_do_autozoom", self.set_autozoom, action),
        )
        routes = [self.gate.route(*call) for call in calls]
        leases: list[Leases[Any]] = [self.leases]
        if page is not None:
            routes += page.routes()
            leases.append(page.gate.leases)

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            task = asyncio.create_task(_expire(leases))
            yield
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        routes.append(Route("/healthz", self.healthz, methods=["GET"]))
        return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _no})

    # Leases

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"ok": True})

    async def claim(self, call: Call[Session]) -> Response:
        lease = self.leases.claim()
        return JSONResponse(
            {
                "lease_token": lease.token,
                "idle_timeout_seconds": self.leases.idle,
                "liveness_timeout_seconds": self.leases.liveness,
                "max_sessions": self.leases.most,
            }
        )

    async def release(self, call: Call[Session]) -> Response:
        self.leases.release(call.request.headers.get(LEASE, ""))
        return JSONResponse({"released": True})

    async def heartbeat(self, call: Call[Session]) -> Response:
        return JSONResponse(
            {
                "remaining_seconds": self.leases.remaining(call.lease),
                "idle_timeout_seconds": self.leases.idle,
            }
        )

    async def capabilities(self, call: Call[Session]) -> Response:
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

    async def set_image(self, call: Call[Session]) -> Response:
        image = await self._unpacked(call)
        properties = call.meta().get("image_properties")
        call.notes += await run_in_threadpool(call.session.set_image, image, properties)
        return JSONResponse({"original_image_shape": list(image.shape)})

    async def set_target_buffer(self, call: Call[Session]) -> Response:
        given = call.json()
        shape = given.get("shape")
        if not isinstance(shape, list):
            raise Refused(f"expected a shape, got {str(shape)[:80]}")
        call.session.set_buffer(shape, given.get("dtype"))
        return JSONResponse({})

    async def add_point(self, call: Call[Session]) -> Response:
        given = call.json()
        is_run = _flag(given, "run_prediction")
        call.session.add_point(given.get("coordinates"), _flag(given, "include_interaction"))
        return await self._predicted(call, is_run)

    async def add_box(self, call: Call[Session]) -> Response:
        given = call.json()
        is_run = _flag(given, "run_prediction")
        call.session.add_box(given.get("bbox_coords"), _flag(given, "include_interaction"))
        return await self._predicted(call, is_run)

    async def add_scribble(self, call: Call[Session]) -> Response:
        return await self._add_drawn(call, is_region=False)

    async def add_lasso(self, call: Call[Session]) -> Response:
        return await self._add_drawn(call, is_region=True)

    async def _add_drawn(self, call: Call[Session], is_region: bool) -> Response:
        given, mask = call.meta(), await self._unpacked(call)
        is_foreground, is_run = (_flag(given, word) for word in WORDS)
        bbox = given.get("interaction_bbox")
        await run_in_threadpool(call.session.add_drawn, mask, bbox, is_foreground, is_region)
        return await self._predicted(call, is_run)

    async def add_initial(self, call: Call[Session]) -> Response:
        given, labels = call.meta(), await self._unpacked(call)
        is_run = _flag({"run_prediction": False} | given, "run_prediction")
        await run_in_threadpool(call.session.begin_with, labels)
        return await self._predicted(call, is_run)

    async def predict(self, call: Call[Session]) -> Response:
        return await self._predicted(call, True)

    async def undo(self, call: Call[Session]) -> Response:
        change = await run_in_threadpool(call.session.undo)
        return await run_in_threadpool(_changed, change)

    async def reset(self, call: Call[Session]) -> Response:
        call.session.reset()
        return JSONResponse({})

    async def set_autozoom(self, call: Call[Session]) -> Response:
        call.session.do_autozoom = _flag(call.json(), "do_autozoom")
        return JSONResponse({})

    async def _unpacked(self, call: Call[Session]) -> Any:
        return await run_in_threadpool(unpack, call.body, self.max_bytes)

    async def _predicted(self, call: Call[Session], is_run: bool) -> Response:
        """The answer to new prompts, which may be asked to wait for others."""
        change = Change(False)
        if is_run:
            async with self.network:
                change = await run_in_threadpool(call.session.predict)
        answer = await run_in_threadpool(_changed, change)
        answer.background = ahead(self.network, call.session)
        return answer


async def _no(request: Request, error: Exception) -> Response:
    """No such call."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


async def _expire(leases: list[Leases[Any]]) -> None:
    while True:
        await asyncio.sleep(EXPIRY)
        for each in leases:
            each.expire()


def _flag(given: dict[str, Any], name: str) -> bool:
    value = given.get(name, True)
    if not isinstance(value, bool):
        raise Refused(f"expected {name} as true or false, got {str(value)[:40]}")
    return value


def _changed(change: Change) -> Response:
    meta = json.dumps({"ran_prediction": change.ran, "bbox": change.bbox})
    body = b"" if change.labels is None else pack(change.labels)
    return Response(body, media_type="application/octet-stream", headers={META: meta})
