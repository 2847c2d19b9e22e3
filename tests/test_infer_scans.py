"""infer.py on scans: what a folder holds, prompts from files and options, formats, previews."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

import infer
from conftest import case_arrays
from scans import image_of, write_series, written
from utils.formats.scan_prompts import join_negative

OBJECTS = {"objects": [{"box": [2, 3, 4, 5, 9, 16]}, {"clicks": [[8, 4, 15, 1], [1, 1, 1, 0]]}]}


@pytest.fixture
def run(tmp_path, tiny_checkpoint, capsys):
    """Runs infer.py on tmp_path/inputs -> (status, stdout, stderr)."""
    (tmp_path / "inputs").mkdir()

    def call(*options: str):
        args = ["--inputs", str(tmp_path / "inputs"), "--outputs", str(tmp_path / "outputs")]
        args += ["--checkpoint", str(tiny_checkpoint), "--policy=adaptive", *options]
        status = infer.main(infer.get_args_parser().parse_args(args))
        return status, *capsys.readouterr()

    return call


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_of_cases_scans_and_series(run, tmp_path):
    folder = tmp_path / "inputs"
    written(folder / "a.nii.gz"), written(folder / "b.nrrd"), written(folder / "lone.mha")
    write_series(folder / "d"), write_series(folder / "without")
    np.savez_compressed(folder / "c.npz", **case_arrays())
    for name in ("a", "b", "d"):
        (folder / f"{name}.json").write_text(json.dumps(OBJECTS))
    status, out, err = run()
    assert status == 1 and names(tmp_path / "outputs") == [
        "a.nii.gz",
        "b.nrrd",
        "c.npz",
        "d.nii.gz",
    ]
    assert err.splitlines() == [
        "FAILED lone.mha: expected prompts in lone.json beside it, or as --box and --click",
        "FAILED without: expected prompts in without.json beside it, or as --box and --click",
        "2 of 6 cases failed: lone.mha, without",
    ]
    assert "a.nii.gz: objects 2, rounds of prompts 3, " in out
    of_a, of_b = (sitk.ReadImage(tmp_path / "outputs" / name) for name in ("a.nii.gz", "b.nrrd"))
    assert of_a.GetPixelID() == sitk.sitkUInt8 and of_a.IsSameImageGeometryAs(
        image_of(), 1e-5, 1e-5
    )
    np.testing.assert_array_equal(*map(sitk.GetArrayFromImage, (of_a, of_b)))
    assert set(np.unique(sitk.GetArrayFromImage(of_a))) <= {0, 1, 2}


def test_what_the_user_may_not_expect_is_told(run, tmp_path):
    scan = written(tmp_path / "inputs/scan.nii.gz")
    scan.with_name("scan.json").write_text(json.dumps(OBJECTS))
    status, out, _ = run("--box=2,3,4,5,9,16", "--object", "--click=1,1,1,0")
    assert status == 0 and "scan.json is not read, as there are --prompts, --box or --click" in out
    assert "scan.nii.gz: nothing found of object 2\n" in out  # a background click alone
    scan.write_bytes(scan.read_bytes()[:-20])
    status, _, err = run()
    note = "(scan.nii.gz in --outputs is of an earlier run)"
    assert status == 1 and f"one that is cut off or damaged {note}\n" in err


def test_labels_without_a_preview_are_not_of_an_earlier_run(run, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no font")

    monkeypatch.setattr("utils.inference.preview.draw_preview", fail)
    scan = written(tmp_path / "inputs/scan.nii.gz")
    scan.with_name("scan.json").write_text(json.dumps(OBJECTS))
    status, _, err = run("--preview")
    assert status == 1 and names(tmp_path / "outputs") == ["scan.nii.gz"]
    assert "FAILED scan.nii.gz: no font\n" in err and "earlier run" not in err


def test_outputs_never_replace_what_links_lead_to(run, tmp_path):
    scan = written(tmp_path / "scan.nii.gz")
    (tmp_path / "inputs/scan.nii.gz").symlink_to(scan)
    content = scan.read_bytes()
    status, _, err = run("--click=1,2,3,1", "--outputs", str(tmp_path))
    assert status == 2 and "holds scan.nii.gz itself" in err and scan.read_bytes() == content
    series = write_series(tmp_path / "series")
    options = ("--click=1,2,3,1", "--inputs", str(series), "--outputs", str(series))
    status, _, err = run(*options)
    assert status == 2 and "holds series itself" in err


def test_names_of_any_kind(run, tmp_path):
    long = "a" * 240
    for stem in (long, "c$^$", "x y'\n%s"):
        written(tmp_path / f"inputs/{stem}.nii").with_suffix(".json").write_text(
            json.dumps(OBJECTS)
        )
    status, _, err = run("--preview")
    assert (status, err) == (0, "")
    expected = [f"{stem}{end}" for stem in (long, "c$^$", "x y'\n%s") for end in (".nii", ".png")]
    assert names(tmp_path / "outputs") == sorted(expected)


def test_negative_numbers_follow_an_option(run, tmp_path):
    joined = join_negative(["--click", "-1.5,2,3,1", "--window", "-600,1500", "--inputs", "-a"])
    assert joined == ["--click=-1.5,2,3,1", "--window=-600,1500", "--inputs", "-a"]
    assert join_negative(["--box=1", "-1,2"]) == ["--box=1", "-1,2"]


def test_options_prompt_as_the_file_does(run, tmp_path):
    scan = written(tmp_path / "inputs/scan.nii.gz")
    scan.with_name("scan.json").write_text(json.dumps(OBJECTS))
    assert run()[0] == 0
    expected = (tmp_path / "outputs/scan.nii.gz").read_bytes()
    scan.with_name("scan.json").unlink()
    prompts = ["--box=2,3,4,5,9,16", "--object", "--click=8,4,15,1", "--click=1,1,1,0"]
    assert run("--outputs", str(tmp_path / "by_options"), *prompts)[0] == 0
    assert (tmp_path / "by_options/scan.nii.gz").read_bytes() == expected
    mm = [f"--click={','.join(map(str, p[::-1]))},1" for p in ((-70.5, 30.25, 11.0),)]
    status, out, _ = run("--space=lps", "--output-format=nrrd", "--window=100,800", *mm)
    assert status == 0 and (tmp_path / "outputs/scan.nrrd").is_file()


def test_a_series_alone(run, tmp_path):
    write_series(tmp_path / "inputs")
    (tmp_path / "inputs/readme.txt").write_text("from the scanner")
    status, out, err = run("--click", "3,4,15,1", "--preview")
    assert (status, err) == (0, "")
    assert names(tmp_path / "outputs") == ["inputs.nii.gz", "inputs.png"]


def test_what_is_not_clear_is_refused_at_once(run, tmp_path):
    folder = tmp_path / "inputs"
    written(folder / "scan.nii.gz")
    written(folder / "scan.nrrd")
    status, _, err = run()
    assert status == 2 and "scan.nii.gz and scan.nrrd would be written to one name" in err
    shutil.move(folder / "scan.nrrd", folder / "other.nrrd")
    status, _, err = run("--click=1,2,3,1")
    assert (
        status == 2
        and "--box, --click: expected one scan, no .npz case, got other.nrrd, scan.nii.gz" in err
    )
    np.savez_compressed(folder / "case.npz", **case_arrays())
    for options, message in (
        (["--window=lung"], "--window: expected a scan, got .npz cases alone"),
        (["--output-format=mha"], "--output-format: expected a scan, got .npz cases alone"),
        (["--space=lps"], "--space lps: expected --box or --click, got none"),
        (["--inputs=nowhere.nii"], "--inputs nowhere.nii: no such file or folder"),
    ):
        status, _, err = run("--inputs", str(folder / "case.npz"), *options)
        assert (status, err) == (2, f"{message}\n")
    status, _, err = run("--click=1,2,3,1", "--inputs", str(folder / "case.npz"))
    assert status == 2 and "got case.npz" in err and not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--box=1,2,3", "a box: expected 6 numbers"),
        ("--click=1,2,3", "a click: expected 4 numbers"),
        ("--click=1,2,x,1", "could not convert string to float"),
        ("--click=1,2,3,nan", "a click: expected 4 numbers"),
        ("--window=liver", "expected abdomen, lung, brain, bone or LEVEL,WIDTH in HU, got 'liver'"),
        ("--window=40,-400", "LEVEL,WIDTH in HU"),
        ("--space=mm", "invalid choice"),
    ],
)
def test_options_that_mean_nothing(option, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        infer.get_args_parser().parse_args([option])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_a_file_of_prompts_elsewhere_is_for_scans_and_cases(run, tmp_path):
    prompts = tmp_path / "mine.json"
    prompts.write_text(json.dumps(OBJECTS))
    arrays = case_arrays()
    np.savez_compressed(tmp_path / "inputs/case.npz", **arrays)
    status, out, err = run(f"--prompts={prompts}")
    assert status == 0 and "objects 2, rounds of prompts 3" in out, err
    one = np.load(tmp_path / "outputs/case.npz")["segs"]
    for key in ("boxes", "clicks", "clicks_order"):
        arrays.pop(key, None)
    np.savez_compressed(tmp_path / "inputs/case.npz", **arrays)
    assert run(f"--prompts={prompts}")[0] == 0  # it needs none of its own
    np.testing.assert_array_equal(np.load(tmp_path / "outputs/case.npz")["segs"], one)
    prompts.write_text(json.dumps({"window": "lung", **OBJECTS}))
    assert "expected no window for an .npz case" in run(f"--prompts={prompts}")[2]
    written(tmp_path / "inputs/scan.nii.gz")
    status, _, err = run(f"--prompts={prompts}")
    assert status == 2 and "--prompts: expected one scan or case and no other, got 2" in err


def test_drawings_need_a_network_that_knows_them(run, tmp_path):
    written(tmp_path / "inputs/scan.nii.gz")
    drawn = {"objects": [{"drawings": [{"box": [3, 3, 4, 4, 9, 16]}]}]}
    (tmp_path / "inputs/scan.json").write_text(json.dumps(drawn))
    for policy in ("adaptive", "baseline"):
        status, _, err = run(f"--policy={policy}")
        assert status == 1 and "got drawings, for which a network is needed" in err
