"""evaluate.py from files to a report, on a tiny network with random weights and on programs."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import evaluate
from conftest import ROOT, SHAPE, as_objects, case_arrays, inclusive_box
from utils.evaluation import protocol
from utils.evaluation.report import page
from utils.evaluation.report.folder import Folder
from utils.evaluation.report.results import grouping

REGIONS = (np.s_[2:7, 3:9, 4:11], np.s_[0:3, 0:14, 11:18])
STAND_IN = f"{sys.executable} {ROOT / 'tests' / 'stand_in.py'}"


def truth(labels: tuple[int, int] = (1, 2)) -> np.ndarray:
    volume = np.zeros(SHAPE, np.uint16)
    for label, region in zip(labels, REGIONS, strict=True):
        volume[region] = label
    return volume


def write_labelled(path: Path, **changes) -> Path:
    """A case of two objects with truth and boxes."""
    boxes = as_objects([inclusive_box([s.start for s in r], [s.stop for s in r]) for r in REGIONS])
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = case_arrays(**{"gts": truth(), "boxes": boxes, **changes})
    np.savez_compressed(path, **arrays)
    return path


@pytest.fixture
def run(tmp_path, capsys):
    """Runs evaluate.py on tmp_path/cases -> (status, stdout, stderr)."""

    def call(*options):
        args = ["--cases", str(tmp_path / "cases"), "--outputs", str(tmp_path / "out")]
        args += [str(option) for option in options]
        status = evaluate.main(evaluate.get_args_parser().parse_args(args))
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def model(tiny_checkpoint) -> list[str]:
    return ["--checkpoint", str(tiny_checkpoint), "--device", "cpu"]


@pytest.fixture
def copied_truth(tmp_path) -> str:
    """A command that answers with the truth, at once."""
    np.savez(tmp_path / "segs.npz", segs=truth().astype(np.uint8))
    return f"cp {tmp_path}/segs.npz outputs/$(ls inputs)"


def rows(path: Path) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


def without_times(found: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if "Time" not in k and k != "seconds"} for row in found]


def evaluate_py(*options, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "evaluate.py"), *map(str, options)]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | variables, capture_output=True, text=True, timeout=300
    )


def test_the_report_of_a_folder(run, model, tmp_path):
    write_labelled(tmp_path / "cases" / "MR" / "MR_Brain" / "b.npz")
    write_labelled(tmp_path / "cases" / "CT" / "CT_<i>" / "a.npz", boxes=None)
    status, out, err = run(*model)
    assert (status, err) == (0, "")
    assert "CT/CT_<i>/a.npz: objects 2, DSC 0." in out
    metrics = rows(tmp_path / "out" / "metrics.csv")
    assert list(metrics[0])[:8] == ["CaseName", "TotalRunningTime"] + [
        f"RunningTime_{i}" for i in range(1, 7)
    ]
    assert [row["CaseName"] for row in metrics] == ["a.npz", "b.npz"]
    assert metrics[0]["DSC_1"] == metrics[0]["RunningTime_1"] == "0.0"
    assert (metrics[0]["num_class"], metrics[0]["runtime_upperbound"]) == ("2", "180")
    objects = rows(tmp_path / "out" / "metrics_objects.csv")
    assert len(objects) == 2 * 5 + 2 * 6
    assert {row["modality"] for row in objects} == {"CT", "MR"}
    for row in metrics:  # the official value is the mean of the objects' values
        own = [o for o in objects if o["CaseName"] == row["CaseName"] and o["round"] == "5"]
        assert np.mean([float(o["DSC"]) for o in own]) == float(row["DSC_Final"])
        assert np.mean([float(o["NSD_official"]) for o in own]) == float(row["NSD_Final"])
    with np.load(tmp_path / "out" / "segs" / "MR" / "MR_Brain" / "b.npz") as file:
        assert sorted(file) == ["all_segs", "segs"]
        assert file["all_segs"].shape == (6, *SHAPE) and file["all_segs"].dtype == np.uint8
        np.testing.assert_array_equal(file["all_segs"][-1], file["segs"])
    html = (tmp_path / "out" / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 2 and html.count("<svg") == 3
    assert "CT_&lt;i&gt;" in html and "CT_<i>" not in html
    linked = re.findall(r"""(?:src|href)=['"]([^'"]{0,20})""", html)
    assert all(link.startswith(("data:", "#")) for link in linked)
    assert "| **CT** | 1 |" in (tmp_path / "out" / "summary.md").read_text()


