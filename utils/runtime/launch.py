"""What started this process; torch is not needed to tell."""

import os

# What launchers other than torchrun say of the number of their tasks, and of which one this is.
# That of srun's step comes first: a batch script and a shell have that of the whole allocation.
TASKS = {
    "srun": (("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), "SLURM_PROCID"),
    "mpirun": (("OMPI_COMM_WORLD_SIZE",), "OMPI_COMM_WORLD_RANK"),
    "mpiexec": (("PMI_SIZE",), "PMI_RANK"),
}


def is_launched() -> bool:
    """Whether torchrun or `run_local` started this process."""
    return "RANK" in os.environ


def check_launch(script: str) -> None:
    """Refuse tasks that know nothing of each other, and would do the same work each.

    A batch script of Slurm, which is no task of srun's, has the number of tasks, too.

    Args:
        script: For the message.

    Raises:
        ValueError: srun or mpirun started several without torchrun; says what does.
    """
    if is_launched():
        return
    for launcher, (totals, index) in TASKS.items():
        stated = [int(os.environ[name]) for name in totals if name in os.environ]
        is_task = totals[0] in os.environ or os.environ.get(index, "0") != "0"
        if is_task and stated and (count := stated[0]) > 1:
            raise ValueError(
                f"{launcher} started {count} tasks that know nothing of each other: start one a "
                f"node, and torchrun in it; on one node: srun --ntasks-per-node=1 torchrun "
                f"--standalone --nproc-per-node gpu {script} ... (several: docs/training.md)"
            )
