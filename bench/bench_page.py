"""What a user of the page waits for, in Chromium: redraws a second, and masks after prompts.

    python bench/bench_page.py --checkpoint ckpt/sam_med3d_small.safetensors

Opens the sample case of a brain, interpolated to a volume of `--shape`, as int16; drags a box round
each of its structures in their middle slices and clicks in it; then moves through the slices of
each plane by the keyboard, an event for each frame. A mask's time is from the release of the button
to the page's own word that it is shown; beside it, how long the server took to answer.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import astuple
from pathlib import Path
from statistics import median

import numpy as np
import SimpleITK as sitk
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.bench_serve import KEY, ROOT, Process
from bench.common import bench_parser, origin, print_header, print_row
from segment_anything.prompts import Box
from utils.formats.case import read_case
from utils.formats.resample import zoom_linear

SAMPLE = ROOT / "inputs" / "MR_Brain_colin27.npz"
SECONDS = 5
PAUSE = 0.7  # seconds between an answer and the next prompt; people take longer
# Steps forth and back through the slices of the plane that has the focus, a step for each frame.
SCROLL = """async ([plane, seconds]) => {
  const canvas = document.getElementById(plane);
  canvas.focus();
  const press = (key) => canvas.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
  const before = Number(document.documentElement.dataset.redraws);
  const start = performance.now();
  for (let i = 0; performance.now() - start < 1000 * seconds; i++) {
    press(i % 60 < 30 ? 'PageUp' : 'PageDown');
    await new Promise(requestAnimationFrame);
  }
  const took = performance.now() - start;
  return 1000 * (Number(document.documentElement.dataset.redraws) - before) / took;
}"""


WATCH = """() => {
  const status = document.getElementById('status');
  let begun = null;
  window.waited = null;
  let isAsked = false;
  for (const kind of ['pointerdown', 'pointerup']) {
    addEventListener(kind, () => { if (!isAsked) begun = performance.now(); }, {capture: true});
  }
  const watcher = new MutationObserver(() => {
    isAsked ||= status.dataset.state === 'predicting';
    if (!isAsked || status.dataset.state !== 'ready') return;
    const calls = performance.getEntriesByType('resource');
    const last = calls.findLast(({name}) => name.endsWith('/page/segment'));
    window.waited = [performance.now() - begun, last.responseEnd - last.requestStart];
    watcher.disconnect();
  });
  watcher.observe(status, {attributes: true});
}"""


def get_args_parser() -> argparse.ArgumentParser:
    parser = bench_parser(__doc__, repeats=9)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--shape", type=int, nargs=3, default=(200, 512, 512), help="z y x")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    return parser


def write_scan(path: Path, shape: tuple[int, int, int]) -> list[Box]:
    """The sample case at another size, int16; returns the boxes of its objects there."""
    case = read_case(SAMPLE)
    scale = np.array(shape) / case.shape
    image = sitk.GetImageFromArray(zoom_linear(case.image, shape).astype(np.int16))
    image.SetSpacing((np.array(case.spacing) / scale)[::-1].tolist())
    sitk.WriteImage(image, str(path))
    boxes = []
    for box in (each.box for each in case.objects if each.box is not None):
        edges = np.rint(np.array([box.start, box.stop]) * scale).astype(int).tolist()
        boxes.append(Box(tuple(edges[0]), tuple(edges[1])))
    return boxes


def go_to(page: Page, z: int) -> None:
    """Show an axial slice."""
    page.focus("#plane-axial")
    shown = int(page.get_attribute("#plane-axial", "data-slice") or 0)
    for _ in range(abs(z - shown)):
        page.keyboard.press("PageUp" if z > shown else "PageDown")
    page.wait_for_selector(f"#plane-axial[data-slice='{z}']")


def at(page: Page, row: float, column: float) -> tuple[float, float]:
    """Where a voxel of the axial plane is on the page."""
    canvas = page.locator("#plane-axial")
    data, box = canvas.evaluate("canvas => ({...canvas.dataset})"), canvas.bounding_box()
    assert box is not None
    x = box["x"] + float(data["left"]) + (column + 0.5) * float(data["column"])
    y = box["y"] + float(data["top"]) + (row + 0.5) * float(data["row"])
    return x, y


def waited(page: Page, *points: tuple[float, float]) -> tuple[float, float]:
    """Milliseconds from the end of a drag or click to its mask; those of the server among them."""
    page.mouse.move(*points[0])
    page.evaluate(WATCH)
    page.mouse.down()
    page.mouse.move(*points[-1], steps=3)
    page.mouse.up()
    page.wait_for_function("() => window.waited !== null")
    waited, answered = page.evaluate("() => window.waited")
    return waited, answered


def main(args: argparse.Namespace) -> int:
    """Returns the exit status."""
    print(f"{origin('cpu')}\n")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        scan = Path(folder, "scan.nii")
        boxes = write_scan(scan, tuple(args.shape))
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        with Process(args.checkpoint, str(scan)) as server:
            page = browser.new_page(viewport={"width": 1920, "height": 1080})
            start = time.perf_counter()
            page.goto(f"{server.url}/#key={KEY}")
            page.wait_for_selector("#status[data-state=ready]", timeout=60_000)
            opened = time.perf_counter() - start
            times: dict[str, list[tuple[float, float]]] = {"first box": [], "click": []}
            for i in range(args.repeats):
                (z0, y0, x0), (z1, y1, x1) = astuple(boxes[i % len(boxes)])
                y0 += i // len(boxes)  # the page knows the answer to the same prompt
                go_to(page, (z0 + z1) // 2)
                page.click("#object-new")
                page.click("#tool-box")
                time.sleep(PAUSE)
                times["first box"].append(waited(page, at(page, y0, x0), at(page, y1 - 1, x1 - 1)))
                page.click("#tool-plus")
                time.sleep(PAUSE)
                middle = (y0 + y1) / 2, (x0 + x1) / 2
                times["click"].append(waited(page, at(page, *middle)))
            rates = {
                plane: page.evaluate(SCROLL, [f"plane-{plane}", SECONDS])
                for plane in ("axial", "coronal", "sagittal")
            }
        browser.close()
    print_header("", "median", "longest")
    print_row("opening", f"{opened:.1f} s", "")
    for name, values in times.items():
        for what, own in zip((name, "of it the server"), zip(*values, strict=True), strict=True):
            print_row(what, f"{median(own):.0f} ms", f"{max(own):.0f} ms")
    for plane, rate in rates.items():
        print_row(f"slices of {plane}", f"{rate:.0f} redraws a second", "")
    return 0


if __name__ == "__main__":
    sys.exit(main(get_args_parser().parse_args()))
