"""One browser's scan: opened, shown, segmented by prompts, and saved.

Nothing is kept of the objects: the browser has their prompts, and a prediction follows from them
alone, as that of infer.py does. What was predicted for fewer of them is remembered, for speed.
"""

import hashlib
import json
import re
import tempfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from segment_anything import SamPredictor3D
from segment_anything.adaptive import ObjectRequest
from segment_anything.bounds import AdaptiveSettings, bounds_of
from segment_anything.modeling.sam3D import Sam3D
from segment_anything.patches import Mask, Prediction
from segment_anything.predictor3D import MAX_STEPS, Canvas
from segment_anything.prompts import Index3, Prompts
from segment_anything.suggestion import suggest_click
from utils.formats.case import MAX_OBJECTS, read_bare_case, read_segs, write_case
from utils.formats.image_header import is_dicom
from utils.formats.images import read_labels
from utils.formats.intensity import CT_WINDOWS, LOOKS_LIKE_HU, parse_window, to_grey
from utils.formats.scan import Grid, Scan, place, read_values, turn_of, write_labels
from utils.formats.scan_prompts import SCAN_ENDINGS, ending_of, parse_object, stem_of
from utils.serving.session import Refused
from utils.serving.shown import Shown, shown

NPZ = ".npz"
MAX_FILES = 10_000  # of a DICOM series
MAX_NAME = 200  # bytes of a file's name that are kept
MAX_PROMPTS = 100  # of an object: each may ask the network once more
REMEMBERED = 2**29  # bytes of predictions
CLOSED = "the session has ended"


