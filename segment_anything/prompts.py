"""What a user says about an object: a box and clicks, in voxels of the original volume."""

from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class Click:
    """A voxel (z, y, x) inside the object, or outside of it."""

    point: Index3
    is_foreground: bool


@dataclass(frozen=True)
class Prompts:
    """The prompts of one object.

    Attributes:
        box: None where there is none.
        clicks: In the order in which they were made.
        is_right: The last round found nothing to correct.
    """

    box: Box | None = None
    clicks: tuple[Click, ...] = ()
    is_right: bool = False

    @property
    def newest(self) -> "Prompts":
        """The same with, of several clicks on a voxel, the last one alone."""
        newest: dict[Index3, Click] = {}
        for click in self.clicks:
            newest.pop(click.point, None)
            newest[click.point] = click
        return replace(self, clicks=tuple(newest.values()))
