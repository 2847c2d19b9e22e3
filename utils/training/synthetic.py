"""Synthetic cases: random anatomy-like label maps, and images of them as many modalities take them.

The idea is SynthSeg's (Billot et al., Medical Image Analysis 2023): contrasts that no scanner makes
teach a network to follow the prompts and the edges, whatever the modality. Shapes are random
(organs, shells, vessels, sheets, cells) or those of a label map, deformed; one whose labels have
names may be painted as CT.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.formats.label_map import LabelMap
from utils.training.clicks import squared_depth
from utils.training.fields import RandomFields, blurred
from utils.training.tissues import is_known, painted_ct, windowed

SIDE = 80  # voxels of the cube in which a case is made, before slices are thickened
MAX_THICKNESS = 6  # of a slice, over the pixels in it
DISTRACTORS = 0.2  # of the objects are in the image, but have no label
NEAR = 4  # voxels of body round the objects, at least
MAPPED = 0.5  # of the cases have the labels of a map, where there are some
PAINTED = 0.6  # of those with names of tissues look as CT shows these
LESIONS = 0.4  # of the cases with labels of a map have some in its objects


@dataclass(frozen=True)
class SyntheticCase:
    """Image and labels.

    Attributes:
        image: (D, H, W) = (z, y, x) uint8.
        gts: (D, H, W) uint16; labels from 1 on, not necessarily without gaps.
        spacing: (z, y, x) in mm.
    """

    image: np.ndarray
    gts: np.ndarray
    spacing: tuple[float, float, float]


def make_case(
    seed: int,
    maps: Sequence[Callable[[], LabelMap]] = (),
    side: int = SIDE,
    device: torch.device | str = "cpu",
) -> SyntheticCase:
    """The case of a seed.

    Args:
        seed: 0 or more.
        maps: Each returns one that may give the shapes.
        side: Voxels along the sides of the cube in which it is made.
        device: To make it on.
    """
    fields = RandomFields(seed, side, torch.device(device))
    grid = deformed_grid(fields)
    names: Mapping[int, str] = {}
    if maps and fields.happens(MAPPED):
        labels, names = deformed_labels(fields, grid, maps[fields.integer(0, len(maps) - 1)]())
        if fields.happens(LESIONS):
            labels = with_lesions(fields, grid, labels)
    elif fields.happens(0.3):
        labels = cells(fields, grid)
    else:
        labels = organs(fields, grid)
    while not labels.any():  # objects beside the cube, or a part of the map where nothing is
        labels, names = organs(fields, grid), {}
    is_ct = is_known(names) and fields.happens(PAINTED)
    if is_ct:
        image = scanned_ct(fields, labels, names)
    else:
        image = scaled(STYLES[fields.integer(0, len(STYLES) - 1)](fields, labels))
    values = torch.unique(labels[labels > 0]).tolist()
    hidden = [value for value in values if fields.happens(DISTRACTORS)]
    if len(hidden) < len(values):
        labels = labels.where(~torch.isin(labels, torch.tensor(hidden, device=labels.device)), 0)
    return sliced(fields, image, labels)


# Label maps


def deformed_grid(fields: RandomFields) -> Tensor:
    """(3, N, N, N) coordinates in -1..1 along z, y, x, bent; sometimes stretched along z."""
    axis = torch.linspace(-1, 1, fields.side, device=fields.device)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    grid = grid + fields.uniform(0, 0.12) * fields.smooth(3, 3)
    grid = grid + fields.uniform(0, 0.04) * fields.smooth(8, 3)
    if fields.happens(0.15):  # little changes from slice to slice, as with a time axis
        grid[0] *= fields.uniform(0.1, 0.4)
    return grid


def organs(fields: RandomFields, grid: Tensor) -> Tensor:
    """(N, N, N) labels of a few objects over, beside and inside each other."""
    labels = torch.zeros_like(grid[0], dtype=torch.int64)
    kinds = (blob, blob, blob, shell, shell, tree, tree, tube, wings, sheet)
    count = 1
    for _ in range(fields.integer(2, 12)):
        kind = kinds[fields.integer(0, len(kinds) - 1)]
        middle = fields.vector(-0.75, 0.75)
        size = fields.log_uniform(0.1, 0.6)
        for part in kind(fields, grid, middle, size):
            labels[part] = count
            count += 1
        if fields.happens(0.3):  # something inside, such as a lesion
            inside = blob(fields, grid, middle + size * fields.vector(-0.4, 0.4), 0.4 * size)[0]
            labels[inside & (labels == count - 1)] = count
            count += 1
    return labels


def distance_to(fields: RandomFields, grid: Tensor, middle: Tensor, size: float) -> Tensor:
    """A lumpy superellipsoid's level set, below 1 inside."""
    turned = torch.tensordot(fields.rotation(), grid - middle[:, None, None, None], dims=1)
    radii = size * torch.exp(fields.vector(-0.7, 0.4))
    power = fields.uniform(1.6, 4.0)
    level = ((turned / radii[:, None, None, None]).abs() ** power).sum(dim=0) ** (1 / power)
    return level + fields.uniform(0, 0.25) * fields.smooth(fields.integer(4, 12))[0]


