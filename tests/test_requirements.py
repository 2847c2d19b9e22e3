"""What the code imports is what the requirements list."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from conftest import ROOT

FOLDERS = ("segment_anything", "utils", "ckpt", "data")
SERVING = ("utils/serving", "serve.py")  # what predict.sh and train.sh can do without
SCRIPTS = tuple(path.name for path in ROOT.glob("*.py"))
# What bench/ and tests/ import from beside them, too.
OURS = {*FOLDERS, "bench"} | {Path(name).stem for name in SCRIPTS}
OURS |= {path.stem for folder in ("bench", "tests") for path in (ROOT / folder).rglob("*.py")}


def listed(name: str) -> set[str]:
    """The packages in a file of requirements and in those that it includes, in lower case."""
    found = set()
    for line in (ROOT / name).read_text().splitlines():
        if line.startswith("-r "):
            found |= listed(line[3:].strip())
        elif package := re.match(r"[\w.-]+", line):
            found.add(package[0].lower().replace("_", "-"))
    return found


def imported(path: Path) -> set[str]:
    """The top-level modules that a file imports anywhere, but for ours and Python's own."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found - OURS - set(sys.stdlib_module_names)


def is_serving(path: Path) -> bool:
    return any(path.is_relative_to(ROOT / place) for place in SERVING)


@pytest.mark.parametrize(
    "requirements, places",
    [
        ("requirements.txt", (*FOLDERS, *SCRIPTS)),
        ("requirements-serve.txt", SERVING),
        ("requirements-dev.txt", ("bench", "tests")),
    ],
)
def test_what_is_imported_is_listed(requirements, places):
    allowed, sources = listed(requirements), packages_distributions()
    for place in (ROOT / name for name in places):
        for path in place.rglob("*.py") if place.is_dir() else [place]:
            if requirements == "requirements.txt" and is_serving(path):
                continue
            for module in imported(path):
                packages = {p.lower().replace("_", "-") for p in sources.get(module, [module])}
                assert packages & allowed, f"{path.relative_to(ROOT)} imports {module}"
