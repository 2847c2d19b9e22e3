"""Read many broken and malicious .npz files: none may crash, hang, run code or take much memory.

    python bench/fuzz_reader.py --files 200000

A memory limit for the process turns any large allocation into a failure.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests"))

from fuzzing import MAX_GROWTH_GB, MAX_SECONDS, Watch, check_file, files  # noqa: E402
from utils.runtime.memory import peak_gb  # noqa: E402

CHUNK = 500  # examples of a seed; each is some 20 files


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(args: argparse.Namespace) -> None:
    watch, outcomes, before = Watch(), [], peak_gb()
    usage = Path("/proc/self/statm").read_text().split()
    limit = int(usage[0]) * resource.getpagesize() + int(5 * 2**30)  # an array has 4 GiB at most
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    start, slowest, chunk = time.perf_counter(), 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzzed.npz"
        while len(outcomes) < args.files:

            @seed(args.seed + chunk)
            @settings(
                max_examples=CHUNK,
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
