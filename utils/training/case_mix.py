"""Which cases the samples of an epoch are of: weighed by kind, not by count.

A data set with a hundred times the cases, or cases of a hundred labels, would fill the epoch, and
what is rare would hardly be learned.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.formats.prepared import PreparedCase

SHARE_POWER = 0.5  # of the samples that a data set's cases would have each by itself


class CaseMix:
    """The cases of each epoch, which has as many samples as all cases by themselves.

    Args:
        cases: Those of a folder are a data set.
        counts: Samples that each would have by itself, 1 or more.
        factors: By which a data set is seen more often, by the name of its folder; default 1.

    Raises:
        ValueError: A factor is for a folder that has no case.

    Attributes:
        quotas: Samples of each data set in an epoch, at least 1, by its folder.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        counts: Sequence[int],
        factors: Mapping[str, float] | None = None,
    ) -> None:
        factors = factors or {}
        self._cycles: dict[Path, list[PreparedCase]] = defaultdict(list)
        for turn in range(max(counts, default=0)):  # a case comes again when others have been
            for case, count in zip(cases, counts, strict=True):
                if turn < count:
                    self._cycles[case.path.parent].append(case)
        missing = set(factors) - {folder.name for folder in self._cycles}
        if missing:
            known = ", ".join(sorted({folder.name for folder in self._cycles}))
            raise ValueError(f"expected factors for {known}, got {', '.join(sorted(missing))}")
        shares = {
            folder: factors.get(folder.name, 1.0) * len(cycle) ** SHARE_POWER
            for folder, cycle in self._cycles.items()
        }
        whole = sum(shares.values())
        self.quotas = {
            folder: max(round(sum(counts) * share / whole), 1) for folder, share in shares.items()
        }
        # For each sample its data set, and which of that one's samples it is.
        self._samples = [(folder, i) for folder, n in self.quotas.items() for i in range(n)]

    def __len__(self) -> int:
        """Samples in an epoch."""
        return len(self._samples)

    def case(self, epoch: int, index: int) -> PreparedCase:
        """That of a sample; epochs go on with the cases of a data set where the last one ended."""
        folder, i = self._samples[index]
        cycle = self._cycles[folder]
        return cycle[(epoch * self.quotas[folder] + i) % len(cycle)]
