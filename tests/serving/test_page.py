"""The page's calls, and what they do with scans, prompts and labels."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import SimpleITK as sitk

from conftest import SHAPE, SPACING, case_arrays
from scans import VALUES, image_of, write_series, written
from segment_anything.bounds import AdaptiveSettings
from serving_apps import running
from utils.formats.scan import read_scan, write_labels
from utils.formats.scan_prompts import parse_prompts
from utils.inference.method import make_segmenter
from utils.serving.app import Server
from utils.serving.browser import Page
from utils.serving.gate import Gate
from utils.serving.leases import Leases
from utils.serving.session import Refused, Session
from utils.serving.shown import shown
from utils.serving.workspace import MAX_NAME, Workspace, safe_name

KEY = "a key"
SETTINGS = AdaptiveSettings(drawings=True)
FIRST = {"box": [2, 3, 4, 8, 11, 14], "clicks": [[4, 5, 6, 1], [4, 9, 9, 0]]}
SECOND = {
    "clicks": [[8, 6, 15, 1]],
    "drawings": [
        {"lasso": [[8, 4, 10], [8, 4, 17], [8, 9, 17]], "label": 1, "after": 0},
        {"scribble": [[8, 2, 3], [8, 2, 9]], "label": 0, "after": 1},
    ],
}


@pytest.fixture
def workspace(finding_hybrid):
    return lambda given=None, settings=SETTINGS, size=2**26: Workspace(
        finding_hybrid, settings, "fp32", given, size
    )


@pytest.fixture
def page(workspace, finding_hybrid, tmp_path):
    """A client of the server with a scan."""
    scan = written(tmp_path / "scan.nii.gz")
    lines = []
    server = Server(Leases(lambda: Session(finding_hybrid, SETTINGS), 4, 600, 600), KEY, 2**26)
    leases = Leases(lambda: workspace(scan), 2, 600, 600)
    gate = Gate(leases, KEY, 2**22, (), lines.append)
    app = server.app(Page(gate, asyncio.Lock(), "tiny", True, scan.name))
    with running(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        client.headers["Authorization"] = f"Bearer {KEY}"
        client.lines, client.leases = lines, leases
        yield client


@pytest.fixture
def opened(page):
    claimed = page.post("/page/claim", json={}).json()
    assert claimed["given"] == "scan.nii.gz" and claimed["draws"] and claimed["network"] == "tiny"
    page.headers["X-Lease-Token"] = claimed["lease_token"]
    answer = page.post("/page/open", json={"uploaded": False})
    assert answer.status_code == 200, answer.text
    page.scan = answer.json()
    return page


def meta(answer: httpx.Response) -> dict:
    assert answer.status_code == 200, answer.text
    return json.loads(answer.headers["X-Meta"])


def test_its_files_need_no_key_and_no_other_file_is_there(page):
    del page.headers["Authorization"]
    for path in ("/", "/page/main.js", "/page/style.css"):
        answer = page.get(path)
        assert (
            answer.status_code == 200
            and "default-src 'self'" in answer.headers["Content-Security-Policy"]
        )
    for path in ("/page/none.js", "/page/%2e%2e%2fapp.py", "/page/..%5capp.py", "/serve.py"):
        assert page.get(path).status_code == 404
    assert page.get("/", headers={"Host": "evil.example"}).status_code == 403
    for path in ("claim", "open", "segment", "save", "upload", "labels"):
        assert page.post(f"/page/{path}", json={}).status_code == 401
    assert page.get("/page/volume").status_code == 401


def test_without_a_lease_or_a_scan(page):
    assert page.post("/page/open", json={}).status_code == 410
    tokens = [page.post("/page/claim").json()["lease_token"] for _ in range(2)]
    assert page.post("/page/claim").status_code == 503
    page.headers["X-Lease-Token"] = tokens[0]
    for call in (page.get("/page/volume"), page.post("/page/segment", json={"object": FIRST})):
        assert call.status_code == 400 and "expected a scan" in call.json()["detail"]
    assert page.post("/page/open", json={"uploaded": True}).status_code == 400
    page.post("/page/release")
    assert page.post("/page/open", json={}).status_code == 410


def test_a_scan_is_shown_as_it_is(opened):
    scan = opened.scan
    assert scan["shape"] == list(SHAPE) and scan["name"] == "scan.nii.gz"
    np.testing.assert_allclose(scan["spacing"], SPACING)
    assert scan["type"] == "int16" and (scan["slope"], scan["intercept"]) == (1, 0)
    assert scan["formats"] == [".nii.gz", ".nii", ".nrrd", ".mha"]
    stored = np.frombuffer(opened.get("/page/volume").content, "<i2").reshape(SHAPE)
    np.testing.assert_array_equal(stored, VALUES)
    x, y, z = image_of().TransformIndexToPhysicalPoint((3, 4, 5))
    np.testing.assert_allclose(np.array(scan["affine"]) @ [3, 4, 5, 1], [-x, -y, z, 1], atol=1e-4)


def test_saved_labels_are_those_of_the_command_line(opened, finding_hybrid, tmp_path):
    content = {"objects": [FIRST, SECOND], "overlap": "first"}
    scan = read_scan(tmp_path / "scan.nii.gz", parse_prompts(content, tmp_path))
    expected = make_segmenter(finding_hybrid, "adaptive", SETTINGS)(scan.case)
    assert set(np.unique(expected)) == {0, 1, 2}
    for number, entry in enumerate((FIRST, SECOND), 1):
        answer = opened.post("/page/segment", json={"object": entry})
        found = meta(answer)
        part = tuple(slice(*side) for side in found["bbox"])
        inside = np.frombuffer(answer.content, np.uint8).reshape(expected[part].shape)
        assert inside.sum() == found["voxels"] > 0
        assert inside[expected[part] == number].all()
    for ending in (".nii.gz", ".nrrd"):
        saved = opened.post("/page/save", json={"objects": [FIRST, SECOND], "format": ending})
        assert meta(saved)["name"] == f"scan{ending}"
        path = tmp_path / f"saved{ending}"
        path.write_bytes(saved.content)
        write_labels(tmp_path / f"expected{ending}", expected, scan)
        image, other = (
            sitk.ReadImage(tmp_path / f"{name}{ending}") for name in ("saved", "expected")
        )
        assert image.IsSameImageGeometryAs(other, 1e-6, 1e-6)
        np.testing.assert_array_equal(*map(sitk.GetArrayFromImage, (image, other)))
    assert opened.post("/page/save", json={"objects": [FIRST], "format": ".npz"}).status_code == 400
    assert opened.post("/page/save", json={"objects": [], "format": ".nrrd"}).status_code == 400


def test_what_was_remembered_changes_nothing(workspace, tmp_path):
    scan = written(tmp_path / "scan.mha")
    fresh, used = workspace(scan), workspace(scan)
    fresh.open(False, None), used.open(False, None)
    parts = [
        {"clicks": SECOND["clicks"][:n], "drawings": SECOND["drawings"][: n + 1]} for n in (0, 1)
    ]
    for entry in (*parts, SECOND, parts[0], SECOND):
        last = used.segment(entry)
    np.testing.assert_array_equal(last.logits, fresh.segment(SECOND).logits)
    other = {**SECOND, "drawings": [{**drawing, "after": 1} for drawing in SECOND["drawings"]]}
    assert (used.segment(other).logits != last.logits).any()  # the order counts


def test_what_the_network_does_not_take_and_odd_prompts_are_refused(workspace, tmp_path):
    opened = workspace(written(tmp_path / "scan.mha"), AdaptiveSettings())
    opened.open(False, None)
    with pytest.raises(Refused, match="expected boxes of whole objects and clicks"):
        opened.segment(SECOND)
    for entry in (None, [], {"clicks": [[99, 0, 0, 1]]}, {"box": [0, 0, 0, 1]}, {"initial": 2}):
        with pytest.raises(Refused, match="expected"):
            opened.segment(entry)
    for entry in ({}, {"box": [10**400, 0, 0, 5, 5, 5]}, {"clicks": [[4, 5, 6, 1]] * 101}):
        with pytest.raises(Refused, match="expected"):
            opened.segment(entry)
    assert len(opened.segment({"clicks": [[4, 5, x % 15, 1] for x in range(40)]}).region) == 3


def test_files_that_are_sent(workspace, tmp_path):
    sent = workspace(written(tmp_path / "given.nrrd"), size=2**20)
    series = write_series(tmp_path / "series")
    files = sorted(series.iterdir())
    for number, path in enumerate(files, 1):
        assert sent.take_file(path.name, path.read_bytes(), number == 1)[0] == number
    assert sent.open(True, None)["shape"] == SHAPE
    for name in ("../../scan.mha", "a/b\\scan.mha", "scan.mha"):
        content = written(tmp_path / "scan.mha").read_bytes()
        sent.take_file(name, content, True)
        assert sent.open(True, None)["name"].endswith("scan.mha")
    np.savez_compressed(tmp_path / "case.npz", **case_arrays())
    sent.take_file("case.npz", (tmp_path / "case.npz").read_bytes(), True)
    assert sent.open(True, None)["formats"] == [".npz"]
    assert sent.save([FIRST], ".npz")[0] == "case.npz"
    with pytest.raises(Refused, match="at most 10000 files and 1048576 bytes"):
        sent.take_file("large", bytes(2**20 + 1), True)
    sent.take_file("notes.txt", b"no scan", True)
    with pytest.raises(ValueError, match="notes.txt"):
        sent.open(True, None)
    assert sent.open(False, None)["name"] == "given.nrrd"
    for number, name in enumerate(("1-a.dcm", "a.dcm", "a.dcm", "b.dcm")):
        sent.take_file(name, bytes([number]), number == 0, "a folder")
    kept = [path.read_bytes()[0] for path in sent._sent]
    assert kept == [0, 1, 2, 3] and sent._sent[0].parent.name == "a folder"


def test_what_ends_holds_nothing_and_its_files_are_gone(workspace, tmp_path):
    """Whatever still refers to it, such as the traceback of a request that was refused."""
    content = written(tmp_path / "scan.mha").read_bytes()
    ended = workspace()
    ended.take_file("scan.mha", content, True)
    ended.open(True, None)
    ended.segment(FIRST)
    folder = Path(ended._folder.name)
    assert folder.exists()
    ended.close()
    assert not folder.exists()
    for call in (
        lambda: ended.take_file("scan.mha", content, True),
        lambda: ended.segment(FIRST),
        lambda: ended.volume(),
    ):
        with pytest.raises(Refused):
            call()
    assert ended.predictor.volume is None and not ended._known


def test_a_session_that_is_released_stops_working(opened, monkeypatch):
    (lease,) = opened.leases._held.values()
    begun, segment = [], lease.session.predictor.segment

    def slowly(requests):
        begun.append(1)
        time.sleep(0.3)
        return segment(requests)

    monkeypatch.setattr(lease.session.predictor, "segment", slowly)
    many = {"object": {"clicks": [[4, 5, x, 1] for x in range(12)]}}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(opened.post, "/page/segment", json=many)
        while not begun:
            time.sleep(0.01)
        assert opened.post("/page/release").status_code == 200
        assert answer.result().status_code == 410
    assert len(begun) < 6


def test_a_scan_that_can_not_be_opened_changes_nothing(workspace, tmp_path):
    np.savez_compressed(tmp_path / "case.npz", **case_arrays())
    opened = workspace(tmp_path / "case.npz")
    opened.open(False, None)
    before = opened.save([FIRST], ".npz")
    for name, values in (
        ("flat.nii", np.full(SHAPE, 7, np.int16)),
        ("far.nii", np.where(VALUES > np.median(VALUES), 1.7e308, -1.7e308)),
    ):
        opened.take_file(name, written(tmp_path / name, values).read_bytes(), True)
        with pytest.raises(ValueError, match="expected"):
            opened.open(True, None)
        assert opened.save([FIRST], ".npz") == before
    small = workspace(written(tmp_path / "scan.nii.gz"), size=1000)
    with pytest.raises(Refused, match="expected at most 1000 bytes unpacked"):
        small.open(False, None)


def test_labels_that_do_not_say_where_they_lie_are_for_a_case_alone(workspace, tmp_path):
    np.savez_compressed(tmp_path / "labels.npz", segs=np.ones(SHAPE, np.uint8))
    content = (tmp_path / "labels.npz").read_bytes()
    opened = workspace(written(tmp_path / "scan.nii.gz"))
    opened.open(False, None)
    with pytest.raises(Refused, match="labels.npz: expected labels as an image"):
        opened.take_labels("labels.npz", content)


def test_where_to_look_next(opened):
    answer = opened.post("/page/suggest", json={"object": FIRST})
    voxel = answer.json()["voxel"]
    assert voxel is None or all(0 <= at < side for at, side in zip(voxel, SHAPE, strict=True))
    assert opened.post("/page/suggest", json={"object": {}}).status_code == 400


def test_mistakes_and_other_calls_are_answered_in_words(opened, monkeypatch):
    def broken(entry):
        raise LookupError("a mistake")

    (lease,) = opened.leases._held.values()
    monkeypatch.setattr(lease.session, "segment", broken)
    answer = opened.post("/page/segment", json={"object": FIRST})
    assert answer.status_code == 500 and "mistake" in answer.json()["detail"]
    assert "LookupError: a mistake" in opened.lines[-1]
    for answer, status in ((opened.get("/nothing"), 404), (opened.delete("/page/volume"), 405)):
        assert answer.status_code == status and answer.json()["detail"]
    long = opened.post(
        "/page/upload", headers={"X-Meta": json.dumps({"name": "漢" * 300})}, content=b"x"
    )
    assert long.status_code == 200


def test_a_file_that_is_refused_is_named_and_the_page_goes_on(opened):
    sent = opened.post(
        "/page/upload", headers={"X-Meta": '{"name": "a.nii", "first": true}'}, content=b"x"
    )
    assert sent.json() == {"files": 1, "bytes": 1}
    answer = opened.post("/page/open", json={"uploaded": True})
    assert answer.status_code == 400 and "a.nii" in answer.json()["detail"]
    assert opened.post("/page/segment", json={"object": FIRST}).status_code == 200
    large = opened.post("/page/upload", content=bytes(2**22 + 2**21))
    assert large.status_code == 413


def test_labels_are_loaded_and_corrected(opened, finding_hybrid, tmp_path):
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:5, 3:6, 4:9], labels[6, 7, 8] = 3, 7
    path = written(tmp_path / "before.nii.gz", labels)
    headers = {"X-Meta": '{"name": "before.nii.gz"}'}
    answer = opened.post("/page/labels", headers=headers, content=path.read_bytes())
    assert meta(answer) == {"labels": [3, 7]}
    np.testing.assert_array_equal(np.frombuffer(answer.content, np.uint8).reshape(SHAPE), labels)
    kept = meta(opened.post("/page/segment", json={"object": {"initial": 3}}))
    assert kept["bbox"] == [[2, 5], [3, 6], [4, 9]] and kept["voxels"] == 45
    objects = [{"initial": 3, "clicks": [[4, 5, 6, 1]]}, {"initial": 7}]
    content = {"objects": objects, "overlap": "first", "labels": path.name}
    scan = read_scan(tmp_path / "scan.nii.gz", parse_prompts(content, tmp_path))
    expected = make_segmenter(finding_hybrid, "adaptive", SETTINGS)(scan.case)
    saved = opened.post("/page/save", json={"objects": objects, "format": ".mha"})
    (tmp_path / "saved.mha").write_bytes(saved.content)
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "saved.mha")), expected
    )
    other = written(tmp_path / "other.nii.gz", labels[1:]).read_bytes()
    refused = opened.post("/page/labels", headers={"X-Meta": '{"name": "o.nii.gz"}'}, content=other)
    assert refused.status_code == 400 and "expected the grid of scan.nii.gz" in refused.text


def test_ct_has_a_window_that_is_named(workspace, tmp_path):
    values = (VALUES - 1000).astype(np.int16)
    opened = workspace(written(tmp_path / "ct.nrrd", values))
    found = opened.open(False, None)
    assert found["is_hu"] and found["window"] == "abdomen" and found["levels"] == (-160, 240)
    grey = opened.scan.case.image
    again = opened.open(False, "lung")
    assert again["window"] == "lung" and again["id"] == found["id"]
    assert (opened.scan.case.image != grey).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32])
def test_values_survive_the_way_to_the_browser(dtype):
    rng = np.random.default_rng(2)
    top = 255 if dtype == np.uint8 else 60_000 if dtype == np.uint16 else 30_000
    values = (rng.random(SHAPE) * top).astype(dtype)
    seen = shown(values)
    assert seen.stored.dtype in (np.uint8, np.dtype("<i2"))
    back = seen.stored.astype(np.float64) * seen.slope + seen.intercept
    exact = dtype not in (np.uint16, np.float32)
    np.testing.assert_allclose(back, values, atol=0 if exact else seen.slope * 0.51)
    flat = shown(np.full(SHAPE, 7, dtype))
    assert flat.levels[0] < flat.levels[1]
    assert flat.stored.flat[0] * flat.slope + flat.intercept == 7


def test_names_lose_what_leads_elsewhere():
    assert safe_name("../../etc/passwd") == "passwd"
    assert safe_name("C:\\a\\Köpfe 1.nii.gz") == "Köpfe 1.nii.gz"
    assert safe_name("..") == safe_name("/") == "scan"
    assert safe_name(".bashrc") == "bashrc" and safe_name("a\0b:c.mha") == "a_b_c.mha"
    assert (
        safe_name("x" * 500 + ".nii.gz").endswith("x.nii.gz")
        and len(safe_name("漢" * 500).encode()) <= MAX_NAME
    )


def test_the_window_of_the_command_line_is_the_first_one(finding_hybrid, tmp_path):
    scan = written(tmp_path / "ct.nrrd", (VALUES - 1000).astype(np.int16))
    opened = Workspace(finding_hybrid, SETTINGS, "fp32", scan, 2**26, "bone")
    assert opened.open(False, None)["window"] == "bone"
    assert opened.open(False, "lung")["window"] == "lung"
