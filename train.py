"""Train or fine-tune SAM-Med3D by the published or the adaptive recipe; train.sh names the values.

One process, or several under torchrun, a GPU each. Writes below --work_dir/--task_name:
sam_model_latest.pth, sam_model_loss_best.pth, sam_model_dice_best.pth, log.csv, Loss.png, Dice.png.
SIGTERM and SIGINT finish the step, save and exit; --resume goes on to the same losses as without.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segment_anything import __version__
from utils.training.options import add_train_options

# torch is imported where it is used, so that --help and messages about options come at once.
if TYPE_CHECKING:
    from utils.runtime.distributed import Processes
    from utils.training.epoch import Loop, Stop
    from utils.training.state import TrainState

ROOT = Path(__file__).resolve().parent


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_train_options(parser)
    return parser


def relaunch(args: argparse.Namespace) -> None:
    """Become torchrun with a process per GPU, if there are several; does not return then."""
    import torch

    count = len(args.gpu_ids or ())
    if not count and args.device in ("auto", "cuda"):
        count = torch.cuda.device_count()
    if count <= 1:
        return
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += ["--shutdown-timeout=240"]  # seconds to finish a batch and save; its own: 30
    os.execv(sys.executable, [sys.executable, *command, __file__, *sys.argv[1:]])


def build_state(
    args: argparse.Namespace,
    latest: Path,
    processes: "Processes",
    precision: str,
    say: Callable[[str], None],
) -> "TrainState":
    """A new run, or the one that `latest` holds.

    Raises:
        ValueError, OSError: Options and files do not fit.
    """
    import torch

    from segment_anything.bounds import AdaptiveSettings
    from utils.inference.checkpoint import Checkpoint, adaptive_settings
    from utils.training.optimizer import make_optimizer, make_scheduler
    from utils.training.state import (
        TrainState,
        build_network,
        read_state,
        read_weights,
        resume,
    )

    torch.manual_seed(args.seed)
    content = read_state(latest) if latest.exists() else None
    if content is not None:
        model_args = dict(content.get("model_args", {}))
        model_type = content.get("model_type", args.model_type or "vit_b_ori")
        saved = Checkpoint(latest, content["model_state_dict"], model_type, model_args)
        saved.policy_args = dict(content.get("policy_args", {}))
        checkpoint: Checkpoint | None = saved
        network = build_network(checkpoint)
    else:
        checkpoint = read_weights(args.checkpoint) if args.checkpoint else None
        network = build_network(
            checkpoint, args.model_type, args.img_size, args.allow_partial_weight
        )
    model, model_type, model_args, left = network
    origin = checkpoint.path if checkpoint else "random weights"
    say(f"{' '.join(map(str, filter(None, (model_type, model_args))))} from {origin}")
    for notice in checkpoint.notices if checkpoint else []:
        say(notice)
    if left:
        say(f"left as initialised: {', '.join(left)}")
    model = model.to(processes.device).train()
    optimizer = make_optimizer(model, args.lr, args.weight_decay, args.others_lr, args.optimizer)
    scheduler = make_scheduler(optimizer, args.lr_scheduler, args.step_size, args.gamma)
    scaler = torch.amp.GradScaler(processes.device.type, enabled=precision == "fp16")
    policy = "adaptive" if args.recipe == "adaptive" else "baseline"
    settings = adaptive_settings(checkpoint) if checkpoint else AdaptiveSettings()
    named = {key: getattr(args, key) for key in ("roi_factor", "roi_spacing")}
    settings = replace(settings, **{k: v for k, v in named.items() if v is not None})
    state = TrainState(
        model, model_type, model_args, optimizer, scheduler, scaler, policy, settings
    )
    if content is not None:
        check_method(args, content.get("args"))
        resume(state, content)
        check_resumed(args, state, content.get("args"), processes.count)
    return state


def check_method(args: argparse.Namespace, saved: Any) -> None:
    """Raises ValueError if the saved options are those of another recipe or optimizer."""
    if not isinstance(saved, dict):  # of the original
        return
    for name, before in (("recipe", "published"), ("optimizer", "adamw")):
        was, now = saved.get(name, before), getattr(args, name)
        if was != now:
            raise ValueError(f"--resume: the run is of --{name} {was}, got {now}")


def check_resumed(args: argparse.Namespace, state: "TrainState", saved: Any, count: int) -> None:
    """Raises ValueError if the options are those of another network, or of another epoch's rest."""
    size = state.model.img_size
    if args.model_type not in (None, state.model_type) or args.img_size not in (None, size):
        raise ValueError(
            f"--resume: the run is of {state.model_type} with --img_size {size}, got "
            f"{args.model_type} with {args.img_size}"
        )
    if not isinstance(saved, dict):  # of the original
        return
    now = options_of(args) | {"processes": count}
    saved = {"synthetic": 0} | saved  # of a run before there was such an option
    for key in ("batch_size", "accumulation_steps", "seed", "processes", "min_voxels", "synthetic"):
        if state.progress.step and saved[key] != now[key]:
            raise ValueError(
                f"--resume: the checkpoint lies within an epoch of {key} {saved[key]}, expected "
                f"the same, got {now[key]}"
            )
    if (saved["val_cases"] is None) != (now["val_cases"] is None):
        state.progress.best_dice = 0.0  # of validation, or of training: not to be compared


