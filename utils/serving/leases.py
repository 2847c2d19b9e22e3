"""Which clients hold a session, and until when."""

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Closable(Protocol):
    """What a lease is on."""

    def close(self) -> None:
        """Stop what is worked on, and hold nothing any more."""


S = TypeVar("S", bound=Closable)  # a session


class NoRoom(RuntimeError):
    """All sessions are held."""


class Gone(RuntimeError):
    """A lease that was released, has expired, or never was."""


@dataclass
class Lease(Generic[S]):
    """A client's hold on a session.

    Attributes:
        token: What the client shows.
        session: Its own.
        acted: When the user last did something, in seconds of the monotonic clock.
        alive: When the client was last heard of.
        turn: Held by the one of its requests that is worked on.
    """

    token: str
    session: S
    acted: float
    alive: float
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Leases(Generic[S]):
    """All leases; those that end close their sessions.

    Args:
        make: Makes a session.
        most: Leases at a time.
        idle: Seconds without an action of the user after which one ends.
        liveness: Seconds without a word of the client.
        spare: Seconds without an action after which one may end early, to make room for another;
            None: it may not.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        make: Callable[[], S],
        most: int,
        idle: float,
        liveness: float,
        spare: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.make, self.most, self.idle, self.liveness = make, most, idle, liveness
        self.spare, self.clock = spare, clock
        self._held: dict[str, Lease[S]] = {}

    def claim(self) -> Lease[S]:
        """A new lease; raises NoRoom."""
        self.expire()
        if len(self._held) >= self.most and not self._make_room():
            raise NoRoom(f"all {self.most} sessions are in use: try again later")
        now = self.clock()
        lease = Lease(secrets.token_urlsafe(24), self.make(), now, now)
        self._held[lease.token] = lease
        return lease

    def get(self, token: str, is_action: bool) -> Lease[S]:
        """The lease of a token; raises Gone."""
        self.expire()
        lease = self._held.get(token)
        if lease is None:
            raise Gone("the session has ended: connect again")
        lease.alive = self.clock()
        if is_action:
            lease.acted = lease.alive
        return lease

    def release(self, token: str) -> None:
        lease = self._held.pop(token, None)
        if lease is not None:
            lease.session.close()

    def release_all(self) -> None:
        for token in list(self._held):
            self.release(token)

    def remaining(self, lease: Lease[S]) -> float:
        """Seconds until it ends unless the user does something."""
        return max(0.0, lease.acted + self.idle - self.clock())

    def is_held(self, lease: Lease[S]) -> bool:
        return lease.token in self._held

    def expire(self) -> None:
        """End the leases whose time is over; one that is worked on lives."""
        now = self.clock()
        for token, lease in list(self._held.items()):
            is_over = now > lease.acted + self.idle or now > lease.alive + self.liveness
            if is_over and not lease.turn.locked():
                self.release(token)

    def _make_room(self) -> bool:
        """End the lease that was idle for longest, if it was for long enough."""
        resting = [lease for lease in self._held.values() if not lease.turn.locked()]
        idlest = min(resting, key=lambda lease: lease.acted, default=None)
        if idlest is None or self.spare is None or self.clock() < idlest.acted + self.spare:
            return False
        self.release(idlest.token)
        return True
