"""The memory that this process took at most."""

import resource


def peak_gb(device_type: str = "cpu") -> float:
    """In GB (2^30 bytes): resident memory, or, for "cuda", that of the current GPU."""
    if device_type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in kB
