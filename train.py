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
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from monai.losses import DiceCELoss
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segment_anything import __version__
from segment_anything.bounds import AdaptiveSettings
from utils.formats.atomic import atomic_copy
from utils.formats.case import CaseError, read_geometry
from utils.formats.label_map import find_label_maps
from utils.inference.checkpoint import Checkpoint, adaptive_settings
from utils.runtime.device import choose_precision, show_gpus
from utils.runtime.distributed import Processes, join_processes
from utils.runtime.launch import check_launch
from utils.runtime.lock import locked
from utils.runtime.memory import keep_freed_memory
from utils.training.adaptive_dataset import AdaptiveDataset
from utils.training.adaptive_step import AdaptiveStep
from utils.training.dataset import CaseDataset, EpochSampler, RoiDataset, find_cases, make_loader
from utils.training.epoch import (
    BadFiles,
    Run,
    Stop,
    Stopped,
    TrainingError,
    agree_on_data,
    train_one_epoch,
)
from utils.training.optimizer import make_optimizer, make_scheduler
from utils.training.options import add_train_options, options_of
from utils.training.published_step import PublishedStep
from utils.training.records import finish_epoch, tensorboard, validate, write_log
from utils.training.state import (
    LATEST,
    TrainState,
    build_network,
    check_resumed,
    read_state,
    read_weights,
    resume,
    save_state,
    saved_checkpoint,
)
from utils.training.step import recompute_attention

