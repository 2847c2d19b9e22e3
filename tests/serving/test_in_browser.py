"""The page in Chromium: prompts by mouse and keyboard, what is saved, reload and refusals."""

import asyncio
import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from scans import written
from segment_anything.bounds import AdaptiveSettings
from serving_apps import running
from utils.formats.scan import read_scan
from utils.formats.scan_prompts import read_prompts
from utils.inference.method import make_segmenter
from utils.serving.app import Server
from utils.serving.browser import Page
from utils.serving.gate import Gate
from utils.serving.leases import Leases
from utils.serving.session import Session
from utils.serving.workspace import Workspace

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

KEY = "a key"
SETTINGS = AdaptiveSettings(drawings=True)
SHAPE = (24, 40, 36)
TILT = np.deg2rad(20)
OBLIQUE = np.array(  # and turned: its axes run to A, R and S, the first two 20 degrees off
    [[np.sin(TILT), -np.cos(TILT), 0], [-np.cos(TILT), -np.sin(TILT), 0], [0, 0, 1]]
)
WAIT = 20_000  # ms


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    grid = np.indices(SHAPE)
    centre = np.array([12, 20, 18])[:, None, None, None]
    ball = ((grid - centre) ** 2).sum(axis=0) < 49
    values = np.random.default_rng(0).integers(20, 60, SHAPE) + 100 * ball
    return written(
        tmp_path_factory.mktemp("scan") / "oblique.nii.gz", values.astype(np.int16), OBLIQUE
    )


@pytest.fixture(scope="module")
def url(finding_hybrid, scan):
    def workspace() -> Workspace:
        return Workspace(finding_hybrid, SETTINGS, "fp32", scan, 2**24)

    server = Server(Leases(lambda: Session(finding_hybrid, SETTINGS), 1, 600, 600), KEY, 2**24)
    gate = Gate(Leases(workspace, 99, 600, 600), KEY, 2**24, log=lambda line: None)
    with running(server.app(Page(gate, asyncio.Lock(), "tiny", True, scan.name))) as url:
        yield url


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as running_playwright:
        browser = running_playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, url):
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(f"{url}/#key={KEY.replace(' ', '%20')}")
    ready(page)
    yield page
    assert page.errors == []
    context.close()


def ready(page) -> None:
    page.wait_for_selector("#status[data-state=ready]", timeout=WAIT)


def predicted(page, number: int = 1) -> str:
    """Waits for the volume of an object, which it returns."""
    volume = page.locator("#object-list li").nth(number - 1).locator(".object-volume")
    playwright.expect(volume).to_contain_text("ml", timeout=WAIT)
    ready(page)
    return volume.inner_text()


def at(page, plane: str, row: float, column: float) -> tuple[float, float]:
    """Where the middle of a voxel of a plane is on the page."""
    canvas = page.locator(f"#plane-{plane}")
    data, box = canvas.evaluate("canvas => ({...canvas.dataset})"), canvas.bounding_box()
    return (
        box["x"] + float(data["left"]) + (column + 0.5) * float(data["column"]),
        box["y"] + float(data["top"]) + (row + 0.5) * float(data["row"]),
    )


def drag(page, *points: tuple[float, float]) -> None:
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()


def box(page, low: tuple[int, int], high: tuple[int, int]) -> None:
    page.click("#tool-box")
    drag(page, at(page, "axial", *low), at(page, "axial", *high))


def click(page, tool: str, row: int, column: int) -> None:
    page.click(f"#tool-{tool}")
    page.mouse.click(*at(page, "axial", row, column))


def saved(page, button: str, folder):
    with page.expect_download(timeout=WAIT) as download:
        page.click(button)
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_two_objects_and_what_the_command_line_makes_of_them(page, finding_hybrid, scan, tmp_path):
    box(page, (10, 10), (26, 30))
    first = predicted(page)
    click(page, "minus", 14, 12)
    ready(page)
    click(page, "plus", 18, 20)
    ready(page)
    page.click("#object-new")
    page.click("#tool-scribble")
    drag(page, at(page, "axial", 30, 8), at(page, "axial", 33, 14), at(page, "axial", 30, 20))
    predicted(page, 2)
    page.click("#tool-lasso")
    corners = [(4, 20), (4, 28), (9, 28), (4, 20)]
    drag(page, *(at(page, "axial", *corner) for corner in corners))
    ready(page)
    playwright.expect(page.locator("#object-list li")).to_have_count(2)
    labels = saved(page, "#save-labels", tmp_path)
    prompts = saved(page, "#save-prompts", tmp_path)
    assert labels.name == "oblique.nii.gz" and prompts.name == "oblique.json" and first
    objects = json.loads(prompts.read_text())["objects"]
    assert len(objects[0]["clicks"]) == 2 and len(objects[1]["drawings"]) == 2
    read = read_scan(scan, read_prompts(prompts))
    expected = make_segmenter(finding_hybrid, "adaptive", SETTINGS)(read.case)
    assert set(np.unique(expected)) == {0, 1, 2}
    image = sitk.ReadImage(labels)
    assert image.IsSameImageGeometryAs(sitk.ReadImage(scan), 1e-5, 1e-5)
    turned = sitk.DICOMOrient(image, "LPS")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(turned), expected)