def test_a_command_gives_the_same_numbers_as_the_network_in_process(
    run, model, tmp_path, monkeypatch
):
    monkeypatch.setattr(protocol, "ROUNDS", 4)  # the command takes seconds to begin
    monkeypatch.chdir(ROOT), monkeypatch.setenv("PYTHON", sys.executable)
    write_labelled(tmp_path / "cases" / "a.npz", boxes=None)
    assert run(*model)[0] == 0
    command = " ".join(["sh predict.sh", *model])
    status, _, err = run("--outputs", tmp_path / "out2", "--command", command)
    assert (status, err) == (0, "")
    for name in ("metrics.csv", "metrics_objects.csv"):
        ours, theirs = (rows(tmp_path / folder / name) for folder in ("out", "out2"))
        assert without_times(ours) == without_times(theirs)


def test_a_command_finds_what_the_official_evaluator_writes(run, tmp_path, monkeypatch):
    path = write_labelled(tmp_path / "cases" / "a.npz", extra=np.arange(3))
    (tmp_path / "gts").mkdir()
    shutil.copy(path, tmp_path / "gts" / "a.npz")
    (tmp_path / "kept").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "method.sh").write_text(
        f"ls inputs outputs > listing; mkdir -p kept/$(ls kept | wc -l)\n"
        f"cp inputs/* kept/$(($(ls kept | wc -l) - 1)); {STAND_IN}\n"
    )
    assert run("--command", "sh method.sh", "--gts", tmp_path / "gts")[0] == 0
    first, *later = [tmp_path / "kept" / str(i) / "a.npz" for i in range(6)]
    assert first.read_bytes() == path.read_bytes()
    with np.load(path, allow_pickle=True) as file:
        boxes = file["boxes"].tolist()
    objects = rows(tmp_path / "out" / "metrics_objects.csv")
    for index, file_path in enumerate(later, 1):
        with np.load(file_path, allow_pickle=True) as file:
            found = {key: file[key] for key in file}
        assert list(found) == "imgs gts spacing clicks clicks_order prev_pred boxes".split()
        np.testing.assert_array_equal(found["imgs"], case_arrays()["imgs"])
        assert (found["gts"].dtype, found["prev_pred"].dtype) == (np.uint16, np.uint8)
        assert found["clicks_order"].shape == (2, index)
        assert found["clicks"].shape == (2,) and found["clicks"].dtype == object
        for i, clicks in enumerate(found["clicks"]):
            order = found["clicks_order"][i].tolist()
            assert [len(clicks["fg"]), len(clicks["bg"])] == [order.count("fg"), order.count("bg")]
            for point in clicks["fg"] + clicks["bg"]:
                assert isinstance(point, list) and [type(v) for v in point] == [np.int64] * 3
            (row,) = (r for r in objects if r["object"] == str(i + 1) and r["round"] == str(index))
            assert row["click"] == (order[-1] or "")
            if order[-1]:
                assert clicks[order[-1]][-1] == [int(row[axis]) for axis in "zyx"]
        assert found["boxes"].tolist() == boxes
    assert not (tmp_path / "listing").exists()  # it was the scratch folder's


