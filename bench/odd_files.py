"""Odd files that packages ship for their tests, through infer.py: read as their packages read them?

    python bench/odd_files.py SITE-PACKAGES/pydicom SITE-PACKAGES/nibabel

Files of DICOM are tried alone and, where a folder holds a whole series, together; NIfTI as they
are. A click in the middle is the prompt. Labels of NIfTI must have nibabel's affine, those of DICOM
the place that pydicom's header gives; values are compared with those of the same packages. What
differs, crashes or takes more than a minute is a FAULT.
"""

import argparse
import contextlib
import io
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import infer
from bench.common import print_header, print_row
from utils.formats.image_header import is_dicom
from utils.formats.images import is_nifti, read_image

SECONDS = 60  # that a file may take
FEWEST = 3  # files of DICOM in a folder that may be a series


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="searched with all that is below")
    return parser


def odd_files(folders: list[Path]) -> Iterator[Path]:
    """NIfTI files, DICOM files, and folders of several of these, in the order of their names."""
    seen: dict[Path, int] = {}
    for path in sorted({path for folder in folders for path in folder.rglob("*")}):
        if not path.is_file() or path.suffix in (".py", ".pyc"):
            continue
        if is_nifti(path):
            yield path
        elif is_dicom(path):
            seen[path.parent] = seen.get(path.parent, 0) + 1
            yield path
    yield from (folder for folder, count in seen.items() if count >= FEWEST)


