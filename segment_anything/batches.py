"""Asking a network in batches that fit into memory."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import torch

Q = TypeVar("Q")
A = TypeVar("A")


class Batches:
    """Batches as large as a GPU's memory allows.

    Where one needs more memory than there is, it and all later ones have half as many.

    Attributes:
        size: Queries in a batch, at most; fewer once memory has run out.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def ask(
        self, answer: Callable[[Sequence[Q]], Iterable[A]], queries: Iterable[Q]
    ) -> Iterator[A]:
        """The answers to all queries, in their order.

        Args:
            answer: Answers a batch.
            queries: Taken as they are needed.

        Raises:
            torch.OutOfMemoryError: There is not enough for a single one.
        """
        coming = iter(queries)
        batch: list[Q] = []
        while True:
            batch += islice(coming, max(self.size - len(batch), 0))
            if not batch:
                return
            count = min(self.size, len(batch))
            answers = None
            try:
                answers = list(answer(batch[:count]))
            except torch.OutOfMemoryError:
                if count == 1:
                    raise
            if answers is None:  # outside of the handler: the error holds what the batch had taken
                self.size = (count + 1) // 2
                warnings.warn(
                    f"out of GPU memory: going on with batches of {self.size}", stacklevel=2
                )
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            yield from answers
            del batch[:count]
