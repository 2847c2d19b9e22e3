"""The memory of this process: its peak, and what becomes of it when it is freed."""

import ctypes
import resource


def peak_gb(device_type: str = "cpu") -> float:
    """Peak in GB (2^30 bytes): resident memory of this process, or, for "cuda", on its GPU.

    That GPU is the current one, which `choose_device` sets.
    """
    if device_type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in kB


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free for the next ones, instead of giving it back at once.

    A training step on a CPU frees and takes the same GBs again and again, and spends a sixth of its
    time on the kernel's zeroing of their pages. Does nothing with another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
        mallopt(m_trim_threshold, 2**31 - 1)
        mallopt(m_top_pad, 2**28)
        mallopt(m_mmap_max, 0)