ROOT = Path(__file__).resolve().parent


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_train_options(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    """Returns the exit status: 0, 1 if training failed, 2 if it can't begin, 128 + a signal."""
    if args.multi_gpu and "RANK" not in os.environ:
        relaunch(args)
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    folder = args.work_dir / args.task_name
    try:
        check_launch("train.py")
        if args.gpu_ids:  # before CUDA is used
            show_gpus(args.gpu_ids)
        check_options(args, folder)
        with join_processes(args.device) as processes:
            if processes.device.type == "cpu":
                keep_freed_memory()
            torch.backends.cudnn.benchmark = True  # the shapes of a run do not change

            def say(message: str) -> None:
                if processes.rank == 0:
                    print(message, flush=True)

            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder, "--task_name") if processes.rank == 0 else nullcontext():
                check_options(args, folder)  # another run may have ended since
                precision = choose_precision(args.amp, processes.device)
                state = build_state(args, folder / LATEST, processes, precision, say)
                run = build_run(args, state, processes, precision, stop)
                facts = run_facts(args, processes)
                if processes.rank == 0:
                    (folder / "options.json").write_text(json.dumps(facts, indent=2) + "\n")
                return train(args, folder, run, state, facts, say)
    except TrainingError as error:
        print(f"{args.task_name}: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:
        # Uncaught, it would keep the readers of data, and so the process, alive.
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            print(
                f"{args.task_name}: {str(error).splitlines()[0]}: too little memory, or shared "
                "memory (/dev/shm; docker run --shm-size 16G); --num_workers 0 does without",
                file=sys.stderr,
            )
        else:
            traceback.print_exc()
        return 1


def train(
    args: argparse.Namespace,
    folder: Path,
    run: Run,
    state: TrainState,
    facts: dict[str, Any],
    say: Callable[[str], None],
) -> int:
    """Train to the last epoch; returns the exit status."""
    progress, processes = state.progress, run.processes
    is_first = processes.rank == 0
    write_row = tensorboard(folder) if is_first else lambda row: None

    def save(name: str, *copies: str) -> None:
        if is_first:
            save_state(folder / name, state, facts)
            for copy in copies:
                atomic_copy(folder / name, folder / copy)
            write_log(folder, progress.log)

    effective = args.batch_size * processes.count * args.accumulation_steps
    say(
        f"{run.sampler.n} samples, {len(run.sampler)} batches of {args.batch_size} x "
        f"{processes.count} an epoch, {effective} samples per optimizer step, "
        f"{run.precision} on {processes.device}; epochs {progress.epoch}..{args.num_epochs - 1}"
    )
    try:
        for epoch in range(progress.epoch, args.num_epochs):
            row: dict[str, Any] = {"epoch": epoch} | train_one_epoch(run, state)
            is_due = (epoch + 1) % args.val_every == 0 or epoch + 1 == args.num_epochs
            if args.val_cases and is_due:
                save(LATEST)  # it takes long, and may be killed
                row |= validate(run, state, args.val_cases)
            save(*finish_epoch(state, row, args.val_cases is not None))
            write_row(row)
            say(", ".join(f"{key} {value:.6g}" for key, value in row.items()))
    except Stopped:
        save(LATEST)
        processes.sum([0.0])  # all leave together: torchrun ends the others when one has left
        say(f"stopped in epoch {progress.epoch}, batch {progress.step}; --resume goes on")
        return 128 + (run.stop.number or signal.SIGTERM)
    return 0


def relaunch(args: argparse.Namespace) -> None:
    """Become torchrun with a process per GPU, if there are several; does not return then."""
    count = len(args.gpu_ids or ())
    if not count and args.device in ("auto", "cuda"):
        count = torch.cuda.device_count()
    if count <= 1:
        return
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += ["--shutdown-timeout=240"]  # seconds to finish a batch and save; its own: 30
    os.execv(sys.executable, [sys.executable, *command, __file__, *sys.argv[1:]])


def check_options(args: argparse.Namespace, folder: Path) -> None:
    """Raises ValueError if options do not fit each other or the folder of the run."""
    if args.val_cases:
        check_val_cases(args.val_cases)
    for name in ("synthetic", "roi_factor", "roi_spacing", "shapes", "weigh"):
        if getattr(args, name) and args.recipe != "adaptive":
            raise ValueError(f"--{name}: expected --recipe adaptive, got {args.recipe}")
    named = [name for name, _ in args.weigh or ()]
    if len(set(named)) < len(named):
        raise ValueError(f"--weigh: expected each folder once, got {', '.join(named)}")
    if (folder / LATEST).exists() and not args.resume:
        raise ValueError(f"{folder} holds a run: go on with --resume, or give another --task_name")


def check_val_cases(folder: Path) -> None:
    """Raises ValueError if no case in it has gts; those that have none are named when played."""
    why = f"expected .npz files in {folder}"
    for path in sorted(folder.rglob("*.npz")):
        try:
            read_geometry(path)
            return
        except (CaseError, OSError) as error:
            why = str(error)
    raise ValueError(f"--val_cases {folder}: expected cases with gts, got none: {why}")


def build_state(
    args: argparse.Namespace,
    latest: Path,
    processes: Processes,
    precision: str,
    say: Callable[[str], None],
) -> TrainState:
    """A new run, or the one that `latest` holds.

    Raises:
        ValueError, OSError: Options and files do not fit.
    """
    torch.manual_seed(args.seed)
    content = read_state(latest) if latest.exists() else None
    checkpoint: Checkpoint | None
    if content is not None:
        checkpoint = saved_checkpoint(latest, content, args.model_type or "vit_b_ori")
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
    given = adaptive_settings(checkpoint) if checkpoint else AdaptiveSettings()
    # Without the line of the IoU, which other weights have.
    settings = AdaptiveSettings(given.roi_factor, given.roi_spacing, given.normalisation)
    named = {key: getattr(args, key) for key in ("roi_factor", "roi_spacing")}
    settings = replace(settings, **{k: v for k, v in named.items() if v is not None})
    if policy == "adaptive":
        settings = replace(settings, drawings=model.draws_prompts, clipped=True, second_look=True)
    state = TrainState(
        model, model_type, model_args, optimizer, scheduler, scaler, policy, settings
    )
    if content is not None:
        options = options_of(args) | {"processes": processes.count}
        check_resumed(content, options, model_type, model.img_size)
        resume(state, content)
        saved = content.get("args")
        if isinstance(saved, dict) and (saved["val_cases"] is None) != (args.val_cases is None):
            state.progress.best_dice = 0.0  # of validation, or of training: not to be compared
    return state


def build_run(
    args: argparse.Namespace,
    state: TrainState,
    processes: Processes,
    precision: str,
    stop: Stop,
) -> Run:
    """Find the data, and build the loader and the step.

    Raises:
        TrainingError: There is nothing to train on, or too many files are bad.
        ValueError: The data are not those of the epoch that is resumed.
    """
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
    bad_files.check()
    device = processes.device
    model, seed, least = state.model, args.seed, args.min_voxels
    dataset: CaseDataset
    if is_adaptive:
        sizes = (model.img_size, model.mask_size)
        dataset = AdaptiveDataset(
            cases,
            *sizes,
            state.settings,
            seed,
            least,
            args.synthetic,
            find_label_maps(args.shapes or ()),
            dict(args.weigh or ()),
            device,
            args.artefacts,
        )
    else:
        dataset = RoiDataset(cases, model.img_size, seed, least)
    sampler = EpochSampler(len(dataset), args.batch_size, seed, processes.rank, processes.count)
    is_made_there = is_adaptive and device.type != "cpu"  # by this process: it holds the volumes
    num_workers = 0 if is_made_there else args.num_workers
    loader = make_loader(dataset, sampler, num_workers, device.type == "cuda" and not is_adaptive)

    loss = DiceCELoss(sigmoid=True, squared_pred=True)
    save_memory = args.save_memory if args.save_memory is not None else device.type == "cuda"
    recompute_attention(model, save_memory)
    step: nn.Module
    if is_adaptive:
        step = AdaptiveStep(model, loss, save_memory)
    else:
        step = PublishedStep(model, loss, save_memory, args.multi_click)
    if processes.count > 1:
        step = DistributedDataParallel(
            step,
            device_ids=[device] if device.type == "cuda" else None,
            # Box corners, the "no mask" embedding and spare mask tokens get no gradient.
            find_unused_parameters=True,
        )
    return Run(
        step,
        loader,
        sampler,
        processes,
        args.accumulation_steps,
        seed,
        precision,
        bad_files,
        stop,
    )


def run_facts(args: argparse.Namespace, processes: Processes) -> dict[str, Any]:
    """What a checkpoint says of its run: the options, the data, and what they ran on."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:
        commit = ""
    options = options_of(args) | {"processes": processes.count}
    ran_on = {"version": __version__, "commit": commit, "torch": str(torch.__version__)}
    ran_on["device"] = str(processes.device)
    return {"args": options, "used_datas": options["data"], "ran_on": ran_on}


if __name__ == "__main__":
    sys.exit(main(get_args_parser().parse_args()))
