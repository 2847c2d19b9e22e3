"""Pictures of slices: where outlines, boxes and clicks lie, to the pixel; previews of cases."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from conftest import SHAPE, SPACING
from segment_anything.prompts import Box, Click, Prompts
from utils.formats.case import Case
from utils.formats.scan import Axis
from utils.inference.drawing import (
    FOREGROUND_COLOUR,
    TRUTH_COLOUR,
    SlicePicture,
    colour_of,
    encode_png,
)
from utils.inference.preview import (
    CAPTION,
    GAP,
    TILE,
    draw_preview,
    draw_slice,
    shown_bounds,
    write_preview,
)

WHOLE = np.array([(0, 0), (10, 20)], float)


def picture_of(image=None, origin=(0, 0), bounds=WHOLE, scale=(8.0, 4.0), is_upside_down=False):
    image = np.zeros((10, 20), np.float32) if image is None else image
    return SlicePicture(image, origin, bounds, scale, is_upside_down)


def extent(pixels: np.ndarray, colour) -> tuple[int, int, int, int]:
    """First and last row, first and last column of what has about a colour."""
    rows, columns = np.nonzero((np.abs(pixels.astype(int) - colour) < 60).all(axis=-1))
    return rows.min(), rows.max(), columns.min(), columns.max()


@pytest.mark.parametrize("is_upside_down", [False, True])
def test_a_voxel_is_as_wide_and_high_as_its_spacing(is_upside_down):
    image = np.zeros((10, 20), np.float32)
    image[2, 5] = 200
    pixels = picture_of(image, is_upside_down=is_upside_down).pixels
    assert pixels.shape == (80, 80, 3)
    first = 56 if is_upside_down else 16  # the last row is on top
    expected = np.zeros((80, 80), np.uint8)
    expected[first : first + 8, 20:24] = 200
    np.testing.assert_array_equal(pixels[..., 0], expected)


def test_a_part_is_drawn_where_it_lies_and_what_is_beyond_it_is_black():
    bounds = np.array([(-2, 3), (8, 23)], float)
    pixels = picture_of(np.full((4, 6), 99, np.float32), (1, 5), bounds).pixels
    assert extent(pixels, (99, 99, 99)) == (24, 55, 8, 31)
    assert pixels.max() == 99


@pytest.mark.parametrize("is_upside_down", [False, True])
def test_an_outline_runs_half_way_between_the_voxels_inside_and_outside(is_upside_down):
    mask = np.zeros((10, 20), bool)
    mask[3:7, 5:11] = True
    picture = picture_of(is_upside_down=is_upside_down)
    picture.outline(mask, colour_of(1))
    top, bottom, left, right = extent(picture.pixels, colour_of(1))
    first = 80 - 7 * 8 if is_upside_down else 3 * 8
    assert abs(top - first) <= 1 and abs(bottom - (first + 31)) <= 1
    assert abs(left - 20) <= 1 and abs(right - 43) <= 1
    assert not picture.pixels[first + 6 : first + 26, 26:38].any()  # a line, and no area


def test_the_outline_of_a_single_voxel_and_of_one_at_the_edge_are_seen():
    for at in ((4, 9), (0, 0), (9, 19)):
        mask = np.zeros((10, 20), bool)
        mask[at] = True
        picture = picture_of()
        picture.outline(mask, TRUTH_COLOUR, is_dashed=True)
        rows, columns = np.nonzero(picture.pixels.any(axis=-1))
        assert (
            abs(rows.mean() - (8 * at[0] + 3.5)) < 3 and abs(columns.mean() - 4 * at[1] - 1.5) < 3
        )
    picture = picture_of()
    picture.outline(np.zeros((10, 20), bool), TRUTH_COLOUR)
    assert not picture.pixels.any()


def test_a_box_runs_along_its_outer_edges():
    picture = picture_of()
    picture.box(np.array((2, 4)), np.array((6, 15)), colour_of(2), is_faint=False)
    rows, columns = np.nonzero(picture.pixels.max(axis=-1) > 100)  # smoothed over two pixels
    found = (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1)
    assert np.abs(np.subtract(found, (16, 48, 16, 60))).max() <= 1
    assert not picture.pixels[20:44, 20:56].any()
    faint = picture_of()
    faint.box(np.array((2, 4)), np.array((6, 15)), colour_of(2), is_faint=True)
    assert 0 < faint.pixels.max() < picture.pixels.max()


def test_a_click_lies_in_the_middle_of_its_voxel():
    picture = picture_of()
    picture.click((4, 9), is_foreground=True, is_faint=False)
    green = picture.pixels[..., 1].astype(float) - picture.pixels[..., 0]
    assert green.max() > 100 and FOREGROUND_COLOUR[1] == 255
    rows, columns = (np.average(np.arange(80), weights=green.sum(axis=i)) for i in (1, 0))
    assert abs(rows - 35.5) <= 0.25 and abs(columns - 37.5) <= 0.25
    other = picture_of()
    other.click((4, 9), is_foreground=False, is_faint=True, text="3")
    red = other.pixels[..., 0].astype(int)
    assert red.max() < 255 and (red - other.pixels[..., 1]).max() > 60


def test_a_wide_slice_is_averaged_and_not_sampled():
    image = np.tile(np.array([0, 200], np.float32), (40, 200))
    pixels = picture_of(image, bounds=np.array([(0, 0), (40, 400)], float), scale=(0.1, 0.1)).pixels
    assert pixels.shape == (4, 40, 3) and np.abs(pixels[1:-1, 1:-1].astype(int) - 100).max() <= 12


def test_a_png_keeps_the_colours():
    pixels = np.zeros((3, 5, 3), np.uint8)
    pixels[1, 2] = 10, 20, 30
    read = cv2.imdecode(np.frombuffer(encode_png(pixels), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(read[..., ::-1], pixels)


def case_of(*objects: Prompts) -> tuple[Case, np.ndarray]:
    image = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    seg = np.zeros(SHAPE, np.uint8)
    seg[3:6, 5:11, 6:15] = 1
    return Case("case.npz", image, SPACING, objects, 1), seg


def test_slices_cross_the_object_and_show_all_of_it_and_its_prompts():
    case, seg = case_of(Prompts(Box((2, 4, 4), (7, 12, 16)), (Click((9, 13, 17), False),)))
    region = (slice(3, 6), slice(5, 11), slice(6, 15))
    centre, (low, high) = shown_bounds(case, seg, 1, region)
    assert seg[centre] == 1
    assert (low <= (2, 4, 4)).all() and (high >= (10, 14, 18)).all()
    mm = (high - low) * case.spacing
    np.testing.assert_allclose(mm, mm[0])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_was_found_is_outlined_where_it_lies_with_the_head_up(axis):
    case, seg = case_of(Prompts())
    case = replace(case, image=np.zeros(SHAPE, np.uint8))
    bounds = np.array([(0, 0, 0), SHAPE], float)
    picture = draw_slice(case, seg, axis, (4, 7, 10)[axis], bounds, 0.125)
    down, right = (i for i in range(3) if i != axis)
    start, stop = np.array((3, 5, 6)), np.array((6, 11, 15))
    if axis != 0:  # z grows upwards
        start[0], stop[0] = SHAPE[0] - stop[0], SHAPE[0] - start[0]
    scale = np.array(SPACING) / 0.125
    edges = [(scale[i] * end[i]) for i in (down, right) for end in (start, stop)]
    found = np.add(extent(picture.pixels, colour_of(1)), (0, 1, 0, 1))
    assert np.abs(found - edges).max() <= 2.5  # the line is two pixels wide


def test_slices_are_numbered_as_in_the_file(monkeypatch):
    case, seg = case_of(Prompts(Box((2, 4, 4), (7, 12, 16))))
    texts = []
    monkeypatch.setattr(
        "utils.inference.preview.write", lambda _, text, *args, **how: texts.append(text)
    )
    draw_preview(case, seg, (Axis("y", False), Axis("x", True), Axis("z", False)))
    assert texts == ["axial y = 3", "coronal x = 8", "sagittal z = 6", "object 1: 0.243 ml"]


def test_no_more_of_a_slice_is_read_than_is_shown():
    case, seg = case_of(Prompts(Box((2, 4, 4), (7, 12, 16))))

    class Noted(np.ndarray):
        sizes = []

        def __getitem__(self, key):
            part = super().__getitem__(key)
            self.sizes.append(part.size)
            return part

    wide = np.pad(case.image, ((0, 0), (0, 500), (0, 5000))).view(Noted)
    draw_preview(replace(case, image=wide), np.pad(seg, ((0, 0), (0, 500), (0, 5000))))
    assert len(Noted.sizes) == 3 and max(Noted.sizes) < 60 * 60


def test_an_object_that_was_not_found_is_shown_where_it_was_asked_for():
    case, seg = case_of(Prompts(None, (Click((9, 13, 17), True),)), Prompts())
    assert shown_bounds(case, np.zeros_like(seg), 1, None)[0] == (9, 13, 17)
    assert shown_bounds(case, np.zeros_like(seg), 2, None)[0] == (5, 7, 9)


@pytest.mark.parametrize("count, across", [(1, 1), (5, 2), (40, 3)])
def test_a_preview_has_three_slices_for_each_object(count, across, tmp_path):
    case, seg = case_of(*[Prompts(Box((2, 4, 4), (7, 12, 16)))] * count)
    write_preview(tmp_path / "case.png", case, seg)
    assert [path.name for path in tmp_path.iterdir()] == ["case.png"]
    pixels = cv2.imread(str(tmp_path / "case.png"))[..., ::-1]
    rows = -(-count // across)
    assert pixels.shape == (rows * (TILE + CAPTION + GAP), across * (3 * (TILE + GAP) + GAP), 3)
    for label in range(1, count + 1):
        row, column = divmod(label - 1, across)
        for axis in range(3):
            top = row * (TILE + CAPTION + GAP) + CAPTION
            left = column * (3 * (TILE + GAP) + GAP) + GAP + axis * (TILE + GAP)
            tile = pixels[top : top + TILE, left : left + TILE]
            is_coloured = (np.abs(tile.astype(int) - colour_of(1)) < 60).all(axis=-1)
            assert is_coloured.any(), (label, axis)
