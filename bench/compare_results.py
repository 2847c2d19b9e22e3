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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.evaluation.metrics import auc
from utils.evaluation.report.results import Result, read_result


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


def group_cases(results: dict[str, Result]) -> dict[str, list[str]]:
    """The names of the cases by what the rows of the table are about, in sorted order each."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(results):
        result = results[name]
        boxes = "with" if result.has_boxes else "without"
        groups[f"all {boxes} boxes"].append(name)
        groups[f"{result.modality} {boxes} boxes"].append(name)
        groups[result.dataset].append(name)
    # One row for equal ones, as those of a modality with one dataset: the last one.
    rows = {tuple(names): group for group, names in groups.items()}
    return {group: list(names) for names, group in rows.items()}


def print_scores(results: dict[Path, dict[str, Result]], groups: dict[str, list[str]]) -> None:
    print("| cases | | method | DSC_AUC | box | 1 | 2 | 3 | 4 | 5 |\n" + "|---" * 10 + "|")
    for group, names in groups.items():
        first = f"{group} | {len(names)}"
        for folder, found in results.items():
            curves = np.array([found[name].curve("DSC") for name in names])
            cells = [f"{value:.3f}" for value in curves.mean(axis=0)]
            if not found[names[0]].has_boxes:
                cells[0] = "–"
            area = np.mean([auc(curve) for curve in curves])
            print(f"| {first} | {folder.name} | **{area:.3f}** | " + " | ".join(cells) + " |")
            first = " | "


def print_clicks(results: dict[Path, dict[str, Result]]) -> None:
    print("\n| clicks whose voxel became what was asked | foreground | background |\n|---|---|---|")
    for folder, found in results.items():
        rates: dict[int, list[bool]] = {0: [], 1: []}
        for name in sorted(found):
            for kind, values in obeyed(folder, found[name]).items():
                rates[kind] += values
        shown = (f"{np.mean(rates[k]):.1%} of {len(rates[k])}" if rates[k] else "–" for k in (1, 0))
        print(f"| {folder.name} | {' | '.join(shown)} |")


def compare(folders: list[Path]) -> None:
    """Print the tables.

    Raises:
        OSError, ValueError: Folders can't be read, or compared.
    """
    results = {folder: read_folder(folder) for folder in folders}
    first = results[folders[0]]
    for others in results.values():
        if odd := ", ".join(sorted(first.keys() ^ others.keys())):
            raise ValueError(f"expected results of the same cases, got only some of: {odd}")
    print_scores(results, group_cases(first))
    print_clicks(results)


def main(args: argparse.Namespace) -> int:
    """Returns the exit status: 0, or 2 if nothing can be compared."""
    try:
        compare(args.folders)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(get_args_parser().parse_args()))
