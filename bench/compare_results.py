"""Folders of evaluate.py, one below the other: DSC by dataset and round, and the clicks obeyed.

    python bench/compare_results.py results/baseline results/adaptive

All must be of the same cases; the predictions of all rounds (--save all) tell what the clicked
voxels became. Prints tables in Markdown.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils.evaluation.metrics import auc  # noqa: E402
from utils.evaluation.report.results import Result, read_result  # noqa: E402


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="outputs of evaluate.py")
    return parser


def read_folder(folder: Path) -> dict[str, Result]:
    """The results by the names of their cases.

    Raises:
        ValueError: There are none.
    """
    results = [read_result(path) for path in sorted(folder.rglob("records/**/*.npz"))]
    found = {result.name: result for result in results if result is not None}
    if not found:
        raise ValueError(f"{folder}: expected results of evaluate.py, got none")
    return found


def obeyed(folder: Path, result: Result) -> dict[int, list[bool]]:
    """For clicks of each kind (1 foreground, 0 background): did the voxel become what was asked?"""
    with np.load(folder / "segs" / result.name) as file:
        if "all_segs" not in file:
            raise ValueError(f"{folder}: expected the predictions of all rounds (--save all)")
        segs = file["all_segs"]
    rates: dict[int, list[bool]] = {0: [], 1: []}
    first = 0 if result.has_boxes else 1
    for index in range(1, len(result.clicks)):
        for label, (kind, z, y, x) in enumerate(result.clicks[index].tolist(), 1):
            if kind >= 0:
                rates[kind].append((segs[index - first][z, y, x] == label) == (kind == 1))
    return rates


def main(args: argparse.Namespace) -> int:
    try:
        compare(args.folders)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def compare(folders: list[Path]) -> None:
    ours = [read_folder(folder) for folder in folders]
    names = sorted(ours[0])
    for results in ours[1:]:
        if odd := ", ".join(sorted(ours[0].keys() ^ results.keys())):
            raise ValueError(f"expected results of the same cases, got only some of: {odd}")
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        result = ours[0][name]
        boxes = "with" if result.has_boxes else "without"
        groups[f"all {boxes} boxes"].append(name)
        groups[f"{result.modality} {boxes} boxes"].append(name)
        groups[result.dataset].append(name)
    # Of equal rows, as those of a modality with one dataset, the last one.
    rows = {tuple(members): group for group, members in groups.items()}
    labels = [folder.name for folder in folders]
    print("| cases | | method | DSC_AUC | box | 1 | 2 | 3 | 4 | 5 |\n" + "|---" * 10 + "|")
    for members, group in rows.items():
        first = f"{group} | {len(members)}"
        for results, label in zip(ours, labels, strict=True):
            curves = np.array([results[name].curve("DSC") for name in members])
            cells = [f"{value:.3f}" for value in curves.mean(axis=0)]
            if not results[members[0]].has_boxes:
                cells[0] = "–"
            area = np.mean([auc(curve) for curve in curves])
            print(f"| {first} | {label} | **{area:.3f}** | " + " | ".join(cells) + " |")
            first = " | "
    print("\n| clicks whose voxel became what was asked | foreground | background |\n|---|---|---|")
    for folder, results, label in zip(folders, ours, labels, strict=True):
        rates: dict[int, list[bool]] = {0: [], 1: []}
        for name in names:
            for kind, values in obeyed(folder, results[name]).items():
                rates[kind] += values
        shown = " | ".join(f"{np.mean(rates[k]):.1%} of {len(rates[k])}" for k in (1, 0))
        print(f"| {label} | {shown} |")


if __name__ == "__main__":
    sys.exit(main(get_args_parser().parse_args()))
