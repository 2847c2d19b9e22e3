"""Broken DICOM headers: read as pydicom reads them, or refused; bench/fuzz_dicom.py tries more."""

from collections import Counter

from dicom_fuzzing import check_variant, write_variant


def test_whatever_is_read_has_the_geometry_and_values_of_pydicom(tmp_path):
    outcomes = Counter()
    for number in range(200):
        write_variant(tmp_path / str(number), number)
        outcomes[check_variant(tmp_path / str(number)) == "read"] += 1
    assert outcomes[True] > 20 and outcomes[False] > 40