def test_what_is_wrong_with_a_prediction_is_named_and_the_run_goes_on(
    run, copied_truth, tmp_path, monkeypatch
):
    for name in "abcde":
        write_labelled(tmp_path / "cases" / f"{name}.npz")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "method.sh").write_text(
        f"""{copied_truth}
        case=$(ls inputs)
        [ $case != b.npz ] || {{ rm outputs/*; echo no memory; exit 7; }}
        [ $case != c.npz ] || echo broken > outputs/c.npz
        [ $case != d.npz ] || {{ sleep 300 & sleep 300; }}
        """
    )
    status, out, err = run("--command", "sh method.sh", "--time-limit", "1.5")
    assert status == 1 and out.count("FAILED in rounds 0, 1, 2, 3, 4, 5") == 3
    out_folder = tmp_path / "out"
    summary = (out_folder / "summary.md").read_text()
    assert "## Predictions that failed and count as empty: 18" in summary
    log = out_folder / "logs" / "b.npz.log"
    assert f"`b.npz`, round 0: no outputs/b.npz, exit status 7; see {log}" in summary
    assert "no memory" in log.read_text()
    assert "`c.npz`, round 3: c.npz: expected a whole .npz (zip) file" in summary
    assert "`d.npz`, round 5: late: the limit for 2 objects is 3 s" in summary
    finals = {row["CaseName"]: float(row["DSC_Final"]) for row in rows(out_folder / "metrics.csv")}
    assert finals["a.npz"] == finals["e.npz"] > 0.9
    assert finals["b.npz"] == finals["c.npz"] == finals["d.npz"] == 0
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert "sleep 300" not in running


def test_a_case_that_cannot_be_evaluated_is_named_and_tried_again(run, model, tmp_path):
    write_labelled(tmp_path / "cases" / "CT_Good_1.npz")
    write_labelled(tmp_path / "cases" / "CT_Bad_1.npz", gts=None)
    boxes = as_objects([inclusive_box((0, 0, 0), (3, 3, 3))])
    write_labelled(tmp_path / "cases" / "CT_Bad_2.npz", boxes=boxes)
    status, out, err = run(*model)
    assert status == 1 and "CT_Good_1.npz: objects 2" in out
    assert err.splitlines() == [
        "NOT EVALUATED CT_Bad_1.npz: CT_Bad_1.npz: expected gts, got none",
        "NOT EVALUATED CT_Bad_2.npz: CT_Bad_2.npz: expected 2 boxes, one per label, got 1",
    ]
    assert "expected gts, got none" in (tmp_path / "out" / "report.html").read_text()
    assert len(rows(tmp_path / "out" / "metrics.csv")) == 1
    write_labelled(tmp_path / "cases" / "CT_Bad_1.npz")
    (tmp_path / "cases" / "CT_Bad_2.npz").unlink()
    assert run(*model)[0] == 0
    assert "Not evaluated" not in (tmp_path / "out" / "report.html").read_text()


def test_finished_cases_are_not_computed_again(run, model, tmp_path, monkeypatch):
    for name in "ab":
        write_labelled(tmp_path / "cases" / f"{name}.npz")
    assert run(*model)[0] == 0
    before = rows(tmp_path / "out" / "metrics.csv")
    write_labelled(tmp_path / "cases" / "b.npz", gts=truth()[::-1].copy())
    asked = []

    def predict_baseline(model, case, **options):
        asked.append(case.name)
        return np.zeros(case.shape, np.uint8)

    monkeypatch.setattr("utils.inference.method.predict_baseline", predict_baseline)
    assert run(*model)[0] == 0
    after = rows(tmp_path / "out" / "metrics.csv")
    assert before[0] == after[0] and before[1] != after[1] and asked == ["b.npz"] * 6
    assert run(*model, "--restart")[0] == 0
    assert asked == ["b.npz"] * 6 + ["a.npz"] * 6 + ["b.npz"] * 6


def test_results_of_other_settings_are_not_mixed(run, model, tmp_path, monkeypatch):
    write_labelled(tmp_path / "cases" / "a.npz")
    assert run(*model, "--seed", "1")[0] == 0
    status, _, err = run(*model, "--seed", "2")
    assert status == 2 and "holds results of another seed: 1, now it is 2" in err
    assert run(*model, "--seed", "2", "--restart")[0] == 0