class Workspace:
    """Holds a scan, and files that were sent.

    Args:
        model: In eval mode, on the device to use; workspaces share it.
        settings: Those that it was trained with.
        precision: One of PRECISIONS.
        given: The scan to open where none was sent, or None.
        max_bytes: Of all files that are sent.
        window: What the network sees of a scan at first, as `parse_window` reads it, or None.
    """

    def __init__(
        self,
        model: Sam3D,
        settings: AdaptiveSettings,
        precision: str,
        given: Path | None,
        max_bytes: int,
        window: str | None = None,
    ) -> None:
        self.predictor = SamPredictor3D(model, settings, precision)
        self.given, self.max_bytes, self.window = given, max_bytes, window
        self._stem = ""
        self._scan: Scan | None = None
        self._ending = NPZ
        self._shown: Shown | None = None
        self._labels: np.ndarray | None = None
        self._sent: list[Path] = []
        self._sent_bytes = 0
        self._series = ""
        self._folder: tempfile.TemporaryDirectory | None = None  # goes with the workspace
        self._known: OrderedDict[tuple, Prediction] = OrderedDict()
        self._last: ObjectRequest | None = None  # what the next click is likely to add to
        self._is_closed = False

    def close(self) -> None:
        """Stop what is worked on, hold nothing any more, and remove the files that were sent."""
        self._is_closed = True
        self._scan, self._shown, self._labels, self._last = None, None, None, None
        self._known.clear()
        self.predictor.forget_image()
        if self._folder is not None:
            self._folder.cleanup()

    def take_file(
        self, name: Any, content: bytes, is_first: bool, series: Any = None
    ) -> tuple[int, int]:
        """Keep a file that was sent -> number and bytes of those kept.

        Args:
            name: The file's.
            content: Its bytes.
            is_first: Of those that belong together; those before are forgotten.
            series: Their name, where they are several.

        Raises:
            Refused: It is one too many, or they are too large.
        """
        if not isinstance(name, str):
            raise Refused(f"expected a name, got {str(name)[:80]}")
        if self._is_closed:
            raise Refused(CLOSED)
        if is_first or self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="scan-")
            self._sent, self._sent_bytes = [], 0
            self._series = safe_name(series) if isinstance(series, str) else "series"
        if len(self._sent) >= MAX_FILES or self._sent_bytes + len(content) > self.max_bytes:
            raise Refused(f"expected at most {MAX_FILES} files and {self.max_bytes} bytes in all")
        folder = Path(self._folder.name, self._series)
        folder.mkdir(exist_ok=True)
        path = folder / safe_name(name)
        while path.exists():  # of another folder
            path = folder / f"{len(self._sent)}-{path.name}"
        path.write_bytes(content)
        self._sent.append(path)
        self._sent_bytes += len(content)
        return len(self._sent), self._sent_bytes

    def open(self, is_sent: bool, window: Any) -> dict[str, Any]:
        """Open the scan that was given, or what was sent -> all that the page has to know.

        Args:
            is_sent: What was sent.
            window: What the network sees of CT, as `parse_window` reads it; None: as it is.

        Raises:
            Refused: There is none.
            ValueError, OSError, RuntimeError: It can't be used.
        """
        path = self.given
        if is_sent:
            path = self._sent[0].parent if len(self._sent) > 1 else next(iter(self._sent), None)
        if path is None:
            raise Refused("expected a scan: open a file, or drop it here")
        if window is not None and not isinstance(window, str):
            raise Refused(f"expected a window, got {str(window)[:80]}")
        if path.suffix.lower() == NPZ:
            case = read_bare_case(path)
            grid = Grid.of_case(case)
            scan, keep, ending, stem = Scan(case, grid, grid), None, NPZ, path.stem
        else:
            if path.is_file() and ending_of(path) is None and not is_dicom(path):
                kinds = ", ".join((*SCAN_ENDINGS, NPZ))
                raise Refused(f"{path.name}: expected {kinds} or DICOM, got another kind of file")
            scan, keep = read_values(path)
            ending, stem = ending_of(path) or SCAN_ENDINGS[0], stem_of(path)
            window = window or self.window
        values = scan.case.image
        if values.nbytes > self.max_bytes:
            raise Refused(f"expected at most {self.max_bytes} bytes unpacked, got {values.nbytes}")
        is_hu = keep is not None and values.dtype.kind in "if" and values.min() < LOOKS_LIKE_HU
        if is_hu and window is None:
            window = "abdomen"
        said: list[str] = []
        grey = values
        if keep is not None:
            grey, said = to_grey(values, parse_window(window) if window else None)
        seen = shown(values)
        if is_hu:
            level, width = CT_WINDOWS["abdomen"]
            seen = replace(seen, levels=(level - width / 2, level + width / 2))
        scan = replace(scan, case=replace(scan.case, image=grey))
        self.predictor.set_image(grey, scan.case.spacing)
        # Nothing can fail from here on: the scan before stays as it was until now.
        self._scan, self._shown, self._ending, self._stem = scan, seen, ending, stem
        self._labels, self._last = None, None
        self._known.clear()
        if self._is_closed:
            self.close()
        return self._description(is_hu, window, [*scan.notices, *said])

    def _description(self, is_hu: bool, window: str | None, notices: list[str]) -> dict[str, Any]:
        scan, seen = self.scan, self._shown
        assert seen is not None
        order, flipped = turn_of(scan.grid, scan.turned)
        stored = np.ascontiguousarray(seen.stored)
        geometry = [scan.turned.size, scan.turned.spacing, scan.turned.origin]
        digest = hashlib.sha256(stored.data)
        digest.update(json.dumps([geometry, scan.turned.direction, scan.case.name]).encode())
        rest = [ending for ending in SCAN_ENDINGS if ending != self._ending]
        return {
            "name": scan.case.name,
            "id": digest.hexdigest()[:16],
            "shape": scan.case.shape,
            "spacing": scan.case.spacing,
            "affine": scan.turned.affine.tolist(),
            "type": stored.dtype.name,
            "slope": seen.slope,
            "intercept": seen.intercept,
            "levels": seen.levels,
            "is_hu": bool(is_hu),
            "window": window,
            "windows": CT_WINDOWS,
            "order": order,
            "flipped": flipped,
            "formats": [NPZ] if self._ending == NPZ else [self._ending, *rest],
            "notices": notices,
        }

    @property
    def scan(self) -> Scan:
        """The one that is open; raises Refused."""
        if self._scan is None:
            raise Refused("expected a scan: open one first")
        return self._scan

    def volume(self) -> bytes:
        """The volume's voxels, little-endian, as `Shown` has them."""
        assert self.scan is not None and self._shown is not None
        return self._shown.stored.tobytes()

    def take_labels(self, name: Any, content: bytes) -> tuple[np.ndarray, list[int]]:
        """Labels to correct, as a file -> (D, H, W) uint8, and which there are.

        Raises:
            Refused: They do not fit the scan.
            ValueError, OSError, RuntimeError: It can't be read.
        """
        if not isinstance(name, str):
            raise Refused(f"expected a name, got {str(name)[:80]}")
        scan = self.scan
        with tempfile.TemporaryDirectory(prefix="labels-") as folder:
            path = Path(folder, safe_name(name))
            path.write_bytes(content)
            if path.suffix.lower() == NPZ:
                if self._ending != NPZ:
                    raise Refused(
                        f"{path.name}: expected labels as an image, which says where it lies"
                    )
                labels = read_segs(path, scan.case.shape)
            else:
                values = read_labels(path, scan.turned.image(), scan.case.name)
                labels = values.astype(np.uint8)
                if (labels != values).any():
                    raise Refused(f"{path.name}: expected labels 0 to {MAX_OBJECTS}")
        self._labels = labels
        self._known.clear()
        return labels, np.flatnonzero(np.bincount(labels.ravel(), minlength=256))[1:].tolist()

    def segment(self, entry: Any) -> Prediction:
        """Segment an object by its prompts, as a JSON file has them, in voxels of the case.

        Raises:
            Refused: They do not fit the scan or the network.
        """
        scan = self.scan
        try:
            raw = parse_object(entry, "the object")
            if len(raw.clicks) + len(raw.drawings) > MAX_PROMPTS:
                raise Refused(
                    f"expected at most {MAX_PROMPTS} prompts of an object: begin a new one"
                )
            prompts = place(raw, 1, "voxel", scan.turned, scan.turned, [])
        except ValueError as error:
            raise Refused(str(error)) from error
        if prompts.drawings and not self.predictor.settings.drawings:
            raise Refused("expected boxes of whole objects and clicks: the network takes no other")
        initial = None if raw.initial is None else self._initial(raw.initial)
        steps = prompts.steps(MAX_STEPS)
        if not steps:
            if initial is None:
                raise Refused("expected a prompt: a box, a click, a scribble or a lasso")
            return next(self.predictor.segment([ObjectRequest(prompts, initial)]))
        # Of more prompts the last ones begin anew, as in infer.py: they follow from no others.
        is_whole = prompts.count <= MAX_STEPS
        keys = [(raw.initial, *_key(step)) for step in steps]
        known = 0
        if is_whole:
            known = next((i for i in range(len(keys), 0, -1) if keys[i - 1] in self._known), 0)
        mask, prediction = initial, None
        if known:
            self._known.move_to_end(keys[known - 1])
            prediction = self._known[keys[known - 1]]
            mask = prediction.kept
        for key, step in zip(keys[known:], steps[known:], strict=True):
            if self._is_closed:
                raise Refused(CLOSED)
            (prediction,) = self.predictor.segment([ObjectRequest(step, mask)])
            if is_whole:
                self._remember(key, prediction)
            mask = prediction.kept
        assert prediction is not None
        self._last = ObjectRequest(steps[-1], mask)
        return prediction

    def prepare(self) -> None:
        """Do ahead what the next click on the object segmented last is likely to need."""
        last, self._last = self._last, None
        if last is not None and self._scan is not None:
            self.predictor.prepare(last)

    def suggest(self, entry: Any) -> Index3 | None:
        """The voxel (z, y, x) to look at next of an object with these prompts; raises Refused."""
        return suggest_click(self.segment(entry))

    def save(self, entries: Any, ending: Any) -> tuple[str, bytes]:
        """The labels of objects as a file -> its name and content; object i has label i.

        A voxel of several is the first one's, as in infer.py with an overlap of that name.

        Raises:
            Refused: There are none, or too many, or the format is not for this scan.
            OSError: The format can't hold the scan's grid.
        """
        scan = self.scan
        endings = (NPZ,) if self._ending == NPZ else SCAN_ENDINGS
        if ending not in endings:
            raise Refused(f"expected one of {', '.join(endings)}, got {str(ending)[:80]}")
        if not isinstance(entries, list) or not 0 < len(entries) <= MAX_OBJECTS:
            raise Refused(f"expected 1 to {MAX_OBJECTS} objects")
        canvas = Canvas(scan.case.shape, "first")
        for label, entry in enumerate(entries, 1):
            canvas.paint(label, self.segment(entry))
        name = self._stem + ending
        with tempfile.TemporaryDirectory(prefix="labels-") as folder:
            path = Path(folder, f"labels{ending}")
            if ending == NPZ:
                write_case(path, canvas.seg)
            else:
                write_labels(path, canvas.seg, scan)
            return name, path.read_bytes()

    def _initial(self, label: int) -> Mask:
        inside = None if self._labels is None else self._labels == label
        bounds = None if inside is None else bounds_of(inside)
        if inside is None or bounds is None:
            raise Refused(f"expected a label of a file that was sent, got {label}")
        z, y, x = (slice(int(a), int(b)) for a, b in bounds.T)
        return Mask((z, y, x), inside[z, y, x].copy())

    def _remember(self, key: tuple, prediction: Prediction) -> None:
        self._known[key] = prediction
        size = sum(each.region_logits.nbytes for each in self._known.values())
        while size > REMEMBERED and len(self._known) > 1:
            _, oldest = self._known.popitem(last=False)
            size -= oldest.region_logits.nbytes


