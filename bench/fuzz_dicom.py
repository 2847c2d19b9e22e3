"""Read many broken DICOM series: each has pydicom's geometry and values, or is refused.

python bench/fuzz_dicom.py --series 20000
"""

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from dicom_fuzzing import check_variant, write_variant

SHOWN = 12  # reasons for a refusal


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--series", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first one")
    return parser


def main(args: argparse.Namespace) -> None:
    start, slowest = time.perf_counter(), 0.0
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        for number in range(args.seed, args.seed + args.series):
            folder = Path(name) / "series"
            write_variant(folder, number)
            begin = time.perf_counter()
            try:
                outcome = check_variant(folder)
            except Exception as error:
                raise RuntimeError(f"series {number}: {error}") from error
            slowest = max(slowest, time.perf_counter() - begin)
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
            reason = re.sub(r"[-\d.]+(e[-+]?\d+)?|\[.*\]", "#", outcome)[:70]
            outcomes[reason] += 1
    print(
        f"{args.series} series in {time.perf_counter() - start:.0f} s: {outcomes['read']} read as "
        f"pydicom reads them, {args.series - outcomes['read']} refused; slowest {slowest:.2f} s\n"
    )
    print("| refused since | series |\n|---|---|")
    for reason, count in [c for c in outcomes.most_common() if c[0] != "read"][:SHOWN]:
        print(f"| {reason} | {count} |")


if __name__ == "__main__":
    main(get_args_parser().parse_args())
