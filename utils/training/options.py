"""The options of train.py."""

import argparse
from pathlib import Path
from typing import Any

from utils.data_paths import img_datas
from utils.options import int_from
from utils.training.optimizer import OPTIMIZERS, SCHEDULERS

MAX_FACTOR = 1000  # by which a data set is seen more often
ARTEFACTS = 0.08  # of the samples

ROOT = Path(__file__).resolve().parents[2]


def path_if_any(text: str) -> Path | None:
    """None for an empty text, which as a path would be the current folder."""
    return Path(text) if text else None


def factor(text: str) -> tuple[str, float]:
    """NAME=FACTOR -> both."""
    name, _, number = text.rpartition("=")
    if not name or not 0 < float(number) <= MAX_FACTOR:
        raise argparse.ArgumentTypeError(f"expected FOLDER=FACTOR, 0 to {MAX_FACTOR}, got {text}")
    return name, float(number)


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options as plain values, with the folders of the data."""

    def plain(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    options = vars(args) | {"data": args.data or [ROOT / folder for folder in img_datas]}
    return {name: plain(value) for name, value in options.items()}


def add_train_options(parser: argparse.ArgumentParser) -> None:
    count = int_from(1, 2**31)
    run = parser.add_argument_group("run")
    run.add_argument("--task_name", default="union_train", help="folder of the run in --work_dir")
    run.add_argument("--work_dir", type=Path, default=ROOT / "work_dir")
    run.add_argument(
        "--resume", action="store_true", help="go on from sam_model_latest.pth, if there is one"
    )
    run.add_argument("--seed", type=int_from(0, 2**31), default=0)
    run.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    run.add_argument(
        "--multi_gpu", action="store_true", help="a process for each of --gpu_ids, or of all GPUs"
    )
    run.add_argument("--gpu_ids", type=int, nargs="+", help="GPUs to use; default: all")

    model = parser.add_argument_group("network")
    model.add_argument(
        "--checkpoint",
        type=path_if_any,
        help='weights to begin with; default, and "": random ones',
    )
    model.add_argument(
        "--model_type", help="of the registry; default: the checkpoint's, or vit_b_ori"
    )
    model.add_argument(
        "--img_size", type=count, help="voxels along the ROI's sides; default: the network's"
    )
    model.add_argument(
        "--allow_partial_weight",
        action="store_true",
        help="initialise the tensors that do not fit the checkpoint instead of stopping",
    )

    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", type=Path, nargs="+", help="folders; default: img_datas of utils/data_paths.py"
    )
    data.add_argument(
        "--min_voxels", type=int, default=1000, help="labels must have more, as prepared"
    )
    data.add_argument(
        "--max_bad_share",
        type=float,
        default=0.05,
        help="of the files may be unusable; they are named and skipped",
    )
    data.add_argument(
        "--num_workers", type=int_from(0, 1024), default=4, help="that read, per process"
    )

    loop = parser.add_argument_group("recipe")
    loop.add_argument(
        "--recipe",
        choices=("published", "adaptive"),
        default="published",
        help="published: for the policy baseline; adaptive: for the policy of that name, on cases "
        "prepared with --native",
    )
    loop.add_argument(
        "--roi_factor",
        type=float,
        help="adaptive: sides of the ROI over those of the box; default: the checkpoint's, or 1.8",
    )
    loop.add_argument(
        "--roi_spacing",
        type=float,
        help="adaptive: mm per voxel of the ROI round a first click without a box; default: the "
        "checkpoint's, or 1.5",
    )
    loop.add_argument(
        "--synthetic",
        type=int_from(0, 10**9),
        default=0,
        help="adaptive: samples of an epoch from synthetic cases, beside those of --data",
    )
    loop.add_argument(
        "--shapes",
        type=Path,
        nargs="+",
        help="adaptive: label maps for synthetic cases, .npz files or folders of them (keys gts, "
        "spacing and maybe names); given twice, used twice as often; default: cases of many labels",
    )
    loop.add_argument(
        "--weigh",
        type=factor,
        nargs="+",
        metavar="FOLDER=FACTOR",
        help="adaptive: how much more often than others the cases of a folder, which is a data "
        "set, are seen, such as MR_MSLesion=2",
    )
    loop.add_argument(
        "--artefacts",
        type=float,
        default=ARTEFACTS,
        help="adaptive: share of the samples with motion or ghosts, by TorchIO; 0: it isn't needed",
    )
    loop.add_argument("--num_epochs", type=count, default=200)
    loop.add_argument("--batch_size", type=count, default=6, help="per process")
    loop.add_argument(
        "--accumulation_steps", type=count, default=20, help="batches per optimizer step"
    )
    loop.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        default="adamw",
        help="muon: for the matrices of the layers, with AdamW for the rest; learns from fewer "
        "samples, at a higher --lr",
    )
    loop.add_argument("--lr", type=float, default=8e-5, help="of the image encoder")
    loop.add_argument(
        "--others_lr",
        type=float,
        default=0.1,
        help="of prompt encoder and mask decoder, over --lr; 1 for a network from random weights",
    )
    loop.add_argument("--weight_decay", type=float, default=0.1)
    loop.add_argument(
        "--lr_scheduler",
        choices=SCHEDULERS,
        default="multisteplr",
    )
    loop.add_argument("--step_size", type=count, nargs="+", default=[120, 180], help="epochs")
    loop.add_argument("--gamma", type=float, default=0.1, help="factor of the learning rate")
    loop.add_argument(
        "--click_type", choices=("random",), default="random", help="published: among the errors"
    )
    loop.add_argument(
        "--multi_click",
        action="store_true",
        help="published: prompt with all clicks, not only the last one",
    )

    cost = parser.add_argument_group("cost")
    cost.add_argument(
        "--amp",
        choices=("auto", "bf16", "fp16", "fp32"),
        default="auto",
        help="auto: bf16 on a GPU that has it, else fp16; fp32 on a CPU",
    )
    cost.add_argument(
        "--save_memory",
        action=argparse.BooleanOptionalAction,
        help="compute some activations twice instead of keeping them; same gradients; default: "
        "on a GPU",
    )

    val = parser.add_argument_group("validation")
    val.add_argument("--val_cases", type=Path, help="folder of cases with gts; see evaluate.py")
    val.add_argument("--val_every", type=count, default=10, help="epochs; and after the last one")