def blob(fields: RandomFields, grid: Tensor, middle: Tensor, size: float) -> list[Tensor]:
    return [distance_to(fields, grid, middle, size) < 1]


def shell(fields: RandomFields, grid: Tensor, middle: Tensor, size: float) -> list[Tensor]:
    """A wall, sometimes open at one side, and sometimes what it holds."""
    level = distance_to(fields, grid, middle, size)
    inner = fields.uniform(0.5, 0.85)
    wall = (level < 1) & (level > inner)
    if fields.happens(0.5):
        direction = fields.rotation()[0]
        along = torch.tensordot(direction, grid - middle[:, None, None, None], dims=1)
        wall &= along < size * fields.uniform(0.2, 0.8)
    hollow = level <= inner
    return [wall, hollow] if fields.happens(0.6) else [wall]


def sheet(fields: RandomFields, grid: Tensor, middle: Tensor, size: float) -> list[Tensor]:
    """A thin, bent layer."""
    field = fields.smooth(fields.integer(2, 4))[0]
    return [(field.abs() < fields.uniform(0.1, 0.3)) & blob(fields, grid, middle, 1.5 * size)[0]]


def wings(fields: RandomFields, grid: Tensor, middle: Tensor, size: float) -> list[Tensor]:
    """Two or three thin plates that meet in a line, as those of an adrenal gland."""
    turned = torch.tensordot(fields.rotation(), grid - middle[:, None, None, None], dims=1)
    z, y, x = turned / size + fields.uniform(0, 0.2) * fields.smooth(5, 3)
    thickness = max(fields.uniform(0.05, 0.2), 1.5 * 2 / fields.side / size)  # 1.5 voxels
    part = torch.zeros_like(z, dtype=torch.bool)
    angle = 0.0
    for _ in range(fields.integer(2, 3)):
        angle += fields.uniform(0.5, 2.5)
        out, across = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
        is_plate = (across.abs() < thickness / 2) & (out > -thickness / 2)
        part |= is_plate & (out < fields.uniform(0.4, 1.0))
    return [part & (z.abs() < fields.uniform(0.3, 1.0))]


def tube(fields: RandomFields, grid: Tensor, middle: Tensor, size: float) -> list[Tensor]:
    """A winding tube, as a vessel or a bowel; sometimes its wall and what it holds."""
    radius = max(fields.log_uniform(0.02, 0.25 * size + 0.03), 1.25 * 2 / fields.side)  # voxels
    path = walk(fields, middle.cpu().numpy(), radius, fields.integer(20, 60), 0.2)
    level = distance_to_balls(fields, grid, path, [radius] * len(path))
    if radius > 0.08 and fields.happens(0.3):
        hollow = level < -fields.uniform(0.3, 0.6) * radius
        return [(level < 0) & ~hollow, hollow]
    return [level < 0]


def tree(fields: RandomFields, grid: Tensor, middle: Tensor, size: float) -> list[Tensor]:
    """A branching tube."""
    points: list[np.ndarray] = []
    radii: list[float] = []
    ends: list[tuple[np.ndarray, np.ndarray | None, float]] = [
        (middle.cpu().numpy(), None, 0.15 * size + 0.03)
    ]
    for _ in range(fields.integer(1, 8)):
        start, heading, radius = ends.pop(fields.integer(0, len(ends) - 1))
        path = walk(fields, start, radius, fields.integer(6, 16), 0.25, heading)
        points += path
        radii += [radius] * len(path)
        heading = path[-1] - path[-2]
        heading = heading / np.linalg.norm(heading)
        for _ in range(2):
            ends.append((path[-1], heading + fields.numbers.normal(0, 0.6, 3), 0.8 * radius))
    return [distance_to_balls(fields, grid, points, radii) < 0]


