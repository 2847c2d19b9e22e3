"""The folder of an evaluation: what it belongs to, and what is finished in it."""

import json
from pathlib import Path
from typing import Any

from utils.evaluation.report.results import Result, read_result, read_slices, write_result
from utils.evaluation.report.slices import ObjectSlices
from utils.formats.atomic import atomic_write


class Folder:
    """The outputs of an evaluation.

        run.json             what the results depend on
        records/NAME.npz     a finished case
        records/NAME.failed  why one could not be evaluated
        segs/, logs/         predictions; what a command printed

    NAME is the path of the case below the folder of cases.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self, settings: dict[str, Any], about: dict[str, str], restart: bool) -> None:
        """Make the folder, or find out now that it can't be used.

        Raises:
            OSError: It can't be made or written.
            ValueError: It holds results of other settings.
        """
        kept = self.path / "run.json"
        self.path.mkdir(parents=True, exist_ok=True)
        if restart:
            for record in [*self.path.glob("records/**/*.npz"), kept]:
                record.unlink(missing_ok=True)
        if kept.is_file():
            before = json.loads(kept.read_text())["settings"]
            for key in sorted(settings.keys() | before.keys()):
                if settings.get(key) != before.get(key):
                    raise ValueError(
                        f"--outputs {self.path} holds results of another {key}: "
                        f"{before.get(key)}, now it is {settings.get(key)}; give another folder, "
                        f"or --restart to drop them"
                    )
        with atomic_write(kept) as file:
            file.write(json.dumps({"settings": settings, "about": about}, indent=1).encode())

    def run(self) -> dict[str, Any]:
        """Settings, and what else there is to say about the run."""
        run = json.loads((self.path / "run.json").read_text())
        return {**run["settings"], **run["about"]}

    def finished(self, name: str, fingerprint: str | None = None) -> Result | None:
        """The result of a case, if there is one, and of these contents."""
        return read_result(self._record(name), fingerprint)

    def slices(self, name: str) -> ObjectSlices:
        """Slices of a finished case."""
        return read_slices(self._record(name))

    def finish(self, result: Result, slices: ObjectSlices, fingerprint: str) -> None:
        """Keep the result of a case."""
        self._failure(result.name).unlink(missing_ok=True)
        write_result(self._record(result.name), result, slices, fingerprint)

    def fail(self, name: str, reason: str) -> None:
        """Keep why a case could not be evaluated."""
        self._record(name).unlink(missing_ok=True)
        path = self._failure(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(reason)

    def why_failed(self, name: str) -> str:
        path = self._failure(name)
        return path.read_text() if path.is_file() else "its process did not finish it"

    def segs(self, name: str) -> Path:
        return self.path / "segs" / name

    def log(self, name: str) -> Path:
        path = self.path / "logs" / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _record(self, name: str) -> Path:
        return self.path / "records" / name

    def _failure(self, name: str) -> Path:
        return self.path / "records" / f"{name}.failed"
