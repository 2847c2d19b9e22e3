"""What a user of the page waits for, in Chromium: redraws a second, and masks after prompts.

    python bench/bench_page.py --checkpoint ckpt/sam_med3d_small_drawings.safetensors

Opens a volume of noise of `--shape`, moves through the slices of each plane by the keyboard, an
event for each frame, then drags boxes and clicks. A mask's time is from the release of the button
to the page's own word that it is shown.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import SimpleITK as sitk
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.bench_serve import KEY, Process
from bench.common import bench_parser, origin, print_header, print_row

SPACING = (0.8, 0.8, 2.5)  # mm, (x, y, z)
RADIUS = 48  # mm
SECONDS = 5
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
    window.waited = performance.now() - begun;
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


def write_scan(path: Path, shape: tuple[int, int, int]) -> None:
    """A bright ball in noise, int16."""
    rng = np.random.default_rng(0)
    values = rng.integers(-100, 100, shape, np.int16)
    z, y, x = np.ogrid[tuple(map(slice, shape))]
    middle = [side // 2 for side in shape]
    squares = (
        ((along - at) * mm) ** 2
        for along, at, mm in zip((z, y, x), middle, SPACING[::-1], strict=True)
    )
    values[sum(squares) < RADIUS**2] += 150
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(SPACING)
    sitk.WriteImage(image, str(path))


def at(page: Page, row: float, column: float) -> tuple[float, float]:
    """Where a voxel of the axial plane is on the page."""
    canvas = page.locator("#plane-axial")
    data, box = canvas.evaluate("canvas => ({...canvas.dataset})"), canvas.bounding_box()
    assert box is not None
    x = box["x"] + float(data["left"]) + (column + 0.5) * float(data["column"])
    y = box["y"] + float(data["top"]) + (row + 0.5) * float(data["row"])
    return x, y


def waited(page: Page, *points: tuple[float, float]) -> float:
    """Milliseconds from the end of a drag or click to its mask."""
    page.mouse.move(*points[0])
    page.evaluate(WATCH)
    page.mouse.down()
    page.mouse.move(*points[-1], steps=3)
    page.mouse.up()
    while (found := page.evaluate("() => window.waited")) is None:
        time.sleep(0.01)
    return float(found)


def main(args: argparse.Namespace) -> int:
    """Returns the exit status."""
    print(f"{origin('cpu')}\n")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        scan = Path(folder, "scan.nii")
        write_scan(scan, tuple(args.shape))
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        with Process(args.checkpoint, str(scan)) as server:
            page = browser.new_page(viewport={"width": 1920, "height": 1080})
            start = time.perf_counter()
            page.goto(f"{server.url}/#key={KEY}")
            page.wait_for_selector("#status[data-state=ready]", timeout=60_000)
            opened = time.perf_counter() - start
            _, y, x = (side // 2 for side in args.shape)
            r = RADIUS / SPACING[0] + 2
            boxes, clicks = [], []
            for i in range(args.repeats):
                page.click("#object-new")
                page.click("#tool-box")
                corners = at(page, y - r + i, x - r), at(page, y + r, x + r - i)
                boxes.append(waited(page, *corners))
                page.click("#tool-plus")
                clicks.append(waited(page, at(page, y + i, x + r / 2)))
            rates = {
                plane: page.evaluate(SCROLL, [f"plane-{plane}", SECONDS])
                for plane in ("axial", "coronal", "sagittal")
            }
        browser.close()
    print_header("", "median", "longest")
    print_row("opening", f"{opened:.1f} s", "")
    for name, values in (("first box", boxes), ("click", clicks)):
        print_row(name, f"{median(values):.0f} ms", f"{max(values):.0f} ms")
    for plane, rate in rates.items():
        print_row(f"slices of {plane}", f"{rate:.0f} redraws a second", "")
    return 0


if __name__ == "__main__":
    sys.exit(main(get_args_parser().parse_args()))
