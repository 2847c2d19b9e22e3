"""Which cases an epoch's samples are of."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from utils.formats.prepared import PreparedCase
from utils.training.case_mix import CaseMix


def case(folder, name):
    none = np.zeros(0, np.int64)
    path = Path(folder) / f"{name}.npz"
    return PreparedCase(path, (8, 9, 10), (1.0, 1.0, 1.0), True, none, none, none)


def folders(mix, epochs=1):
    return Counter(
        mix.case(epoch, i).path.parent.name for epoch in range(epochs) for i in range(len(mix))
    )


MANY = [case("many", i) for i in range(100)]
FEW = [case("few", i) for i in range(4)]


def test_what_is_rare_is_seen_more_often_than_by_count():
    mix = CaseMix(MANY + FEW, [1] * 104)
    assert len(mix) == 104 and folders(mix) == {"many": 87, "few": 17}  # as 10 to 2
    assert folders(CaseMix(MANY + FEW, [1] * 104, {"few": 5.0})) == {"many": 52, "few": 52}
    assert folders(CaseMix(FEW, [3, 1, 1, 1])) == {"few": 6}


def test_all_cases_of_a_data_set_come_before_one_comes_again():
    mix = CaseMix(MANY + FEW, [1] * 104, {"few": 5.0})
    times = Counter(mix.case(epoch, i).path for epoch in range(25) for i in range(len(mix)))
    assert set(times) == {c.path for c in MANY + FEW}
    assert {times[c.path] for c in MANY} == {13} and {times[c.path] for c in FEW} == {25 * 13}


def test_cases_of_more_samples_come_more_often():
    mix = CaseMix(FEW, [5, 1, 1, 1])
    assert Counter(mix.case(3, i).path for i in range(8))[FEW[0].path] == 5


def test_a_data_set_is_seen_at_least_once():
    assert folders(CaseMix(MANY + FEW, [1] * 104, {"few": 1e-6}))["few"] == 1


def test_a_factor_for_a_folder_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="expected factors for few, many, got fwe"):
        CaseMix(MANY + FEW, [1] * 104, {"fwe": 2.0})
