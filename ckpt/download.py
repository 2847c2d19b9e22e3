"""Fetch a published SAM-Med3D checkpoint (402 MB) from Hugging Face into this folder.

    python ckpt/download.py sam_med3d_turbo_cvpr_coreset

An interrupted download goes on where it stopped; a file appears under its name only when it is
complete and its sha256 is right. A mirror can be named in the variable HF_ENDPOINT.
"""

import argparse
import hashlib
import os
import re
import sys
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.file_download import http_get

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils.inference.published import FORMER_NAMES, PUBLISHED, REPO_ID  # noqa: E402


class DownloadError(RuntimeError):
    """The file could not be fetched; the message says what to do."""


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(name: str, folder: Path) -> Path:
    """Fetch the published file `name` into `folder`, unless it is there.

    Raises:
        DownloadError: The server can't be reached, has no such file, or sent something else.
        OSError: The folder can't be written.
    """
    target = folder / name
    if target.exists():
        return target
    try:
        url = hf_hub_url(REPO_ID, name)
        remote = get_hf_file_metadata(url)
        etag = re.sub(r"\W", "", remote.etag or "unknown")
        part = folder / f".{name}.{etag}.part"  # this version of the file, as far as it came
        with open(part, "ab") as file:
            http_get(  # it resumes; hf_hub_download starts over since version 1
                remote.location,
                file,
                resume_size=file.tell(),
                expected_size=remote.size,
                displayed_filename=name,
            )
            file.flush()
            os.fsync(file.fileno())
    except HfHubHTTPError as error:
        raise DownloadError(f"{name}: the server refused it: {error}") from error
    except HTTPError as error:
        raise DownloadError(
            f"{name}: can't reach {url} ({error or type(error).__name__}). Without access to it, "
            f"set HF_ENDPOINT to a mirror, or fetch the file elsewhere and put it into {folder}; "
            "what has arrived is kept, and the same command goes on from there"
        ) from error

    # Hugging Face's etag of a large file is its sha256.
    known = {PUBLISHED[name], etag if re.fullmatch("[0-9a-f]{64}", etag) else None} - {None}
    actual = sha256_of(part)
    if known - {actual}:
        part.unlink()
        raise DownloadError(
            f"{name}: expected sha256 {' and '.join(map(str, known))}, got {actual}"
        )
    os.replace(part, target)
    return target


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(name.removesuffix(".pth") for name in PUBLISHED)
    former = ", ".join(name.removesuffix(".pth") for name in FORMER_NAMES)
    parser.add_argument(
        "name", help=f"one of: {names}; or a former name: {former}; with or without .pth"
    )
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "ckpt", help="where to put it; default: ckpt/"
    )
    return parser


def main(args: argparse.Namespace) -> int:
    given = f"{args.name.removesuffix('.pth')}.pth"
    name = FORMER_NAMES.get(given, given)
    if name not in PUBLISHED:
        print(f"expected one of {', '.join(PUBLISHED)}, got {name}", file=sys.stderr)
        return 2
    if name != given:
        print(f"{given} is published as {name} now, which is fetched", flush=True)
    try:
        args.folder.mkdir(parents=True, exist_ok=True)
        path = download(name, args.folder)
    except (DownloadError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(get_args_parser().parse_args()))