@pytest.mark.parametrize(
    ("changed", "is_stale"),
    [
        ("utils/formats/case.py", True),
        ("utils/inference/method.py", True),
        ("utils/evaluation/protocol.py", True),
        ("utils/runtime/device.py", True),
        ("utils/options.py", True),
        ("utils/new_room/new.py", True),
        ("segment_anything/predictor3D.py", True),
        ("segment_anything/modeling/sam3D.py", True),
        ("utils/evaluation/report/results.py", True),
        ("utils/evaluation/report/slices.py", True),
        ("utils/evaluation/report/page.py", False),
        ("utils/training/epoch.py", False),
        ("utils/data_paths.py", False),
        ("README.md", False),
    ],
)
def test_results_are_stale_where_code_that_they_depend_on_changed(changed, is_stale, tmp_path):
    root = tmp_path / "report" / "training"  # names of folders above say nothing
    for folder in ("utils", "segment_anything"):
        shutil.copytree(ROOT / folder, root / folder)
    before = evaluate.hash_code(root)
    assert before == evaluate.hash_code(ROOT)
    (root / changed).parent.mkdir(exist_ok=True)
    with open(root / changed, "a") as file:
        file.write("#")
    assert (evaluate.hash_code(root) != before) == is_stale


def test_what_results_depend_on_imports_nothing_else():
    for source in [*ROOT.glob("utils/**/*.py"), *ROOT.glob("segment_anything/**/*.py")]:
        if not source.relative_to(ROOT).as_posix().startswith(evaluate.NOT_HASHED):
            text = source.read_text()
            for path in evaluate.NOT_HASHED:
                name = path.removesuffix(".py").strip("/").replace("/", ".")
                assert f"from {name}" not in text and f"import {name}" not in text, source


@pytest.mark.parametrize("save", ["final", "none"])
def test_saving_is_switchable(save, run, model, tmp_path):
    write_labelled(tmp_path / "cases" / "a.npz")
    assert run(*model, "--save", save)[0] == 0
    path = tmp_path / "out" / "segs" / "a.npz"
    assert path.exists() == (save == "final")
    if save == "final":
        with np.load(path) as file:
            assert list(file) == ["segs"]


def test_labels_may_skip_numbers_and_lie_in_another_folder(run, model, tmp_path):
    write_labelled(tmp_path / "cases" / "CT" / "CT_A" / "a.npz")
    assert run(*model)[0] == 0
    before = rows(tmp_path / "out" / "metrics_objects.csv")
    write_labelled(tmp_path / "cases" / "CT" / "CT_A" / "a.npz", gts=None)
    write_labelled(tmp_path / "gts" / "a.npz", gts=truth((7, 300)), imgs=None, boxes=None)
    assert run(*model, "--gts", tmp_path / "gts")[0] == 0
    after = rows(tmp_path / "out" / "metrics_objects.csv")
    assert {row["label"] for row in after} == {"7", "300"}
    for row in before + after:
        row.pop("label")
    assert without_times(before) == without_times(after)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--command", "true", "--seed", "3"], "--seed: with --command, give it to the command"),
        (["--time-limit", "-1"], "--time-limit: expected 0 or more, got -1"),
        (["--gts", "/nowhere"], "--gts /nowhere: expected a folder"),
        (["--checkpoint", "/nowhere.pth"], "/nowhere.pth"),
        (["--outputs", "CASES/out"], "expected a folder outside of --cases"),
        (["--cases", "/nowhere"], "no cases: expected .npz files in /nowhere"),
    ],
)
def test_options_that_cannot_be_used(options, message, run, tmp_path):
    write_labelled(tmp_path / "cases" / "a.npz")
    options = [option.replace("CASES", str(tmp_path / "cases")) for option in options]
    status, out, err = run(*options)
    assert status == 2 and message in err and "Traceback" not in err


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, tiny_checkpoint) -> tuple[Path, list[str]]:
    """Folder of cases, one of them broken, and of their results; options to evaluate them again."""
    folder = tmp_path_factory.mktemp("one_process")
    for name in "abc":
        write_labelled(folder / "cases" / f"{name}.npz")
    write_labelled(folder / "cases" / "d.npz", boxes=None)
    (folder / "cases" / "e.npz").write_bytes(b"PK")
    options = ["--cases", str(folder / "cases"), "--checkpoint", str(tiny_checkpoint)]
    options += ["--device", "cpu"]
    parser = evaluate.get_args_parser()
    assert evaluate.main(parser.parse_args([*options, "--outputs", str(folder / "out")])) == 1
    return folder / "out", options


