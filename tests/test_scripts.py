"""The scripts of bench/, data/ and ckpt/: each answers --help, and each benchmark runs to its end.

Benchmarks run in this process, on volumes and networks so small that their figures mean nothing.
"""

import os
import resource
import runpy
import subprocess
import sys
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import infer
from bench import (
    bench_adaptive,
    bench_encoder,
    bench_evaluate,
    bench_infer,
    bench_memory,
    bench_prompts,
    bench_quality,
    bench_serve,
    bench_train,
    classical,
    common,
    compare_results,
    draw_samples,
    fuzz_dicom,
    fuzz_reader,
    odd_files,
)
from conftest import ROOT, SHAPE, TINY_HYBRID, case_arrays
from runs import write_native_cases
from scans import write_series, written
from utils.evaluation.protocol import play
from utils.evaluation.report.folder import Folder
from utils.evaluation.report.results import collect, write_segs
from utils.evaluation.report.slices import cut_slices
from utils.formats.case import read_case, read_labelled_case
from utils.inference.published import SMALL
from utils.runtime.memory import peak_gb

SCRIPTS = [
    path
    for folder in ("bench", "data", "ckpt")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "__main__" in path.read_text()
]
TINY = ("--tiny", "--repeats", "1")


def is_ours(path: str | None) -> bool:
    """Whether a file or folder is the repository's; an environment may lie in its .venv."""
    inside = Path(path or sys.prefix).resolve()
    return inside.is_relative_to(ROOT) and not inside.is_relative_to(Path(sys.prefix).resolve())


def our_modules() -> dict[str, ModuleType]:
    return {
        name: module
        for name, module in list(sys.modules.items())
        if is_ours(getattr(module, "__file__", None))
    }


@pytest.fixture
def as_alone(monkeypatch):
    """The modules and the path of a new interpreter: none of the repository."""
    ours = our_modules()
    for name in ours:
        del sys.modules[name]
    elsewhere = [path for path in sys.path if path and not is_ours(path)]
    monkeypatch.setattr(sys, "path", elsewhere)
    yield
    for name in our_modules():
        del sys.modules[name]
    sys.modules.update(ours)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_each_script_answers_help(script, as_alone, monkeypatch, capsys):
    """As `python SCRIPT --help`, but that other packages are imported already."""
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    sys.path.insert(0, str(script.parent))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {script.name}")