def test_undo_and_redo(page):
    box(page, (10, 10), (26, 30))
    first = predicted(page)
    click(page, "minus", 18, 20)
    ready(page)
    second = predicted(page)
    page.keyboard.press("Control+z")
    assert predicted(page) == first
    page.click("#redo")
    assert predicted(page) == second
    page.click("#undo")
    page.click("#undo")
    assert page.is_disabled("#save-labels")


def test_work_survives_a_reload_and_the_end_of_the_session(page):
    box(page, (10, 10), (26, 30))
    volume = predicted(page)
    name = page.locator(".object-name")
    name.fill("ball")
    name.press("Enter")
    page.reload()
    ready(page)
    assert predicted(page) == volume and name.input_value() == "ball"
    page.evaluate("() => sessionStorage.setItem('sam-med3d:lease', '{\"lease_token\": \"old\"}')")
    page.reload()
    ready(page)
    assert predicted(page) == volume


def test_a_box_becomes_one_of_the_whole_object(page, tmp_path):
    box(page, (10, 10), (26, 30))
    predicted(page)
    number = int(page.get_attribute("#plane-axial", "data-slice"))
    canvas = page.locator("#plane-coronal")
    rows = SHAPE[0] if canvas.get_attribute("data-upside") == "true" else 0
    row = rows - 1 - number if rows else number
    x, y = at(page, "coronal", row - 0.5, 20)
    up = at(page, "coronal", row - 4.5, 20)
    drag(page, (x, y), up)
    ready(page)
    (found,) = json.loads(saved(page, "#save-prompts", tmp_path).read_text())["objects"]
    assert "drawings" not in found or not found["drawings"]
    assert sorted(b - a for a, b in zip(found["box"][:3], found["box"][3:], strict=True))[0] == 5


def test_by_keyboard_alone(page):
    page.focus("#plane-axial")
    page.keyboard.press("b")
    page.keyboard.press("Enter")
    for key in ("ArrowDown", "ArrowRight"):
        for _ in range(6):
            page.keyboard.press(key)
    page.keyboard.press("Enter")
    predicted(page)
    page.keyboard.press("p")
    page.keyboard.press("Enter")
    ready(page)
    predicted(page)


def test_a_refused_file_and_then_another(page, tmp_path, scan):
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"no scan")
    page.set_input_files("#open-file", bad)
    playwright.expect(page.locator("#error")).to_contain_text("bad.nii.gz", timeout=WAIT)
    other = shutil.copy(scan, tmp_path / "other.nii.gz")
    page.set_input_files("#open-file", other)
    playwright.expect(page.locator("#scan-name")).to_have_text("other.nii.gz", timeout=WAIT)
    ready(page)
    box(page, (10, 10), (26, 30))
    predicted(page)


def test_labels_are_loaded_and_corrected(page, scan, tmp_path):
    values = np.zeros(SHAPE, np.uint8)
    values[8:12, 12:24, 12:26], values[20:22, 5:9, 5:9] = 3, 7
    path = written(tmp_path / "before.nii.gz", values, OBLIQUE)
    page.set_input_files("#load-labels", path)
    for number, name in enumerate(("Label 3", "Label 7"), 1):
        predicted(page, number)
        shown = page.locator("#object-list li").nth(number - 1).locator(".object-name")
        assert shown.input_value() == name
    page.locator("#object-list li").nth(1).click()  # the first one keeps what it has
    click(page, "plus", 30, 10)
    ready(page)
    labels = sitk.GetArrayFromImage(sitk.ReadImage(saved(page, "#save-labels", tmp_path)))
    np.testing.assert_array_equal(labels == 1, values == 3)
    assert (labels == 2).any()


def test_it_goes_to_where_it_is_unsure(page):
    assert page.is_disabled("#suggest")
    box(page, (10, 10), (26, 30))
    predicted(page)
    page.click("#suggest")
    playwright.expect(page.locator("#status")).to_contain_text("in the object?", timeout=WAIT)


def test_by_fingers(chromium, url):
    context = chromium.new_context(viewport={"width": 1180, "height": 820}, has_touch=True)
    page = context.new_page()
    page.goto(f"{url}/#key={KEY}")
    ready(page)
    page.locator("#tool-plus").tap()
    fingers = context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        told = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": told})

    x, y = at(page, "axial", 20, 18)
    width = page.get_attribute("#plane-axial", "data-column")
    touch("touchStart", (x, y))
    touch("touchStart", (x, y), (x + 40, y))
    touch("touchMove", (x - 60, y), (x + 100, y))
    touch("touchEnd")
    ready(page)
    assert float(page.get_attribute("#plane-axial", "data-column")) > float(width)
    assert page.locator("#object-list li").count() == 0  # a pinch gives no prompt
    touch("touchStart", (x, y))
    touch("touchEnd")
    predicted(page)
    context.close()


def test_a_wrong_key_is_asked_for_again(chromium, url):
    page = chromium.new_page()
    page.goto(f"{url}/#key=wrong")
    page.wait_for_selector("#key-input", timeout=WAIT)
    page.fill("#key-input", KEY)
    page.keyboard.press("Enter")
    ready(page)
    assert KEY not in page.url and "wrong" not in page.url
    page.close()