def _key(prompts: Prompts) -> tuple:
    """What tells prompts apart; drawings are arrays."""
    drawn = (
        (each.start, each.inside.shape, each.inside.tobytes(), each.is_region, each.is_foreground)
        for each in prompts.drawings
    )
    order = tuple(each.after for each in prompts.drawings)
    return prompts.box, prompts.clicks, order, *drawn


def safe_name(name: str) -> str:
    """A file's name without folders and characters that mean something else somewhere."""
    plain = re.sub(r"[^\w. -]", "_", re.split(r"[/\\]", name)[-1]).lstrip(".")
    return plain.encode(errors="replace")[-MAX_NAME:].decode(errors="ignore") or "scan"


def sent_image(prediction: Prediction) -> tuple[dict[str, Any], bytes]:
    """A prediction as the browser gets it: what it is, and 0 or 1 for each voxel of its box."""
    mask = prediction.kept
    bounds = bounds_of(mask.inside)
    if bounds is None:
        return {"bbox": None, "doubtful": False, "voxels": 0}, b""
    part = tuple(slice(int(a), int(b)) for a, b in bounds.T)
    inside = mask.inside[part]
    low = [own.start + region.start for own, region in zip(part, mask.region, strict=True)]
    box = [[a, a + side] for a, side in zip(low, inside.shape, strict=True)]
    meta = {"bbox": box, "doubtful": prediction.is_doubtful, "voxels": int(inside.sum())}
    return meta, inside.astype(np.uint8).tobytes()