def infer_here(script: str | Path, *options: str | Path) -> tuple[float, float]:
    """As `run_process` for infer.py, in this process; other commands are not run."""
    if Path(script).name == "infer.py":
        with suppress(SystemExit):  # --help
            args = infer.get_args_parser().parse_args(list(map(str, options)))
            assert infer.main(args) == 0
    return 2.0, 0.5


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a benchmark in this process -> the tables that it prints, as rows of cells."""
    for module in (bench_adaptive, bench_evaluate, bench_infer, bench_memory):
        monkeypatch.setattr(module, "run_process", infer_here)
    for module in (bench_encoder, bench_train):
        monkeypatch.setattr(module, "in_new_process", lambda function, *args: function(*args))
    threads = torch.get_num_threads()

    def call(module, *options: str | Path) -> list[list[list[str]]]:
        args = module.get_args_parser().parse_args(list(map(str, options)))
        assert not module.main(args)
        return tables(capsys.readouterr().out)

    yield call
    torch.set_num_threads(threads)


def tables(text: str) -> list[list[list[str]]]:
    """The Markdown tables in a text, without their headers."""
    found: list[list[list[str]]] = []
    width = 0
    lines = text.splitlines()
    for line, after in zip_longest(lines, lines[1:], fillvalue=""):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if after.startswith("|---"):
            found.append([])
            width = len(cells)
        elif line.startswith("| "):
            assert len(cells) == width, line
            found[-1].append(cells)
    return found


@pytest.fixture
def small_checkpoint(tmp_path, tiny_hybrid) -> Path:
    """A tiny network of the kind that the repository ships."""
    path = tmp_path / "tiny.pth"
    content = dict(model_state_dict=tiny_hybrid.state_dict(), model_args=TINY_HYBRID)
    torch.save(content | {"model_type": "hybrid_s", "policy": "adaptive"}, path)
    return path


@pytest.fixture
def labelled(tmp_path) -> Path:
    """A folder with one case, whose truth is in its boxes."""
    gts = np.zeros(SHAPE, np.uint8)
    gts[2:7, 3:9, 4:11], gts[0:3, 0:14, 11:18] = 1, 2
    folder = tmp_path / "inputs"
    folder.mkdir()
    np.savez_compressed(folder / "case.npz", **case_arrays(gts=gts))
    return folder


def test_encoders_agree(run):
    ((row,),) = run(bench_encoder, *TINY)
    assert row[:2] == ["1", "fp32"] and float(row[-1]) < 1e-4


def test_training_steps_agree(run, monkeypatch):
    sizes = {"VmRSS": 1.0, "VmHWM": 1.5}  # so small a step may need no more than was free
    monkeypatch.setattr(common, "resident", sizes.__getitem__)
    monkeypatch.setattr(bench_train, "keep_freed_memory", lambda: None)  # would last
    monkeypatch.setattr(bench_train, "NETWORKS", {"medim": "theirs", "saving": "ours"})
    steps, preprocessing, samples = run(bench_train, *TINY)
    assert [row[0] for row in steps] == ["theirs", "ours"]
    assert all(float(row[-1]) < 1e-5 for row in steps)
    assert len(preprocessing) == 3 and len(samples) == 2


def test_stages_are_those_of_inference(run):
    processes, batches, stages = run(bench_infer, *TINY)
    assert batches[0][:2] == ["1", "fp32"]
    assert [row[2] for row in processes] == ["2.0 s, 0.5 GB", "2.00 s"]
    names = ["read", "crop + resample", "normalise", "encode", "decode", "upscale", "paste"]
    assert [row[0] for row in stages] == ["load checkpoint", *names, "write"]


def test_adaptive_runs(run, monkeypatch, tmp_path, labelled, small_checkpoint):
    monkeypatch.setattr(bench_adaptive, "ROOT", tmp_path)
    monkeypatch.setattr(bench_adaptive, "PRECISIONS", ("fp32",))  # bf16 takes seconds on a CPU
    options = ("--objects", "1", "--checkpoint", small_checkpoint)
    nuclei, processes, clicks = run(bench_adaptive, *TINY, *options)
    assert nuclei[0][:3] == ["hybrid_s, trained", "fp32", "1"]
    assert len(nuclei[0][-1].split()) == 6
    assert processes == [["case", "2.0 s", "0.5 GB"]]
    assert [row[2] for row in clicks] == ["fine", "coarse"] * 2


def test_each_kind_of_prompt_is_played(run, labelled, small_checkpoint):
    options = ("--cases", labelled, "--checkpoint", small_checkpoint)
    (kinds,) = run(bench_prompts, *options)
    assert [row[0] for row in kinds] == ["box of the object", "one click"]  # it knows no others
    options = ("--cases", labelled, "--checkpoint", ROOT / "ckpt" / SMALL, "--depths")
    depths, kinds = run(bench_prompts, *options)
    assert [row[1] for row in depths] == ["2"] * 3
    assert [float(row[4]) for row in depths] == sorted((float(r[4]) for r in depths), reverse=True)
    assert [row[0] for row in kinds] == list(bench_prompts.KINDS.values())
    for row in kinds:
        assert row[1] == "1" and [cell == "–" for cell in row[2:8]] == [False] * 5 + [
            row[0] == "one click"
        ]
        assert row[8].endswith("% of 10")


def test_prompts_are_asked_all_at_once_too(run, labelled, small_checkpoint):
    options = ("--cases", labelled, "--checkpoint", small_checkpoint, "--at-once")
    (rows,) = run(bench_prompts, *options)
    assert [row[1] for row in rows] == ["one after the other", "at once"] * 2
    assert rows[0][2] == rows[1][2]  # there is one prompt so far


def test_boxes_are_played_with_the_axes_in_every_order(run, labelled, small_checkpoint):
    options = ("--cases", labelled, "--checkpoint", small_checkpoint, "--turns")
    (rows,) = run(bench_prompts, *options)
    assert [row[0] for row in rows][::5] == ["z, y, x", "x, y, z"]
    assert len(rows) == 6 and all(row[1] == "1" for row in rows)


def test_what_a_network_knows_of_its_mistakes(run, labelled, small_checkpoint):
    options = ("--cases", labelled, "--checkpoint", small_checkpoint)
    reliability, clicks = run(bench_quality, *options)
    assert len(reliability) == 11 and sum(int(row[1]) for row in reliability[:-1]) == 12
    assert [row[0] for row in clicks] == list(bench_quality.CHOOSERS)
    assert len({row[2] for row in clicks}) == 1  # the first prompt is the same


def test_a_server_is_timed_and_survives(run, small_checkpoint):
    options = ("--checkpoint", small_checkpoint, "--leases", "3", "--bodies", "40")
    trips, leases = run(bench_serve, *TINY, *options)
    assert [row[0] for row in trips] == ["set_image", "first box", "click", "undo"]
    assert leases[0][0] == "3"


def test_without_cases_no_prompt_is_played(tmp_path, small_checkpoint, capsys):
    args = ["--cases", str(tmp_path / "none"), "--checkpoint", str(small_checkpoint)]
    assert bench_prompts.main(bench_prompts.get_args_parser().parse_args(args)) == 2
    assert "expected cases in" in capsys.readouterr().err


def test_fuzzing_reads_as_many_series_as_asked(capsys):
    fuzz_dicom.main(fuzz_dicom.get_args_parser().parse_args(["--series", "30"]))
    assert capsys.readouterr().out.startswith("30 series in ")


def test_odd_files_are_put_through_infer(tmp_path, capsys):
    files = write_series(tmp_path / "series")
    written(tmp_path / "scan.nii")
    (tmp_path / "cut.nii").write_bytes(b"\x5c\x01")
    assert odd_files.main(odd_files.get_args_parser().parse_args([str(tmp_path)])) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:-2]]
    found = {place.removeprefix(f"{tmp_path.name}/"): outcome for place, outcome in rows}
    size = " x ".join(map(str, SHAPE))
    assert found["scan.nii"].startswith(f"read: {size}, labels 0 mm off at most")
    assert found["series/"].startswith(f"read: {size}")
    assert found["cut.nii"].startswith("refused: expected a whole file")
    assert len(found) == 3 + len(list(files.iterdir())) and lines[-1] == "0 faults"


@pytest.mark.parametrize("of_a_case", [True, False])
def test_the_protocol_runs(run, labelled, of_a_case):
    options = ("--labels", labelled / "case.npz") if of_a_case else ()
    (stages,) = run(bench_evaluate, *TINY, *options)
    assert [row[0] for row in stages[2:]] == [
        "clicks and metrics of six rounds",
        "predictions of all rounds saved",
        "report",
    ]


def test_memory_of_each_kind_of_file(run, monkeypatch, small_checkpoint):
    monkeypatch.setattr(bench_memory, "SMALL", small_checkpoint)
    (rows,) = run(bench_memory, "--shape", "12", "48", "40", "--objects", "1")
    assert [row[0] for row in rows] == ["case.npz", "int16.nii", "float32.nii"]


def test_fuzzing_reads_as_many_files_as_asked(monkeypatch, capsys):
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    fuzz_reader.main(fuzz_reader.get_args_parser().parse_args(["--files", "30"]))
    assert capsys.readouterr().out.startswith("42 files in ")


@pytest.mark.parametrize("method", classical.METHODS)
def test_classical_methods_write_labels(run, tmp_path, labelled, method):
    run(classical, "--method", method, "--inputs", labelled, "--outputs", tmp_path / "out")
    with np.load(tmp_path / "out" / "case.npz") as file:
        assert file["segs"].shape == SHAPE and set(np.unique(file["segs"])) <= {0, 1, 2}


def write_results(folder: Path, path: Path) -> None:
    """What evaluate.py leaves of a case, the stand-in being the method."""
    case = read_labelled_case(path)
    rounds, segs = zip(*play(case, bench_evaluate.predict), strict=True)
    results = Folder(folder)
    results.prepare({}, {}, restart=False)
    write_segs(results.segs(path.name), list(segs), with_all=True)
    result = collect(path.name, case, list(rounds))
    results.finish(result, cut_slices(case, segs[-1], result.typical), "")


def test_results_are_compared(run, tmp_path, labelled):
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        write_results(folder, labelled / "case.npz")
    scores, clicks = run(compare_results, *folders)
    assert [row[2] for row in scores] == ["one", "other"]
    assert [row[3:] for row in scores[:1]] == [row[3:] for row in scores[1:]]
    assert [row[0] for row in clicks] == ["one", "other"]
    assert clicks[0][1].endswith("% of 4") and clicks[0][1:] == clicks[1][1:]


def test_results_of_other_cases_are_refused(tmp_path, labelled, capsys):
    write_results(tmp_path / "one", labelled / "case.npz")
    (labelled / "case.npz").rename(labelled / "odd.npz")
    write_results(tmp_path / "other", labelled / "odd.npz")
    folders = [str(tmp_path / name) for name in ("one", "other")]
    assert compare_results.main(compare_results.get_args_parser().parse_args(folders)) == 2
    assert "got only some of: case.npz, odd.npz" in capsys.readouterr().err


def test_samples_are_drawn(monkeypatch, tmp_path, labelled, tiny_checkpoint):
    truths = tmp_path / "data" / "sample_gts"
    truths.parent.mkdir()
    truths.symlink_to(labelled)
    monkeypatch.setattr(draw_samples, "ROOT", tmp_path)
    options = ["--checkpoint", str(tiny_checkpoint), "--output", str(tmp_path / "samples.png")]
    draw_samples.main(draw_samples.get_args_parser().parse_args(options))
    assert (tmp_path / "samples.png").stat().st_size > 10_000


def test_peak_of_a_process_is_not_that_of_its_parent():
    assert peak_gb() > 0.2  # this one has torch
    seconds, memory = common.run_process("-c", "text = b'a' * 10**8")
    assert 0 < seconds < 60 and 0.09 < memory < 0.15


def test_a_process_that_fails_is_an_error():
    with pytest.raises(RuntimeError, match="exit status 3: -c raise SystemExit"):
        common.run_process("-c", "raise SystemExit(3)")


def test_a_new_process_is_another_one():
    assert common.in_new_process(os.getpid) != os.getpid()


def test_the_case_of_the_benchmarks_is_one(tmp_path):
    common.write_case(tmp_path / "case.npz", (12, 48, 40), (0.5, 0.6, 3.0), objects=2)
    case = read_case(tmp_path / "case.npz")
    assert case.shape == (12, 48, 40) and case.spacing == (3.0, 0.6, 0.5)
    assert all(prompts.box is not None for prompts in case.objects) and len(case.objects) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adaptive", "encoder", "evaluate", "infer", "train"])
def test_benchmarks_run_as_commands(name, tmp_path):
    options = [*TINY, *(("--objects", "2") if name == "adaptive" else ())]
    command = [sys.executable, str(ROOT / "bench" / f"bench_{name}.py"), *options]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert tables(result.stdout)


@pytest.mark.slow
def test_a_gpu_is_measured_with_one_command(tmp_path):
    """Without one: the dry run; what it leaves is what the next one goes on from."""
    data = write_native_cases(tmp_path / "data", 2)
    environment = os.environ | {"PYTHON": sys.executable}

    def measure(out: str, *options: str | Path) -> subprocess.CompletedProcess:
        command = ["bash", ROOT / "bench/gpu.sh", "--dry-run", "--data", data, "--out", out]
        return subprocess.run(
            list(map(str, [*command, *options])),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )

    shapes = tmp_path / "shapes.npz"
    np.savez(shapes, gts=np.ones((30, 30, 30), np.uint8), spacing=np.ones(3))
    more = ("--shapes", shapes, "--synthetic", "2", "--weigh", "data=2")
    first = measure("first", *more)
    assert first.returncode == 0, first.stdout + first.stderr
    encoder, processes, batches, stages, steps, rates = tables(first.stdout)
    assert len(steps) == 4 and rates[0][0] == "4" and float(rates[0][1]) > 0
    assert "skipped" in first.stdout and "FAILED" not in first.stdout
    left = {path.name for path in (tmp_path / "first").iterdir()}
    assert left >= {"table.md", "training.log", "trained.safetensors", "sam_model_latest.pth.00"}
    assert len(left) <= 8 and (tmp_path / "first/table.md").read_text() in first.stdout
    second = measure("second", "--state", tmp_path / "first", "--minutes", "4")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "epochs 1..0" in (tmp_path / "second/training.log").read_text()
    failed = measure("third", "--state", tmp_path / "nowhere.pth", "--minutes", "4")
    assert failed.returncode == 1 and "## FAILED\n\ntraining" in failed.stdout
