"""Serve the network: to a page in the browser, and to 3D Slicer, napari and MITK.

    python serve.py
    python serve.py scan.nii.gz
    python serve.py --host 0.0.0.0 --window abdomen

Prints the page's address, and the key that the viewers' nnInteractive extensions ask for. By
default only programs of this machine reach it; docs/interactive.md has the steps.
"""

import argparse
import math
import secrets
import signal
import sys
from pathlib import Path
from types import FrameType
from urllib.parse import quote

from segment_anything import __version__
from utils.formats.intensity import CT_WINDOWS, parse_window
from utils.inference.published import SMALL
from utils.options import int_from

SAMPLE = Path(__file__).resolve().parent / "inputs" / "MR_Brain_colin27.npz"
SPARE = (
    60.0  # seconds after which a page that is not used makes room; its prompts are in the browser
)
EVERYWHERE = ("0.0.0.0", "::")  # addresses to listen on that are no names


def positive(text: str) -> float:
    """A number above 0, and not infinite."""
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return float(text)


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"SAM-Med3D {__version__}")
    parser.add_argument(
        "scan",
        type=Path,
        nargs="?",
        help="that the page opens: a file that infer.py takes, or the folder of a DICOM series; "
        "default: the sample case of a brain",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int_from(0, 65535), default=1527, help="0: any that is free")
    parser.add_argument(
        "--allow-host",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names or addresses, beside those of this machine, by which clients may call it",
    )
    parser.add_argument("--api-key", help="that clients must show; default: a new one, printed")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=Path(__file__).resolve().with_name("ckpt") / SMALL,
        help=f"default: ckpt/{SMALL}, which takes whatever people draw in viewers",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument(
        "--window",
        help=f"of CT: {', '.join(CT_WINDOWS)} or LEVEL,WIDTH in HU; default: abdomen for what "
        "looks like HU, percentiles for all else",
    )
    parser.add_argument("--max-sessions", type=int_from(1, 1000), default=4)
    parser.add_argument("--idle-timeout", type=positive, default=600, help="seconds, of the user")
    parser.add_argument("--liveness-timeout", type=positive, default=60, help="s, of the client")
    parser.add_argument("--max-gb", type=positive, default=4, help="of an image, unpacked")
    return parser


def main(args: argparse.Namespace) -> int:
    """Returns the exit status: 0 after SIGTERM or Ctrl-C, 2 if it can't begin."""
    import uvicorn

    from utils.inference.checkpoint import adaptive_settings, build_model, read_checkpoint
    from utils.inference.load import checkpoint_path
    from utils.runtime.device import choose_device
    from utils.serving.app import Server
    from utils.serving.browser import Page
    from utils.serving.gate import Gate
    from utils.serving.leases import Leases
    from utils.serving.session import Session
    from utils.serving.workspace import Workspace

    given = args.scan or (SAMPLE if SAMPLE.is_file() else None)
    try:
        if given is not None and not given.exists():
            raise FileNotFoundError(f"{given}: no such file or folder")
        window = parse_window(args.window) if args.window else None
        checkpoint = read_checkpoint(checkpoint_path(args))
        settings = adaptive_settings(checkpoint)
        model = build_model(checkpoint).to(choose_device(args.device))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    max_bytes = int(args.max_gb * 2**30)
    leases = Leases(
        lambda: Session(model, settings, args.precision, window),
        args.max_sessions,
        args.idle_timeout,
        args.liveness_timeout,
    )
    key = args.api_key if args.api_key is not None else secrets.token_urlsafe(18)
    hosts = (args.host, *args.allow_host) if args.host not in EVERYWHERE else args.allow_host

    def log(line: str) -> None:
        print(line, flush=True)

    server = Server(
        leases,
        key,
        max_bytes,
        tuple(hosts),
        log,
        draws=settings.drawings,
        size=model.img_size,
        licence="Apache-2.0" if checkpoint.path.name == SMALL else "",
    )
    workspaces = Leases(
        lambda: Workspace(model, settings, args.precision, given, max_bytes, args.window),
        args.max_sessions,
        args.idle_timeout,
        args.idle_timeout,  # browsers let pages sleep that are not looked at
        SPARE,
    )
    page = Page(
        Gate(workspaces, key, max_bytes, tuple(hosts), log),
        server.network,
        checkpoint.path.stem,
        settings.drawings,
        given.name if given else None,
    )
    config = uvicorn.Config(
        server.app(page), args.host, args.port, log_level="critical", timeout_graceful_shutdown=10
    )

    class Announced(uvicorn.Server):
        """Says where it is once it is there."""

        async def startup(self, sockets: list | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                port = self.servers[0].sockets[0].getsockname()[1]
                name = "127.0.0.1" if args.host in EVERYWHERE else args.host
                name = f"[{name}]" if ":" in name else name
                print(f"{checkpoint.path.name} on {model.device}")
                print(f"in a browser: http://{name}:{port}/#key={quote(key)}")
                print(f"http://{name}:{port} key {key or '(none)'}", flush=True)

        def handle_exit(self, number: int, frame: FrameType | None) -> None:
            self.force_exit = self.should_exit  # the second time
            self.should_exit = True
            leases.release_all()  # which stops what is worked on
            workspaces.release_all()

    serving = Announced(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, serving.handle_exit)
    try:
        serving.run()
    except SystemExit:  # uvicorn's, after it has logged why
        pass
    if not serving.started:
        print(f"--host {args.host} --port {args.port}: can't be listened on", file=sys.stderr)
    return 0 if serving.started else 2


if __name__ == "__main__":
    sys.exit(main(get_args_parser().parse_args()))
