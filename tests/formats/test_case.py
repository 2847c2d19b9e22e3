"""Reading and writing cases: each kind of good file, and each message for a bad one."""

import errno
import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT, SHAPE, as_objects, case_arrays, inclusive_box
from segment_anything.prompts import Box, Click
from utils.formats import case as case_module
from utils.formats import npz, safe_pickle
from utils.formats.case import read_case, read_labelled_case, read_segs, write_case
from utils.formats.npz import CaseError, fingerprint

BOXES = case_arrays()["boxes"]


def clicks_of(*entries) -> np.ndarray:
    return as_objects([{"fg": fg, "bg": bg} for fg, bg in entries])


def test_spacing_becomes_z_y_x_and_boxes_half_open(write_npz):
    case = read_case(write_npz())
    assert case.name == "case.npz" and case.shape == SHAPE and case.rounds == 1
    assert case.spacing == (3.0, 1.0, 0.5)  # stored (0.5, 1.0, 3.0)
    assert case.objects[0].box == Box((2, 3, 4), (7, 9, 11))
    assert case.prev_pred is None


def test_clicks_come_in_the_order_they_were_made(write_npz):
    clicks = clicks_of(([[1, 2, 3], [4, 5, 6]], [[7, 8, 9]]), ([], []))
    order = as_objects([["fg", "bg", "fg"], [None, None, None]])
    case = read_case(write_npz(clicks=clicks, clicks_order=order))
    made = [Click((1, 2, 3), True), Click((7, 8, 9), False), Click((4, 5, 6), True)]
    assert case.objects[0].clicks == tuple(made)
    assert case.objects[1].clicks == () and case.objects[1].box is not None
    assert case.rounds == 4


def test_an_object_is_right_if_the_last_round_had_no_click_for_it(write_npz):
    clicks = as_objects([{"fg": [[1, 2, 3]], "bg": []}, {"fg": [[4, 5, 6]], "bg": []}])
    order = as_objects([["fg", None], [None, "fg"]])
    case = read_case(write_npz(clicks=clicks, clicks_order=order))
    assert [prompts.is_right for prompts in case.objects] == [True, False]
    case = read_case(write_npz(clicks=clicks))
    assert not any(prompts.is_right for prompts in case.objects)


def test_clicks_without_boxes_and_without_order(write_npz):
    path = write_npz(boxes=None, clicks=clicks_of(([[1, 2, 3]], [[0, 0, 0]])))
    case = read_case(path)
    assert case.objects[0].box is None and case.rounds == 2
    assert [click.is_foreground for click in case.objects[0].clicks] == [True, False]


@pytest.mark.parametrize("as_object", [True, False])
def test_rectangular_lists_may_be_saved_as_2d_arrays(write_npz, as_object):
    order = np.array([["fg"], ["bg"]], dtype=object if as_object else None)
    points = np.array([[1, 2, 3]])
    clicks = as_objects([{"fg": points, "bg": []}, {"fg": [], "bg": points.astype(float)}])
    case = read_case(write_npz(clicks=clicks, clicks_order=order))
    assert [o.clicks for o in case.objects] == [
        (Click((1, 2, 3), True),),
        (Click((1, 2, 3), False),),
    ]


def test_arrays_inside_of_the_lists(write_npz):
    """As the official evaluator has them: numpy integers in lists, arrays of text as orders."""
    clicks = as_objects([{"fg": [list(np.array([1, 2, 3]))], "bg": np.array([[4, 5, 6]])}] * 2)
    order = as_objects([np.array(["bg", "fg"]), np.array(["fg", "bg", None], object)])
    case = read_case(write_npz(clicks=clicks, clicks_order=order))
    fg, bg = Click((1, 2, 3), True), Click((4, 5, 6), False)
    assert [o.clicks for o in case.objects] == [(bg, fg), (fg, bg)]


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, float])
def test_numpy_numbers_in_boxes(write_npz, kind):
    boxes = as_objects([{k: kind(v) for k, v in box.items()} for box in BOXES])
    assert read_case(write_npz(boxes=boxes)).objects == read_case(write_npz()).objects


