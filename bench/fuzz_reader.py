"""Read many broken and malicious .npz files: none may crash, hang, run code or take much memory.

    python bench/fuzz_reader.py --files 200000

A memory limit for the process turns any large allocation into a failure.
"""

import argparse
import math
import resource
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fuzzing import MAX_GROWTH_GB, MAX_SECONDS, VARIANTS, Watch, check_file, files
from utils.runtime.memory import peak_gb

MAX_EXAMPLES = 500  # of one seed; each is 1 + VARIANTS files


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=200_000, help="at least as many are read")
    parser.add_argument("--seed", type=int, default=0, help="other files for another one")
    return parser


def main(args: argparse.Namespace) -> None:
    watch, before = Watch(), peak_gb()
    outcomes: list[bool] = []  # whether each file was a case
    usage = Path("/proc/self/statm").read_text().split()
    limit = int(usage[0]) * resource.getpagesize() + int(5 * 2**30)  # an array has 4 GiB at most
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    start, slowest, chunk = time.perf_counter(), 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzzed.npz"
        while (left := args.files - len(outcomes)) > 0:

            @seed(args.seed + chunk)
            @settings(
                max_examples=min(MAX_EXAMPLES, math.ceil(left / (1 + VARIANTS))),
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(files())
            def try_some(contents: list[bytes]) -> None:
                nonlocal slowest
                for content in contents:
                    begin = time.perf_counter()
                    outcomes.append(check_file(path, content, watch))
                    slowest = max(slowest, time.perf_counter() - begin)

            try_some()
            chunk += 1
    growth = peak_gb() - before
    assert growth < MAX_GROWTH_GB, f"{growth:.2f} GB"
    print(
        f"{len(outcomes)} files in {time.perf_counter() - start:.0f} s: {sum(outcomes)} read, "
        f"{len(outcomes) - sum(outcomes)} refused, none did harm; slowest {slowest:.2f} s "
        f"(limit {MAX_SECONDS:g}), memory grew by {growth:.2f} GB"
    )


if __name__ == "__main__":
    main(get_args_parser().parse_args())
