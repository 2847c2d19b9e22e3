"""What a user says about an object, in voxels of the original volume."""

from dataclasses import dataclass, replace

import numpy as np

Index3 = tuple[int, int, int]
Region = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Box:
    """A half-open region [start, stop) in (z, y, x).

    The challenge's are exact along z alone: y and x come from the object's middle slice, so it may
    be wider elsewhere.
    """

    start: Index3
    stop: Index3

    @property
    def is_slice(self) -> bool:
        """True if it is a voxel thick along one axis."""
        return sum(b - a == 1 for a, b in zip(self.start, self.stop, strict=True)) == 1


@dataclass(frozen=True)
class Click:
    """A voxel (z, y, x) inside the object, or outside of it."""

    point: Index3
    is_foreground: bool


@dataclass(frozen=True, eq=False)
class Drawing:
    """Voxels that were drawn on, mostly in one slice of any axis.

    Attributes:
        start: First voxel (z, y, x) of the part of the volume that holds them.
        inside: (d, h, w) bool, that part.
        is_region: A lasso's or a slice's box, filled; else a scribble, which lies somewhere inside.
        is_foreground: The object is there, or is not.
        after: Clicks on the object that were made before it.
    """

    start: Index3
    inside: np.ndarray
    is_region: bool
    is_foreground: bool
    after: int = 0

    @property
    def bounds(self) -> np.ndarray:
        """(2, 3) lower and upper edges of the part."""
        return np.add(self.start, [(0, 0, 0), self.inside.shape]).astype(float)


@dataclass(frozen=True)
class Prompts:
    """The prompts of one object.

    Attributes:
        box: Of the whole object; None where there is none.
        clicks: In the order in which they were made.
        is_right: The last round found nothing to correct.
        drawings: Scribbles, lassos and boxes in a slice.
    """

    box: Box | None = None
    clicks: tuple[Click, ...] = ()
    is_right: bool = False
    drawings: tuple[Drawing, ...] = ()

    @property
    def count(self) -> int:
        """How many prompts there are."""
        return (self.box is not None) + len(self.clicks) + len(self.drawings)

    def steps(self, most: int) -> list["Prompts"]:
        """What there was after each of the last `most` prompts, which come in this order.

        The box, then clicks and drawings as they were made.
        """
        drawings = sorted(self.drawings, key=lambda drawing: drawing.after)
        counts = [] if self.box is None else [(0, 0)]  # of clicks and drawings
        drawn = 0
        for clicked in range(len(self.clicks) + 1):
            if clicked:
                counts.append((clicked, drawn))
            while drawn < len(drawings) and drawings[drawn].after == clicked:
                drawn += 1
                counts.append((clicked, drawn))
        return [
            Prompts(self.box, self.clicks[:clicked], drawings=tuple(drawings[:drawn]))
            for clicked, drawn in counts[-most:]
        ]

    @property
    def newest(self) -> "Prompts":
        """The same with, of several clicks on a voxel, the last one alone."""
        newest: dict[Index3, Click] = {}
        for click in self.clicks:
            newest.pop(click.point, None)
            newest[click.point] = click
        return replace(self, clicks=tuple(newest.values()))
