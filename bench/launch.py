"""Run a Python script; print its seconds from start to exit, and its peak of resident memory in GB.

    python bench/launch.py -- infer.py --inputs inputs

A small process does this for the benchmarks, since the peak that the kernel reports for a process
begins with the memory of the one that started it.
"""

import argparse
import os
import subprocess
import sys
import time


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="+", help="what follows `python`: a script, its options")
    return parser


def main(args: argparse.Namespace) -> int:
    """Returns the exit status of the script, 1 if a signal ended it."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *args.command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen is not to wait, too
    print(seconds, usage.ru_maxrss / 2**20)
    return process.returncode if process.returncode >= 0 else 1


if __name__ == "__main__":
    sys.exit(main(get_args_parser().parse_args()))