@pytest.mark.parametrize("launcher", ["jobs", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_two_processes_give_what_one_does(launcher, one_process, tmp_path):
    out, options = one_process
    options = [*options, "--outputs", str(tmp_path)]
    if launcher == "jobs":
        finished = evaluate_py(*options, "--jobs", "2")
        assert finished.returncode == 1
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", "2", str(ROOT / "evaluate.py"), *options]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert finished.stdout.count("objects 2") == 4, finished.stderr
    assert finished.stderr.count("NOT EVALUATED e.npz") == 1
    for name in ("metrics.csv", "metrics_objects.csv"):
        one, two = (rows(folder / name) for folder in (out, tmp_path))
        assert without_times(one) == without_times(two) and len(one) >= 4
    for name in "abcd":
        one, two = (np.load(folder / "segs" / f"{name}.npz") for folder in (out, tmp_path))
        np.testing.assert_array_equal(one["all_segs"], two["all_segs"])


def test_a_killed_process_does_not_stop_the_others(run, copied_truth, tmp_path):
    for name in "abcd":
        write_labelled(tmp_path / "cases" / f"{name}.npz")
    (tmp_path / "method.sh").write_text(
        f"[ ! -e {tmp_path}/kill ] || [ ! -e inputs/c.npz ] || kill -9 $PPID\n{copied_truth}\n"
    )
    (tmp_path / "kill").touch()
    command = f"exec sh {tmp_path}/method.sh"
    options = ["--cases", tmp_path / "cases", "--outputs", tmp_path / "out", "--command", command]
    killed = evaluate_py(*options, "--jobs", "2")
    assert killed.returncode == 1 and "died of signal 9" in killed.stderr
    assert sorted(os.listdir(tmp_path / "out" / "records")) == ["a.npz", "b.npz", "d.npz"]
    (tmp_path / "kill").unlink()
    status, out, err = run("--command", command)
    assert (status, err) == (0, "") and out.count("objects 2") == 4
    assert len(rows(tmp_path / "out" / "metrics.csv")) == 4


def test_sigterm_stops_the_command_and_leaves_no_half_result(tmp_path):
    write_labelled(tmp_path / "cases" / "a.npz")
    started = tmp_path / "started"
    command = f"touch {started}; sleep 301"
    options = ["--cases", tmp_path / "cases", "--outputs", tmp_path / "out", "--command", command]
    process = subprocess.Popen([sys.executable, ROOT / "evaluate.py", *map(str, options)])
    while not started.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 128 + 15
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert "sleep 301" not in running
    assert not list((tmp_path / "out").rglob("*.npz"))


def test_a_damaged_record_is_computed_again(run, model, tmp_path):
    write_labelled(tmp_path / "cases" / "a.npz")
    assert run(*model)[0] == 0
    record = tmp_path / "out" / "records" / "a.npz"
    record.write_bytes(record.read_bytes()[:-40])
    assert Folder(tmp_path / "out").finished("a.npz") is None
    assert run(*model)[0] == 0 and Folder(tmp_path / "out").finished("a.npz") is not None


def test_run_json_says_what_the_results_depend_on(run, model, tmp_path):
    write_labelled(tmp_path / "cases" / "a.npz")
    assert run(*model)[0] == 0
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    assert set(settings) == set("time_limit checkpoint policy seed precision backend code".split())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MR/MR_Heart/case_1.npz", ("MR", "MR_Heart")),
        ("CT_AMOS/CT_AMOS_amos_0018.npz", ("CT", "CT_AMOS")),
        ("CT_AMOS_amos_0018.npz", ("CT", "CT_AMOS")),
        ("MR_BraTS-T1c_bratsgli_0017.npz", ("MR", "MR_BraTS-T1c")),
        ("eval_boxes.npz", ("other", "other")),
        ("mine/case.npz", ("other", "mine")),
    ],
)
def test_modality_and_dataset(name, expected):
    assert grouping(name) == expected


def test_the_interval_of_a_mean():
    assert page.interval(np.array([0.5])) is None
    assert page.interval(np.full(5, 0.5)) == (0.5, 0.5)
    values = np.random.default_rng(0).normal(size=400)
    low, high = page.interval(values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)
