"""What started this process; torch is not needed to tell."""

import os

# What launchers other than torchrun say of the number of their tasks, and of this one.
TASKS = {
    "srun": ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    "mpirun": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_RANK"),
    "mpiexec": ("PMI_SIZE", "PMI_RANK", "PMI_RANK"),
}


STEPS = ("SLURM_STEP_NUM_TASKS",)  # tasks of this step of srun's, not of the whole allocation


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
    for launcher, (total, index, mark) in TASKS.items():
        count = int(os.environ.get(mark if mark in STEPS else total) or os.environ.get(total) or 1)
        is_task = mark in os.environ or os.environ.get(index, "0") != "0"
        if count > 1 and is_task:
            raise ValueError(
                f"{launcher} started {count} tasks that know nothing of each other: start one a "
                f"node, and torchrun in it; on one node: srun --ntasks-per-node=1 torchrun "
                f"--standalone --nproc-per-node gpu {script} ... (several: docs/training.md)"
            )