@pytest.mark.parametrize("protocol", [3, 4])
def test_any_pickle_protocol_that_numpy_wrote(protocol, tmp_path):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|O", "fortran_order": False, "shape": (2,)}
    )
    buffer.write(pickle.dumps(BOXES, protocol=protocol))
    arrays = case_arrays(boxes=None)
    np.savez(tmp_path / "case.npz", **arrays)
    with zipfile.ZipFile(tmp_path / "case.npz", "a") as archive:
        archive.writestr("boxes.npy", buffer.getvalue())
    assert len(read_case(tmp_path / "case.npz").objects) == 2


@pytest.mark.parametrize(
    "dtype, kept", [("uint8", "uint8"), ("int16", "uint8"), (">i4", "uint8"), ("f8", "float32")]
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_images_of_other_types_keep_their_values(write_npz, dtype, kept, order):
    values = case_arrays()["imgs"].astype(dtype, order=order)
    image = read_case(write_npz(imgs=values)).image
    assert image.dtype == kept
    np.testing.assert_array_equal(image, values)


def test_prev_pred_is_read(write_npz):
    labels = np.zeros(SHAPE, np.int32)
    labels[1, 2, 3] = 2
    prev_pred = read_case(write_npz(prev_pred=labels)).prev_pred
    assert prev_pred.dtype == np.uint8 and prev_pred[1, 2, 3] == 2


def box_with(**changes) -> np.ndarray:
    box = inclusive_box((2, 3, 4), (7, 9, 11)) | changes
    return as_objects([{k: v for k, v in box.items() if v is not None}, BOXES[1]])


def image_with(value: float, shape=SHAPE) -> np.ndarray:
    image = np.ones(shape, np.float32)
    image.flat[-1:] = value
    return image


CLICK = ([[1, 2, 3]], [])
BAD = {
    "no imgs": (dict(imgs=None), "expected a volume in imgs, got none"),
    "2D imgs": (dict(imgs=np.ones((4, 5))), r"imgs must be 3D \(z, y, x\), got shape \(4, 5\)"),
    "4D imgs": (dict(imgs=np.ones((1, 4, 5, 6))), "imgs must be 3D"),
    "empty volume": (dict(imgs=np.ones((0, 5, 6))), r"imgs must hold voxels, got shape \(0, 5"),
    "blank volume": (dict(imgs=image_with(0) * 0), "imgs must hold a voxel above 0"),
    "NaN": (dict(imgs=image_with(np.nan)), r"imgs must lie in 0\.\.255 .* got nan"),
    "infinity": (dict(imgs=image_with(np.inf)), r"imgs must lie in 0\.\.255 .* got 1.0..inf"),
    "HU": (dict(imgs=image_with(-1024)), r"imgs must lie in 0\.\.255 .* got -1024.0..1.0"),
    "text imgs": (dict(imgs=np.array([["a"]])), "imgs: expected numbers, got dtype <U1"),
    "object imgs": (dict(imgs=as_objects([1, 2])), "imgs: expected numbers, got dtype object"),
    "no spacing": (dict(spacing=None), "expected spacing, got none"),
    "zero spacing": (dict(spacing=np.array([1.0, 0, 1])), "3 positive numbers in mm, got .1.0, 0"),
    "negative spacing": (dict(spacing=np.array([1, -1, 1])), "3 positive numbers in mm"),
    "NaN spacing": (dict(spacing=np.array([1, np.nan, 1])), "3 positive numbers in mm"),
    "2 spacings": (dict(spacing=np.array([1.0, 1.0])), "3 positive numbers in mm"),
    "no prompts": (dict(boxes=None), "expected prompts in boxes or clicks, got neither"),
    "only empty clicks": (
        dict(boxes=None, clicks=clicks_of(([], []))),
        "expected prompts, got no boxes and only empty lists of clicks",
    ),
    "no objects": (dict(boxes=as_objects([])), "expected 1 to 255 objects .* got 0"),
    "256 objects": (dict(boxes=as_objects([BOXES[0]] * 256)), "1 to 255 objects .* got 256"),
    "unequal lists": (
        dict(clicks=clicks_of(CLICK)),
        "one entry per object in each list, got lengths {'boxes': 2, 'clicks': 1}",
    ),
    "unequal order": (
        dict(clicks=clicks_of(CLICK, CLICK), clicks_order=as_objects([["fg"]])),
        "one entry per object in each list",
    ),
    "numeric boxes": (
        dict(boxes=np.zeros((2, 6))),
        "boxes: expected an array of one dict or list per object",
    ),
    "one box": (dict(boxes=np.array(BOXES[0], object)), "boxes: expected one entry per object"),
    "list as box": (dict(boxes=as_objects([[1], [2]])), "box of object 1: expected a dict"),
    "box keys missing": (dict(boxes=box_with(z_mid_x_max=None)), r"missing \['z_mid_x_max'\]"),
    "box outside": (dict(boxes=box_with(z_mid_x_max=18)), "x min <= x max <= 17, got 4..18"),
    "box below 0": (dict(boxes=box_with(z_min=-1)), "0 <= z min <= z max <= 9, got -1..6"),
    "inverted box": (dict(boxes=box_with(z_mid_y_min=9)), "y min <= y max <= 13, got 9..8"),
    "z_mid outside": (dict(boxes=box_with(z_mid=7)), r"expected z_mid in 2\.\.6, got 7"),
    "fractional box": (dict(boxes=box_with(z_min=1.5)), "expected integers"),
    "text in box": (dict(boxes=box_with(z_min="2")), "expected integers"),
    "infinite box": (dict(boxes=box_with(z_max=np.inf)), "expected integers"),
    "click outside": (
        dict(clicks=clicks_of(([[1, 14, 3]], []), CLICK)),
        r"click of object 1: expected a voxel \[z, y, x\] of \(10, 14, 18\), got \[1, 14, 3\]",
    ),
    "negative click": (dict(clicks=clicks_of(CLICK, ([], [[-1, 0, 0]]))), "click of object 2"),
    "2D click": (dict(clicks=clicks_of(CLICK, ([[1, 2]], []))), r"expected \[z, y, x\], got"),
    "number as clicks": (dict(clicks=clicks_of(CLICK, (3, []))), "expected a list"),
    "unknown kind": (
        dict(clicks=as_objects([{"FG": []}, {"fg": []}])),
        "clicks of object 1: expected {'?\"?fg",
    ),
    "order of other length": (
        dict(clicks=clicks_of(CLICK, CLICK), clicks_order=as_objects([["fg"], [None]])),
        "clicks of object 2: expected 1 fg in clicks_order, got 0",
    ),
    "order without clicks": (
        dict(clicks_order=as_objects([[], ["fg"]])),
        "clicks of object 2: expected 0 fg in clicks_order, got 1",
    ),
    "number as order": (
        dict(clicks=clicks_of(CLICK, CLICK), clicks_order=as_objects([1, 2])),
        "clicks_order of object 1: expected a list",
    ),
    "unknown order": (
        dict(clicks=clicks_of(CLICK, CLICK), clicks_order=as_objects([["fg"], ["fg", "no"]])),
        "clicks_order of object 2: expected fg, bg or None",
    ),
    "prev_pred of another shape": (
        dict(prev_pred=np.zeros((10, 18, 14), np.uint8)),
        r"expected prev_pred of shape \(10, 14, 18\) as imgs, got \(10, 18, 14\)",
    ),
    "prev_pred with other labels": (
        dict(prev_pred=np.full(SHAPE, 3)),
        r"expected prev_pred of labels 0\.\.2, got int64 3\.\.3",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_content_names_the_case_the_expected_and_the_actual(name, write_npz):
    changes, message = BAD[name]
    with pytest.raises(CaseError, match=message) as info:
        read_case(write_npz("patient 7.npz", **changes))
    assert str(info.value).startswith("patient 7.npz: ")


def test_not_a_zip_and_truncated(write_npz, tmp_path):
    path = tmp_path / "text.npz"
    path.write_text("hello")
    with pytest.raises(CaseError, match="text.npz: expected a whole .npz"):
        read_case(path)
    whole = write_npz().read_bytes()
    for length in range(0, len(whole), len(whole) // 20):
        path.write_bytes(whole[:length])
        with pytest.raises(CaseError, match="text.npz: expected a whole .npz"):
            read_case(path)


def test_flipped_bytes_raise_no_other_error(write_npz, tmp_path):
    whole = write_npz().read_bytes()
    path = tmp_path / "case.npz"
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        content = bytearray(whole)
        content[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        try:
            outcomes.add(read_case(path).name)
        except CaseError:
            outcomes.add("refused")
    assert outcomes == {"case.npz", "refused"}


def test_mutated_arrays_raise_no_other_error(tmp_path):
    """Bytes changed, lost and repeated in headers and pickles, with checksums that are right."""
    clicks = clicks_of(CLICK, ([], [np.array([1, 1, 1])]))
    arrays = case_arrays(clicks=clicks, clicks_order=as_objects([["fg"], np.array(["bg"])]))
    members = {}
    for key, value in arrays.items():
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, value)
        members[f"{key}.npy"] = buffer.getvalue()
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(2000):
        name = rng.choice(["boxes.npy", "clicks.npy", "clicks_order.npy", "spacing.npy"])
        content = bytearray(members[name])
        for _ in range(rng.integers(1, 5)):
            i, j = rng.integers(len(content), size=2)
            match rng.integers(3):
                case 0:
                    content[i] = rng.integers(256)
                case 1:
                    del content[i : i + rng.integers(1, 9)]
                case 2:
                    content[i:i] = content[j : j + rng.integers(1, 40)]
        path = tmp_path / "case.npz"
        with zipfile.ZipFile(path, "w") as archive:
            for key, value in (members | {name: bytes(content)}).items():
                archive.writestr(key, value)
        try:
            outcomes.add(read_case(path).name)
        except CaseError:
            outcomes.add("refused")
    assert outcomes == {"case.npz", "refused"}


class Evil:
    def __reduce__(self):
        return os.system, (f"touch {Evil.marker}",)


class EvilDtype:
    """An 'O8' dtype that claims to hold no references, so that numbers become pointers."""

    def __reduce__(self):
        state = (3, "|", None, None, None, -1, -1, 0)
        return np.dtype, ("O8", False, True), state


@pytest.mark.parametrize("key", ["boxes", "clicks", "clicks_order"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(key, write_npz, tmp_path):
    Evil.marker = tmp_path / "marker"
    path = write_npz(**({"clicks": clicks_of(CLICK, CLICK)} | {key: as_objects([Evil(), Evil()])}))
    with pytest.raises(CaseError, match=f"{key}: expected plain lists and dicts, got: .*system"):
        read_case(path)
    assert not Evil.marker.exists()
    np.load(path, allow_pickle=True)[key]
    assert Evil.marker.exists()  # the file does run code where it is allowed to


PLAIN = [
    {"fg": np.array([[3, 4, 5]]), "bg": np.zeros((0, 3), int)},
    {"fg": [(np.int64(1), np.float32(2), np.array(3))], "bg": np.array([]), 7: np.float64(0.5)},
    [np.array([True, False]), np.array(["a", "bc"]), np.arange(24).reshape(2, 3, 4), None, "x"],
    (np.array(2.5), (np.array(7), [np.array(8)])),
    as_objects([np.array([1, 2]), {"a": np.uint8(3)}]),
]
EXPECTED = [
    {"fg": [[3, 4, 5]], "bg": []},
    {"fg": [(1, 2.0, 3)], "bg": [], 7: 0.5},
    [[True, False], ["a", "bc"], np.arange(24).reshape(2, 3, 4).tolist(), None, "x"],
    (2.5, (7, [8])),
    [[1, 2], {"a": 3}],
]


@pytest.mark.parametrize("name", ["numpy._core", "numpy.core"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(("value", "expected"), list(zip(PLAIN, EXPECTED, strict=True)))
def test_plain_data_is_read_whoever_wrote_it(value, expected, protocol, name):
    """By all protocols since Python 2.3, with the names of numpy 1 and 2."""

    class Renamed(pickle._Pickler):
        def save_global(self, obj, name_=None):
            module = getattr(obj, "__module__", "") or ""
            if protocol < 4 or not module.startswith("numpy._core"):
                return super().save_global(obj, name_)
            self.save(module.replace("numpy._core", name))
            self.save(obj.__name__)
            self.write(pickle.STACK_GLOBAL)
            self.memoize(obj)

        dispatch = pickle._Pickler.dispatch | {
            type(len): save_global,
            type(as_objects): save_global,
        }

    file = io.BytesIO()
    Renamed(file, protocol).dump(value)
    content = file.getvalue()
    if protocol < 4:
        content = content.replace(b"cnumpy._core", b"c" + name.encode())
    assert b"numpy._core" not in content or name == "numpy._core"
    found = safe_pickle.loads(content)
    assert found == expected and type(found) in (list, dict, tuple, safe_pickle._Array)


def test_bytes_of_python_2_are_read():
    array = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        b"K\x02\x85cnumpy\ndtype\nU\x02i8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89U\x10" + np.array([3, -200]).tobytes() + b"tb."
    )
    assert safe_pickle.loads(array) == [3, -200]
    assert safe_pickle.loads(b"\x80\x02}U\x05z_minK\x09s.") == {"z_min": 9}


def test_containers_that_hold_themselves_end():
    loop = []
    loop.append(loop)
    assert safe_pickle.loads(pickle.dumps(loop)) is not None
    deep = [np.array(1)]
    for _ in range(60):  # 2^60 paths
        deep = [deep, deep]
    assert len(safe_pickle.loads(pickle.dumps(deep))) == 2


def test_spacing_may_be_saved_as_objects(write_npz):
    case = read_case(write_npz(spacing=np.array([1.0, 2, 2.5], object)))
    assert case.spacing == (2.5, 2.0, 1.0)
    with pytest.raises(CaseError, match="spacing: expected a few numbers, got other objects"):
        read_case(write_npz(spacing=np.array([1.0, "a", None], object)))
    with pytest.raises(CaseError, match="expected spacing as 3 positive numbers"):
        read_case(write_npz(spacing=np.array([1.0, 2], object)))


def test_numbers_that_grow_when_they_are_read_are_refused(write_npz):
    bomb = [0.5] * 10
    for _ in range(40):  # 10^41 of them
        bomb = [bomb] * 10
    for spacing in (as_objects(bomb), as_objects([1.0] * 17), as_objects([1.0, True, 2.0])):
        with pytest.raises(CaseError, match="spacing: expected a few numbers"):
            read_case(write_npz(spacing=spacing))
    with pytest.raises(CaseError, match="a number of 100001 bits is not admitted"):
        read_case(write_npz(boxes=as_objects([{"z_min": 2**100_000}, {}])))


def test_texts_and_numbers_in_fortran_order_are_read_in_their_own(write_npz):
    kinds = [["fg", "fg", "bg"], ["bg", "fg", "fg"]]
    clicks = as_objects(
        [{"fg": np.asfortranarray([[1, 2, 3], [4, 5, 6]]), "bg": [[7, 8, 9]]} for _ in kinds]
    )
    case = read_case(write_npz(clicks=clicks, clicks_order=np.asfortranarray(kinds)))
    for prompts, order in zip(case.objects, kinds, strict=True):
        assert [click.is_foreground for click in prompts.clicks] == [k == "fg" for k in order]
        points = [click.point for click in prompts.clicks if click.is_foreground]
        assert points == [(1, 2, 3), (4, 5, 6)]


def forged_array(dtype, data: bytes, shape: tuple = (2,)) -> bytes:
    """A pickled numpy array of that dtype, raw content and shape."""

    class Forged:
        def __reduce__(self):
            array = (np.ndarray, (0,), b"b")
            return np._core.multiarray._reconstruct, array, (1, shape, dtype, False, data)

    return pickle.dumps(Forged(), protocol=4)


@pytest.mark.parametrize(
    "content",
    [
        forged_array(np.dtype("O"), bytes(16)),  # raw bytes as object pointers
        forged_array(EvilDtype(), b"\x41" * 16),
        forged_array(np.dtype("V8"), bytes(16)),
        forged_array(np.dtype("i8"), bytes(8)),  # fewer values than its shape
        forged_array(np.dtype("i8"), b"", (10**9, 0)),  # a list of a billion empty lists
        forged_array(np.dtype("i8"), b"", (10**4000,) * 500),
        pickle.dumps(np.load),
        pickle.dumps(Path("x")),
        pickle.dumps({1, 2}),
        b"\x80\x04cnumpy\nndarray\n}\x8c\x03anyK\x01s\x86b.",  # sets an attribute of a class
        b"\x80\x04N" + b"r\xff\xff\xff\x7f" + b".",  # memo index 2^31: gigabytes in C
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",  # bytes of length 2^63
        b"\x80\x05\x96\x00\x00\x00\x00\x04\x00\x00\x00",  # a bytearray of 16 GB
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.",
        b"\x80\x04]" + b"]" * 100_000,
        b"",
        b"garbage",
    ],
)
def test_forged_pickles_are_refused_without_harm(content):
    try:
        value = safe_pickle.loads(content)
    except pickle.UnpicklingError:
        return
    assert value is None or isinstance(value, (list, set))  # plain: what is checked next refuses it


def test_sizes_are_limited_before_memory_is_taken(write_npz, monkeypatch):
    monkeypatch.setattr(npz, "MAX_VOLUME_BYTES", 2519)
    with pytest.raises(CaseError, match="imgs: expected at most 2519 bytes, got 2520"):
        read_case(write_npz())
    monkeypatch.undo()
    monkeypatch.setattr(safe_pickle, "MAX_PICKLE_BYTES", 100)
    with pytest.raises(CaseError, match="boxes: expected at most 100 bytes, got"):
        read_case(write_npz())


def test_a_member_that_claims_another_size_is_refused(tmp_path):
    """A header of terabytes over a few bytes, and few bytes over a bomb of zeros."""
    arrays = case_arrays(imgs=None)
    for shape, size in [((10**4, 10**4, 10), 8), ((2, 2, 2), 10**7), ((10**6,) * 3, 8)]:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "|u1", "fortran_order": False, "shape": shape}
        )
        np.savez(tmp_path / "case.npz", **arrays)
        with zipfile.ZipFile(tmp_path / "case.npz", "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("imgs.npy", header.getvalue() + bytes(size))
        with pytest.raises(CaseError, match="imgs: expected"):
            read_case(tmp_path / "case.npz")


def test_an_empty_text_array_of_a_billion_rows(tmp_path):
    np.savez(tmp_path / "case.npz", **case_arrays(boxes=None, clicks=np.empty((10**9, 0), "U1")))
    with pytest.raises(CaseError, match="expected 1 to 255 objects"):
        read_case(tmp_path / "case.npz")


def test_limit_of_clicks(write_npz, monkeypatch):
    monkeypatch.setattr(case_module, "MAX_CLICKS", 3)
    with pytest.raises(CaseError, match="at most 3 clicks"):
        read_case(write_npz(clicks=clicks_of(([[1, 2, 3]] * 2, [[1, 1, 1]] * 2), CLICK)))


def test_output_is_what_the_challenge_reads(tmp_path):
    segs = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_case(tmp_path / "case.npz", segs)
    with np.load(tmp_path / "case.npz") as file:
        assert file.files == ["segs"] and file["segs"].dtype == np.uint8
        np.testing.assert_array_equal(file["segs"], segs)
    assert os.listdir(tmp_path) == ["case.npz"]
    mode = (tmp_path / "case.npz").stat().st_mode
    umask = os.umask(0)
    os.umask(umask)
    assert mode & 0o777 == 0o666 & ~umask  # the user outside of a container can read it


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_output_and_no_part(step, tmp_path, monkeypatch):
    write_case(tmp_path / "case.npz", np.ones((2, 3, 4), np.uint8))
    before = (tmp_path / "case.npz").read_bytes()

    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        write_case(tmp_path / "case.npz", np.zeros((2, 3, 4), np.uint8))
    monkeypatch.undo()
    assert (tmp_path / "case.npz").read_bytes() == before
    assert os.listdir(tmp_path) == ["case.npz"]


def gts(*labels: int, dtype=np.uint8) -> np.ndarray:
    """Two objects of these labels."""
    volume = np.zeros(SHAPE, dtype)
    volume[2:7, 3:9, 4:11], volume[0:3, 0:14, 11:18] = labels
    return volume


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
@pytest.mark.parametrize("labels", [(1, 2), (2, 1), (3, 7), (1, 200)])
def test_objects_are_numbered_in_the_order_of_their_labels(labels, dtype, write_npz):
    path = write_npz(gts=gts(*labels, dtype=dtype), prev_pred=np.full(SHAPE, 9))
    found = read_labelled_case(path)
    numbers = (1, 2) if labels[0] < labels[1] else (2, 1)
    np.testing.assert_array_equal(found.truth, gts(*numbers))
    assert found.truth.dtype == np.uint8 and found.labels == tuple(sorted(labels))
    assert found.case.prev_pred is None and found.case.rounds == 1
    assert found.case.objects[0].box == Box((2, 3, 4), (7, 9, 11))


def test_a_labelled_case_may_have_neither_boxes_nor_clicks(write_npz):
    found = read_labelled_case(write_npz(gts=gts(1, 2), boxes=None))
    assert found.case.rounds == 0 and [p.box for p in found.case.objects] == [None, None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "expected gts, got none"),
        ({"gts": gts(1, 2)[0]}, r"gts must be 3D integers \(z, y, x\), got shape \(14, 18\)"),
        ({"gts": gts(1, 2).astype(float)}, "gts must be 3D integers .* of float64"),
        (
            {"gts": gts(1, 2)[1:]},
            r"expected gts of shape \(10, 14, 18\) as imgs, got \(9, 14, 18\)",
        ),
        ({"gts": gts(0, 0)}, "expected 1 to 255 objects in gts, got 0"),
        ({"gts": np.arange(2520).reshape(SHAPE)}, "expected 1 to 255 objects in gts, got 2519"),
        ({"gts": gts(-3, 2, dtype=int)}, "expected gts of labels from 0 on, got -3"),
        ({"gts": gts(1, 1)}, "expected 1 boxes, one per label, got 2"),
    ],
)
def test_bad_truth_names_the_case_the_expected_and_the_actual(changes, message, write_npz):
    with pytest.raises(CaseError, match=f"^case.npz: {message}"):
        read_labelled_case(write_npz(**changes))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": gts(1, 2)}, "expected segs, got none"),
        ({"segs": gts(1, 2)[1:]}, r"expected segs of shape \(10, 14, 18\), got \(9, 14, 18\)"),
        ({"segs": gts(1, 300, dtype=int)}, r"expected segs of labels 0..255, got 0..300"),
        ({"segs": np.full(SHAPE, np.nan)}, "expected segs of labels 0..255, got nan..nan"),
        ({"segs": gts(1, 2) * 0.75}, "expected segs of whole numbers"),
    ],
)
def test_a_prediction_that_is_none(arrays, message, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(CaseError, match=f"^a.npz: {message}"):
        read_segs(tmp_path / "a.npz", SHAPE)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_a_prediction_of_any_number_type(dtype, tmp_path):
    np.savez(tmp_path / "a.npz", segs=gts(1, 1).astype(dtype))
    segs = read_segs(tmp_path / "a.npz", SHAPE)
    assert segs.dtype == np.uint8
    np.testing.assert_array_equal(segs, gts(1, 1))


def test_fingerprints_tell_contents_apart_not_files(write_npz, tmp_path):
    path = write_npz("a.npz", gts=gts(1, 2))
    np.savez(tmp_path / "b.npz", **dict(np.load(path, allow_pickle=True)))
    assert fingerprint(path) == fingerprint(tmp_path / "b.npz")
    assert fingerprint(path) != fingerprint(write_npz("c.npz", gts=gts(2, 1)))


def test_reading_cases_needs_no_torch():
    modules = "utils.formats.case, utils.evaluation.protocol"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
