"""The page in the browser: its files, and the calls that it makes."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from utils.serving.ahead import ahead
from utils.serving.gate import LEASE, META, Call, Failure, Gate, Kind, plain
from utils.serving.session import Refused
from utils.serving.workspace import Workspace, sent_image

FILES = Path(__file__).with_name("page")
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
OCTETS = "application/octet-stream"
T = TypeVar("T")


class Page:
    """Answers the page's calls.

    Args:
        gate: Who may call, with a lease on a workspace.
        network: Held by the one prediction that is made.
        name: The network's.
        draws: Whether it was trained with drawings.
        given: Name of the scan that is opened at first, or None.
    """

    def __init__(
        self,
        gate: Gate[Workspace],
        network: asyncio.Lock,
        name: str,
        draws: bool,
        given: str | None,
    ) -> None:
        self.gate, self.network = gate, network
        self.name, self.draws, self.given = name, draws, given
        self._files = {
            path.name: (path.read_bytes(), TYPES[path.suffix])
            for path in sorted(FILES.iterdir())
            if path.suffix in TYPES
        }

    def routes(self) -> list[Route]:
        free, _, action, large = Kind
        return [
            self.gate.route("POST", "/page/claim", self.claim, free),
            self.gate.route("POST", "/page/release", self.release, free),
            self.gate.route("POST", "/page/upload", self.upload, large),
            self.gate.route("POST", "/page/open", self.open, action),
            self.gate.route("GET", "/page/volume", self.volume, action),
            self.gate.route("POST", "/page/labels", self.labels, large),
            self.gate.route("POST", "/page/segment", self.segment, action),
            self.gate.route("POST", "/page/suggest", self.suggest, action),
            self.gate.route("POST", "/page/save", self.save, action),
            Route("/", self.file, methods=["GET"]),
            Route("/page/{name}", self.file, methods=["GET"]),
        ]

    async def file(self, request: Request) -> Response:
        """One of the page's own files; they need no key, and no others are there."""
        try:
            self.gate.check_origin(request)
        except Failure as failure:
            return JSONResponse({"detail": plain(failure.detail)}, failure.status)
        name = request.path_params.get("name", "index.html")
        if name not in self._files:
            return JSONResponse({"detail": "no such file"}, 404)
        content, kind = self._files[name]
        return Response(content, media_type=kind, headers=HEADERS)

    async def claim(self, call: Call[Workspace]) -> Response:
        lease = self.gate.leases.claim()
        return JSONResponse(
            {
                "lease_token": lease.token,
                "network": self.name,
                "draws": self.draws,
                "given": self.given,
                "max_bytes": self.gate.max_bytes,
            }
        )

    async def release(self, call: Call[Workspace]) -> Response:
        self.gate.leases.release(call.request.headers.get(LEASE, ""))
        return JSONResponse({"released": True})

    async def upload(self, call: Call[Workspace]) -> Response:
        given = call.meta()
        is_first = given.get("first") is True
        name, series = given.get("name"), given.get("series")
        files, size = await _work(call.session.take_file, name, call.body, is_first, series)
        return JSONResponse({"files": files, "bytes": size})

    async def open(self, call: Call[Workspace]) -> Response:
        given = call.json()
        is_sent = given.get("uploaded") is True
        found = await _work(call.session.open, is_sent, given.get("window"))
        return JSONResponse(found)

    async def volume(self, call: Call[Workspace]) -> Response:
        return Response(await _work(call.session.volume), media_type=OCTETS)

    async def labels(self, call: Call[Workspace]) -> Response:
        name = call.meta().get("name")
        volume, labels = await _work(call.session.take_labels, name, call.body)
        return _binary({"labels": labels}, volume.tobytes())

    async def segment(self, call: Call[Workspace]) -> Response:
        entry = call.json().get("object")
        async with self.network:
            prediction = await _work(call.session.segment, entry)
        answer = _binary(*await _work(sent_image, prediction))
        answer.background = ahead(self.network, call.session)
        return answer

    async def suggest(self, call: Call[Workspace]) -> Response:
        entry = call.json().get("object")
        async with self.network:
            return JSONResponse({"voxel": await _work(call.session.suggest, entry)})

    async def save(self, call: Call[Workspace]) -> Response:
        given = call.json()
        async with self.network:
            found = await _work(call.session.save, given.get("objects"), given.get("format"))
        name, content = found
        return _binary({"name": name}, content)


async def _work(function: Callable[..., T], *arguments: Any) -> T:
    """Off the loop; what a file or its prompts are refused for becomes the answer."""
    try:
        return await run_in_threadpool(function, *arguments)
    except OSError as error:
        name = Path(error.filename).name if isinstance(error.filename, str) else ""
        said = f"{name}: {error.strerror}" if error.strerror else str(error)
        raise Refused(said) from error  # without the path on the disk
    except (ValueError, RuntimeError) as error:
        raise Refused(str(error)) from error


def _binary(meta: dict[str, Any], body: bytes) -> Response:
    return Response(body, media_type=OCTETS, headers={META: json.dumps(meta)})
