"""Asking a network in batches that fit into memory."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import torch

Q = TypeVar("Q")
A = TypeVar("A")


def ask_in_batches(
    ask: Callable[[Sequence[Q]], Iterable[A]], queries: Iterable[Q], batch_size: int
) -> Iterator[A]:
    """The answers to all queries, in their order.

    Where a batch needs more memory than the GPU has, this one and those after it have half as many.

    Args:
        ask: Answers a batch.
        queries: Taken as they are needed.
        batch_size: To begin with.

    Raises:
        torch.OutOfMemoryError: There is not enough for a single one.
    """
    coming = iter(queries)
    batch: list[Q] = []
    while True:
        batch += islice(coming, max(batch_size - len(batch), 0))
        if not batch:
            return
        try:
            answers = list(ask(batch[:batch_size]))
        except torch.OutOfMemoryError:
            if batch_size == 1 or len(batch) == 1:
                raise
            batch_size = (min(batch_size, len(batch)) + 1) // 2
        else:
            yield from answers
            del batch[:batch_size]
            continue
        # Outside of the handler, since the error holds what the batch had taken.
        warnings.warn(f"out of GPU memory: going on with batches of {batch_size}", stacklevel=2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