def check_val_cases(folder: Path) -> None:
    """Raises ValueError if no case in it has gts; those that have none are named when played."""
    from utils.formats.case import CaseError, read_geometry

    why = f"expected .npz files in {folder}"
    for path in sorted(folder.rglob("*.npz")):
        try:
            read_geometry(path)
            return
        except (CaseError, OSError) as error:
            why = str(error)
    raise ValueError(f"--val_cases {folder}: expected cases with gts, got none: {why}")


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options as plain values."""
    from utils.data_paths import img_datas

    folders = args.data or [ROOT / folder for folder in img_datas]
    options = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    return options | {"data": [str(folder) for folder in folders]}


def run_facts(args: argparse.Namespace, processes: "Processes") -> dict[str, Any]:
    """For the checkpoint: the options, the data, and what they ran on."""
    import torch

    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:
        commit = ""
    options = options_of(args) | {"processes": processes.count}
    ran_on = {"version": __version__, "commit": commit, "torch": str(torch.__version__)}
    ran_on["device"] = str(processes.device)
    return {"args": options, "used_datas": options["data"], "ran_on": ran_on}


def make_loop(
    args: argparse.Namespace,
    state: "TrainState",
    processes: "Processes",
    precision: str,
    stop: "Stop",
) -> "Loop":
    """Find the data and wire the loop.

    Raises:
        TrainingError: There is nothing to train on, or too many files are bad.
        ValueError: The data are not those of the epoch that is resumed.
    """
    from monai.losses import DiceCELoss
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    from utils.training.adaptive_dataset import AdaptiveDataset
    from utils.training.adaptive_step import AdaptiveStep
    from utils.training.dataset import (
        CaseDataset,
        EpochSampler,
        RoiDataset,
        find_cases,
        make_loader,
        prefetch,
    )
    from utils.training.epoch import BadFiles, Loop, TrainingError, agree_on_data
    from utils.training.published_step import PublishedStep

    folders = options_of(args)["data"]
    is_adaptive = args.recipe == "adaptive"
    cases, failures = find_cases(folders, args.min_voxels, is_adaptive)
    agree_on_data(cases, state.progress, processes)
    bad_files = BadFiles(len(cases) + len(failures), args.max_bad_share)
    bad_files.add(failures, processes.rank == 0)
    if not cases:
        raise TrainingError(
            f"no training data: expected cases made by data/resample_preprocess_for_CVPR_3DFM.py, "
            f"with labels of more than {args.min_voxels} voxels, in {', '.join(folders)}; "
            f"utils/data_paths.py or --data names the folders"
        )
    if bad_files.are_too_many:
        raise bad_files.error()
    device = processes.device
    model, seed, least = state.model, args.seed, args.min_voxels
    dataset: CaseDataset
    if is_adaptive:
        sizes = (model.img_size, model.mask_size)
        dataset = AdaptiveDataset(cases, *sizes, state.settings, seed, least, args.synthetic)
    else:
        dataset = RoiDataset(cases, model.img_size, seed, least)
    sampler = EpochSampler(
        len(dataset), args.batch_size, args.seed, processes.rank, processes.count
    )
    loader = make_loader(dataset, sampler, args.num_workers, device.type == "cuda")

    loss = DiceCELoss(sigmoid=True, squared_pred=True)
    save_memory = args.save_memory if args.save_memory is not None else device.type == "cuda"
    loop = AdaptiveStep if is_adaptive else PublishedStep
    step: nn.Module = loop(state.model, loss, args.multi_click, save_memory)
    if processes.count > 1:
        step = DistributedDataParallel(
            step,
            device_ids=[device] if device.type == "cuda" else None,
            # Box corners, the "no mask" embedding and spare mask tokens get no gradient.
            find_unused_parameters=True,
        )
    return Loop(
        step,
        lambda: prefetch(loader, device),
        sampler,
        processes,
        args.accumulation_steps,
        args.seed,
        precision,
        bad_files,
        stop,
    )


def train(
    args: argparse.Namespace,
    folder: Path,
    loop: "Loop",
    state: "TrainState",
    options: dict[str, Any],
    say: Callable[[str], None],
) -> int:
    """Train to the last epoch; returns the exit status."""
    from utils.formats.atomic import atomic_copy
    from utils.training.epoch import train_epoch
    from utils.training.log import tensorboard, write_log
    from utils.training.records import finish_epoch, validate_epoch
    from utils.training.state import LATEST, save_state

    progress, processes = state.progress, loop.processes
    is_first = processes.rank == 0
    write_row = tensorboard(folder) if is_first else lambda row: None

    def save(names: tuple[str, ...]) -> None:
        if is_first and names:
            save_state(folder / LATEST, state, options)
            for name in names[1:]:
                atomic_copy(folder / LATEST, folder / name)
            write_log(folder, progress.log)

    effective = args.batch_size * processes.count * args.accumulation_steps
    say(
        f"{loop.sampler.n} samples, {len(loop.sampler)} batches of {args.batch_size} x "
        f"{processes.count} an epoch, {effective} samples per optimizer step, "
        f"{loop.precision} on {processes.device}; epochs {progress.epoch}..{args.num_epochs - 1}"
    )
    is_new = False  # the last row of the log
    while True:
        names: tuple[str, ...] | None = ()
        is_due = progress.epoch % args.val_every == 0 or progress.epoch == args.num_epochs
        if args.val_cases and is_due and progress.step == 0:
            # Here, and not after the epoch, so that one that was stopped is made up for.
            names = validate_epoch(state, loop, args.val_cases)
        if names is None:
            break
        save(names)
        if is_new or names:
            row = progress.log[-1]
            write_row(row)
            say(", ".join(f"{key} {value:.6g}" for key, value in row.items()))
        if progress.epoch >= args.num_epochs:
            return 0
        start, first = time.perf_counter(), progress.step
        if not train_epoch(loop, state):
            save((LATEST,))
            break
        seconds, batches = time.perf_counter() - start, len(loop.sampler) - first
        save(finish_epoch(state, loop, seconds, batches, args.val_cases is not None))
        is_new = True
    processes.sum([0.0])  # all leave together: torchrun ends the others when one has left
    say(f"stopped in epoch {progress.epoch}, batch {progress.step}; --resume goes on")
    return 128 + (loop.stop.number or signal.SIGTERM)


def main(args: argparse.Namespace) -> int:
    """Returns the exit status: 0, 1 if training failed, 2 if it can't begin, 128 + a signal."""
    if args.multi_gpu and "RANK" not in os.environ:
        relaunch(args)
    from utils.runtime.device import choose_precision, show_gpus
    from utils.runtime.distributed import join_processes
    from utils.runtime.memory import keep_freed_memory
    from utils.training.epoch import Stop, TrainingError
    from utils.training.state import LATEST

    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    folder = args.work_dir / args.task_name
    latest = folder / LATEST
    try:
        if args.gpu_ids:  # before CUDA is used
            show_gpus(args.gpu_ids)
        if args.val_cases:
            check_val_cases(args.val_cases)
        for name in ("synthetic", "roi_factor", "roi_spacing"):
            if getattr(args, name) and args.recipe != "adaptive":
                raise ValueError(f"--{name}: expected --recipe adaptive, got {args.recipe}")
        if latest.exists() and not args.resume:
            raise ValueError(
                f"{folder} holds a run: go on with --resume, or give another --task_name"
            )
        with join_processes(args.device) as processes:
            if processes.device.type == "cpu":
                keep_freed_memory()

            def say(message: str) -> None:
                if processes.rank == 0:
                    print(message, flush=True)

            folder.mkdir(parents=True, exist_ok=True)
            precision = choose_precision(args.amp, processes.device)
            state = build_state(args, latest, processes, precision, say)
            loop = make_loop(args, state, processes, precision, stop)
            options = run_facts(args, processes)
            if processes.rank == 0:
                (folder / "options.json").write_text(json.dumps(options, indent=2) + "\n")
            return train(args, folder, loop, state, options, say)
    except TrainingError as error:
        print(f"{args.task_name}: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except Exception:  # uncaught, it would keep the readers of data, and so the process, alive
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    sys.exit(main(get_args_parser().parse_args()))