def reference(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Values (z, y, x) and the affine (x, y, z) -> RAS, as nibabel or pydicom has them."""
    if is_nifti(path):
        image = cast(nibabel.Nifti1Image, nibabel.load(path))
        return np.asanyarray(image.dataobj).T.squeeze(), image.affine
    files = [p for p in (path.iterdir() if path.is_dir() else [path]) if p.is_file()]
    parts = [pydicom.dcmread(p, force=True) for p in files if is_dicom(p)]
    parts = [part for part in parts if "PixelData" in part]
    if len(parts) == 1 and int(parts[0].get("NumberOfFrames") or 1) > 1:
        return enhanced(parts[0])
    normal = np.cross(*np.reshape(parts[0].ImageOrientationPatient, (2, 3)))
    parts.sort(key=lambda part: float(normal @ part.ImagePositionPatient))
    values = np.array(
        [
            part.pixel_array * float(part.get("RescaleSlope") or 1)
            + float(part.get("RescaleIntercept") or 0)
            for part in parts
        ]
    )
    first, last = (np.array(part.ImagePositionPatient, float) for part in (parts[0], parts[-1]))
    step = (last - first) / max(len(parts) - 1, 1)
    if len(parts) == 1:
        thickness = parts[0].get("SpacingBetweenSlices") or parts[0].get("SliceThickness")
        step = normal * float(thickness)
    return values, affine(parts[0].ImageOrientationPatient, parts[0].PixelSpacing, first, step)


def enhanced(part: pydicom.Dataset) -> tuple[np.ndarray, np.ndarray]:
    frames = part.PerFrameFunctionalGroupsSequence
    shared = part.SharedFunctionalGroupsSequence[0]

    def of(frame: pydicom.Dataset, name: str) -> pydicom.Dataset:
        return (frame.get(name) or shared.get(name))[0]

    rows = of(frames[0], "PlaneOrientationSequence").ImageOrientationPatient
    places = np.array([of(f, "PlanePositionSequence").ImagePositionPatient for f in frames], float)
    order = np.argsort(places @ np.cross(*np.reshape(rows, (2, 3))))
    scales = [
        (float(s.RescaleSlope), float(s.RescaleIntercept)) if s else (1.0, 0.0)
        for s in (
            (
                f.get("PixelValueTransformationSequence")
                or shared.get("PixelValueTransformationSequence")
                or [None]
            )[0]
            for f in frames
        )
    ]
    values = np.array(
        [plane * a + b for plane, (a, b) in zip(part.pixel_array, scales, strict=True)]
    )
    spacing = of(frames[0], "PixelMeasuresSequence").PixelSpacing
    step = (places[order[-1]] - places[order[0]]) / (len(frames) - 1)
    return values[order], affine(rows, spacing, places[order[0]], step)


def affine(rows: list, spacing: list, first: np.ndarray, step: np.ndarray) -> np.ndarray:
    across, down = np.reshape(rows, (2, 3)).astype(float)
    lps = np.eye(4)
    lps[:3] = np.column_stack([across * float(spacing[1]), down * float(spacing[0]), step, first])
    return np.diag([-1.0, -1, 1, 1]) @ lps


def compare(path: Path, labels: Path) -> str:
    """ "read", or what differs from the packages' own reading."""
    found = sitk.GetArrayFromImage(read_image(path))
    try:
        values, expected = reference(path)
    except RuntimeError as error:  # pydicom leaves some compressions to packages beside it
        if "plugins are missing" not in str(error):
            raise
        return "read: pydicom by itself can't unpack its values, so nothing is compared"
    if found.shape != values.shape:
        return f"FAULT: shape {found.shape}, expected {values.shape}"
    if not np.allclose(found, values, rtol=1e-4, atol=1e-4 * np.abs(values).max()):
        return f"FAULT: values differ by up to {np.abs(found - values).max():g}"
    given = cast(nibabel.Nifti1Image, nibabel.load(labels))
    corners = np.array([[0, 0, 0, 1], [*(np.array(given.shape) - 1), 1]])
    apart = np.abs((given.affine - expected) @ corners.T)[:3].max()
    if apart > 0.3 * np.linalg.norm(expected[:3, 2]) or given.shape != values.shape[::-1]:
        return f"FAULT: labels lie {apart:g} mm beside it"
    size = " x ".join(map(str, values.shape))
    return f"read: {size}, labels {apart:.1g} mm off at most"


def outcome(path: Path, folder: Path) -> str:
    """What infer.py made of a file."""

    def too_long(*_) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    output = io.StringIO()
    try:
        name = path.name if path.is_dir() or is_nifti(path) else f"{path.name}.d"
        given = folder / name
        given.symlink_to(path) if name == path.name else given.mkdir()
        if name != path.name:
            (given / path.name).symlink_to(path)
        options = ["--inputs", str(given), "--outputs", str(folder / "out"), "--object"]
        options += ["--output-format", "nii.gz", "--click", middle(given)]
        args = infer.get_args_parser().parse_args(infer.join_negative(options))
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            status = infer.main(args)
        lines = [
            line for line in output.getvalue().splitlines() if name in line or "no cases" in line
        ]
        if status:
            every = output.getvalue().splitlines()
            failed = [line for line in every if "FAILED" in line or "no cases" in line]
            reason = (failed or [f"FAULT: exit status {status}"])[0]
            return "refused: " + reason.removeprefix(f"FAILED {name}: ")[:110]
        (labels,) = (folder / "out").glob("*.nii.gz")
        notices = [line.split(": ", 1)[1] for line in lines if "objects 1" not in line]
        return "; ".join([compare(given, labels), *notices])
    except Exception as error:  # whatever happens is what is looked for
        return f"FAULT: {type(error).__name__}: {error}"[:200]
    finally:
        signal.alarm(0)


def middle(path: Path) -> str:
    """A click there, on what can be read; else anywhere."""
    try:
        size = read_image(path).GetSize()
    except ValueError:
        size = (2, 2, 2)
    return ",".join(str(n // 2) for n in size[::-1]) + ",1"


def main(args: argparse.Namespace) -> int:
    """Returns the exit status, 1 if there is a fault."""
    warnings.simplefilter("ignore")
    faults = 0
    print_header("file", "outcome")
    for path in odd_files([folder.resolve() for folder in args.folders]):
        with tempfile.TemporaryDirectory() as folder:
            found = outcome(path, Path(folder))
        faults += "FAULT" in found
        place = f"{path.parent.name}/{path.name}" + ("/" if path.is_dir() else "")
        print_row(place, found.replace("|", "/"))
    print(f"\n{faults} faults")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main(get_args_parser().parse_args()))