def walk(
    fields: RandomFields,
    start: np.ndarray,
    radius: float,
    steps: int,
    turn: float,
    heading: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Places (z, y, x) half a radius apart, each in a direction that turns at random."""
    heading = fields.numbers.standard_normal(3) if heading is None else heading
    places = [start]
    for _ in range(steps):
        heading = heading / np.linalg.norm(heading) + fields.numbers.normal(0, turn, 3)
        places.append(places[-1] + 0.5 * max(radius, 0.03) * heading / np.linalg.norm(heading))
    return places


def distance_to_balls(
    fields: RandomFields, grid: Tensor, places: Sequence[np.ndarray], radii: Sequence[float]
) -> Tensor:
    """(N, N, N) distance to the nearest ball's surface, negative inside; made half as fine."""
    nodes = torch.tensor(np.array(places), dtype=torch.float32, device=fields.device)
    widths = torch.tensor(radii, dtype=torch.float32, device=fields.device)
    coarse = F.interpolate(grid[None], scale_factor=0.5, mode="trilinear")[0]
    away = torch.cdist(coarse.flatten(1).T, nodes) - widths
    level = away.amin(dim=1).view(1, 1, *coarse.shape[1:])
    return F.interpolate(level, size=grid.shape[1:], mode="trilinear")[0, 0]


def cells(fields: RandomFields, grid: Tensor) -> Tensor:
    """(N, N, N) labels of many like objects, apart or packed."""
    count = fields.integer(8, 60)
    spread = fields.uniform(0.7, 1.1)
    seeds = fields.vector(-spread, spread, count, 3)
    squeeze = torch.exp(fields.vector(-0.4, 0.4))
    points = (grid.flatten(1).T / squeeze) @ fields.rotation().T
    distances = torch.cdist(points, seeds)
    first, nearest = distances.min(dim=1)
    second = distances.scatter_(1, nearest[:, None], torch.inf).amin(
        dim=1
    )  # topk takes 3 x as long
    radius = 0.9 * spread / count ** (1 / 3) * fields.uniform(0.7, 1.6)
    radii = radius * fields.vector(0.7, 1.2, count)[nearest]
    is_cell = (first < radii) & (second - first > fields.uniform(0, 0.06))
    return (is_cell * (nearest + 1)).view(grid.shape[1:])


def deformed_labels(
    fields: RandomFields, grid: Tensor, label_map: LabelMap
) -> tuple[Tensor, dict[int, str]]:
    """A random part of a map, turned, scaled and bent.

    Returns:
        (N, N, N) labels without gaps, and the names of those that have one.
    """
    whole = label_map.gts
    shape = torch.tensor(whole.shape, device=fields.device)
    width = fields.uniform(0.8, 2.0) * fields.side  # voxels of the map that the cube shows
    room = (shape - width).clamp(min=0)
    at = shape / 2 + room * fields.vector(-0.5, 0.5)
    order, signs = fields.numbers.permutation(3).tolist(), fields.numbers.choice([-1, 1], 3)
    if fields.happens(0.5):
        order, signs = [0, 1, 2], np.array([1, 1, fields.numbers.choice([-1, 1])])
    turns = zip(order, signs, strict=True)
    where = [at[i] + 0.5 * width * int(s) * grid[j] for i, (j, s) in enumerate(turns)]
    index, inside = [], torch.ones_like(grid[0], dtype=torch.bool)
    for position, n in zip(where, whole.shape, strict=True):
        nearest = position.floor().long()
        inside &= (nearest >= 0) & (nearest < n)
        index.append(nearest.clamp(0, n - 1))
    low = [int(i.min()) for i in index]
    part = whole[tuple(slice(a, int(i.max()) + 1) for a, i in zip(low, index, strict=True))]
    labels = torch.from_numpy(part.astype(np.int64)).to(fields.device)
    z, y, x = (i - a for i, a in zip(index, low, strict=True))
    values, numbers = torch.unique(labels[z, y, x] * inside, return_inverse=True)
    first = int(values[0] > 0)  # 0 stays 0
    names = {
        first + i: label_map.names[value]
        for i, value in enumerate(values.tolist())
        if value in label_map.names
    }
    return numbers + first, names


def with_lesions(fields: RandomFields, grid: Tensor, labels: Tensor) -> Tensor:
    """One to three lumps in objects, each a label of its own."""
    places = torch.nonzero(labels)
    for _ in range(fields.integer(1, 3) if len(places) else 0):
        z, y, x = places[fields.integer(0, len(places) - 1)].tolist()
        lump = blob(fields, grid, grid[:, z, y, x], fields.log_uniform(0.08, 0.3))[0]
        labels = torch.where(lump & (labels == labels[z, y, x]), labels.max() + 1, labels)
    return labels


# Images


def painted(fields: RandomFields, labels: Tensor) -> Tensor:
    """(N, N, N) float32: a grey value for each object and for some tissues around, textured."""
    background = torch.zeros_like(labels)
    for _ in range(fields.integer(0, 3)):
        background += fields.smooth(fields.integer(2, 8))[0] > fields.uniform(-0.5, 1.0)
    tissues = torch.where(labels > 0, labels + 4, background)
    greys = fields.vector(0, 1, int(tissues.max()) + 1)
    if fields.happens(0.35):  # all objects alike
        greys[4:] = greys[4:].mean() * 0.1 + 0.9 * fields.uniform(0, 1)
        greys[4:] += fields.uniform(0, 0.15) * fields.vector(-1, 1, len(greys) - 4)
    image = greys[tissues]
    if fields.happens(0.6):
        strength = fields.uniform(0, 0.2) * fields.vector(0, 1, len(greys))[tissues]
        image = image + strength * fields.smooth(fields.integer(fields.side // 8, fields.side))[0]
    return image


def scanned_ct(fields: RandomFields, labels: Tensor, names: Mapping[int, str]) -> Tensor:
    """(N, N, N) of 0..1: what CT shows of tissues that are named, through a window."""
    image = painted_ct(fields, labels, names, in_body(fields, labels))
    image = blurred(image, [fields.uniform(0.3, 1.0)] * 3)
    noise = blurred(fields.normal(*image.shape), [fields.uniform(0.4, 1.0)] * 3)
    image = image + fields.log_uniform(3, 30) * noise / noise.std()
    return windowed(fields, image)


def ct(fields: RandomFields, labels: Tensor) -> Tensor:
    """Sharp, windowed, with a body in air."""
    image = blurred(painted(fields, labels), [fields.uniform(0.3, 1.0)] * 3)
    image = image + fields.uniform(0.01, 0.1) * blurred(
        fields.normal(*image.shape), [fields.uniform(0.2, 0.8)] * 3
    )
    low, high = fields.uniform(-0.2, 0.2), fields.uniform(0.8, 1.2)
    image = ((image - low) / (high - low)).clamp(0.02, 1)
    return image * in_body(fields, labels)


def mr(fields: RandomFields, labels: Tensor) -> Tensor:
    """With a bias field and Rician noise."""
    image = blurred(painted(fields, labels), [fields.uniform(0.3, 1.2)] * 3)
    image = image * torch.exp(fields.uniform(0, 0.4) * fields.smooth(2)[0])
    sigma = fields.uniform(0.01, 0.12)
    real, imaginary = (sigma * fields.normal(*image.shape) for _ in range(2))
    return ((image * in_body(fields, labels) + real).square() + imaginary.square()).sqrt()


def pet(fields: RandomFields, labels: Tensor) -> Tensor:
    """Blurred, with few hot objects."""
    image = painted(fields, labels).clamp(min=0) ** fields.uniform(1, 3)
    image = blurred(image, [fields.uniform(1.2, 2.5)] * 3)
    noise = blurred(fields.normal(*image.shape), [fields.uniform(0.8, 1.5)] * 3)
    return (image * (1 + fields.uniform(0.1, 0.8) * noise)).clamp(min=0)


def ultrasound(fields: RandomFields, labels: Tensor) -> Tensor:
    """Speckled, brighter at borders, darker with depth, in a sector."""
    painting = painted(fields, labels)
    z, y, x = torch.gradient(blurred(painting, [1.0] * 3))
    edges = (y if fields.happens(0.7) else (z.square() + x.square() + y.square()).sqrt()).abs()
    image = 0.05 + 2 * painting.clamp(0) ** 2 + fields.uniform(0, 4) * edges
    grain = [fields.uniform(0.4, 1.0), fields.uniform(0.4, 0.9), fields.uniform(0.7, 2.0)]
    real, imaginary = (blurred(fields.normal(*image.shape), grain) for _ in range(2))
    speckle = (real.square() + imaginary.square()).sqrt()
    image = image * (speckle / speckle.mean()) ** fields.uniform(0.2, 1.0)
    depth = torch.linspace(0, 1, fields.side, device=image.device)
    image = image * torch.exp(-fields.uniform(0, 1.5) * depth)[:, None]
    image = image * torch.exp(-fields.uniform(0, 1.0) * fields.smooth(4)[0].relu())  # shadows
    image = torch.log1p(fields.log_uniform(1, 20) * image)
    if fields.happens(0.6):
        across = torch.linspace(-1, 1, fields.side, device=image.device)
        ray = across[None] / (depth[:, None] + fields.uniform(0.05, 0.4))
        image = image * (ray.abs() < fields.uniform(0.7, 1.5))
    return image


def microscopy(fields: RandomFields, labels: Tensor) -> Tensor:
    """Stained objects, or their membranes, in the dark; counted photons; blurred along z."""
    is_object = (labels > 0).float()
    borders = is_border(labels).float()
    greys = fields.vector(0.5, 1, int(labels.max()) + 1)[labels] * is_object
    image = fields.uniform(0, 0.2) + greys * (1 + 0.3 * fields.smooth(fields.side // 4)[0])
    if fields.happens(0.5):
        image = fields.uniform(0, 0.5) * image + borders
    wide = fields.uniform(0.4, 1.3)
    image = blurred(image.clamp(min=0), [wide * fields.uniform(1, 2.5), wide, wide])
    photons = fields.log_uniform(5, 200)
    noise = (image / photons).clamp(min=0).sqrt() * fields.normal(*image.shape)
    image = image + noise
    return 1 - image if fields.happens(0.2) else image.clamp(min=0)


STYLES = (ct, ct, mr, mr, pet, ultrasound, microscopy)


def in_body(fields: RandomFields, labels: Tensor) -> Tensor:
    """(N, N, N) bool: objects and what is near them; all, mostly."""
    if fields.happens(0.6):
        return torch.ones_like(labels, dtype=torch.bool)
    near = squared_depth((labels == 0)[None], reach=NEAR)[0] <= NEAR**2
    return near | (fields.smooth(3)[0] > fields.uniform(-2, 0))


def is_border(labels: Tensor) -> Tensor:
    """Voxels of objects beside one of another label."""
    border = torch.zeros_like(labels, dtype=torch.bool)
    for axis in range(3):
        differs = labels.diff(dim=axis) != 0
        n = labels.shape[axis]
        border.narrow(axis, 0, n - 1).logical_or_(differs)
        border.narrow(axis, 1, n - 1).logical_or_(differs)
    return border & (labels > 0)


def scaled(image: Tensor) -> Tensor:
    """To 0..1 between percentiles of what is above 0, which alone stays so."""
    values = image[image > 0] if (image > 0).any() else image.flatten()
    low, high = np.percentile(values.cpu().numpy(), (0.5, 99.5))
    return ((image - low) / max(high - low, 1e-6)).clamp(0, 1) * (image > 0)


def sliced(fields: RandomFields, image: Tensor, labels: Tensor) -> SyntheticCase:
    """The cube, of 0..1, in slices, thick ones in half of the cases."""
    thickness = fields.integer(2, MAX_THICKNESS) if fields.happens(0.5) else 1
    spacing = fields.log_uniform(0.4, 3.0)
    count = fields.side // thickness
    image = image[: count * thickness].unflatten(0, (count, thickness)).mean(dim=1)
    labels = labels[thickness // 2 :: thickness][:count]
    return SyntheticCase(
        (255 * image).round().to(torch.uint8).cpu().numpy(),
        labels.cpu().numpy().astype(np.uint16),
        (spacing * thickness, spacing, spacing),
    )
