"""Work that is done while a user looks at an answer, so that the next one comes sooner."""

import asyncio
from contextlib import suppress
from typing import Protocol

from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool


class Preparing(Protocol):
    """A session that may do something ahead."""

    def prepare(self) -> None: ...


def ahead(network: asyncio.Lock, session: Preparing) -> BackgroundTask:
    """A task for an answer, which begins once that was sent.

    Args:
        network: Held by the one prediction that is made.
        session: It may end, or take another image, meanwhile.
    """

    async def prepare() -> None:
        async with network:
            with suppress(ValueError):
                await run_in_threadpool(session.prepare)

    return BackgroundTask(prepare)
