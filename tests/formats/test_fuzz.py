"""Any bytes are a case or a clear error; `bench/fuzz_reader.py` tries many more of them."""

import os

import pytest
from hypothesis import HealthCheck, given, settings

from fuzzing import MAX_GROWTH_GB, WHOLE, Watch, check_file, files
from utils.runtime.memory import peak_gb


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


def test_the_watch_sees_what_must_not_happen(watch, tmp_path):
    for harm in (lambda: os.system("true"), lambda: open(tmp_path / "new", "w").close()):
        watch.on = True
        harm()
        watch.on = False
        assert watch.seen
        watch.seen.clear()


def test_any_file_is_a_case_or_refused(watch, tmp_path):
    path = tmp_path / "fuzzed.npz"
    assert check_file(path, WHOLE, watch)
    before, outcomes = peak_gb(), []

    @settings(
        max_examples=60,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(files())
    def try_some(contents):
        outcomes.extend(check_file(path, content, watch) for content in contents)

    try_some()
    assert len(outcomes) > 1000
    assert 10 < sum(outcomes) < 0.9 * len(outcomes)
    assert peak_gb() - before < MAX_GROWTH_GB
