"""The checkpoint that comes with the repository: the file that its card describes, and its work."""

import hashlib

import numpy as np
import pytest

import infer
from conftest import ROOT
from utils.evaluation.protocol import play, timed_predictor
from utils.formats.case import read_labelled_case
from utils.inference import load
from utils.inference.checkpoint import adaptive_settings, build_model, read_checkpoint
from utils.inference.method import make_segmenter
from utils.inference.published import SMALL, SMALL_SHA256

PATH = ROOT / "ckpt" / SMALL
MAX_BYTES = 16_000_000
# Mean DSC after the box and after 5 clicks; a little below what ckpt/README.md says.
STATED = {
    "CT_LungTumour_pyradiomics.npz": (0.86, 0.885),
    "MR_Brain_colin27.npz": (0.76, 0.86),
}


def test_the_file_is_the_one_of_its_card():
    content = PATH.read_bytes()
    assert len(content) <= MAX_BYTES
    assert hashlib.sha256(content).hexdigest() == SMALL_SHA256
    assert SMALL_SHA256 in (ROOT / "ckpt/README.md").read_text("utf-8")
    assert adaptive_settings(read_checkpoint(PATH)).drawings


@pytest.mark.parametrize("name", STATED)
def test_the_samples_are_segmented_as_stated(name):
    labelled = read_labelled_case(ROOT / "inputs" / name, ROOT / "data/sample_gts" / name)
    checkpoint = read_checkpoint(PATH)
    segment = make_segmenter(
        build_model(checkpoint), checkpoint.policy, adaptive_settings(checkpoint)
    )
    rounds = [played for played, _ in play(labelled, timed_predictor(segment), threads=2)]
    assert not any(played.failure for played in rounds)
    curve = [played.scores[:, 0].mean() for played in rounds]
    first, last = STATED[name]
    assert curve[0] >= first and curve[-1] >= last


def test_it_is_used_where_there_is_no_other_and_says_so(tmp_path, monkeypatch, capsys):
    (tmp_path / SMALL).symlink_to(PATH)
    monkeypatch.setattr(load, "CKPT_DIR", tmp_path)
    name = "CT_LungTumour_pyradiomics.npz"
    args = ["--inputs", str(ROOT / "inputs" / name), "--outputs", str(tmp_path / "outputs")]
    assert infer.main(infer.get_args_parser().parse_args([*args, "--device", "cpu"])) == 0
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{SMALL}: the small network of this repository")
    assert "python ckpt/download.py sam_med3d_turbo_cvpr_coreset" in first
    assert second == f"{SMALL}: local network, adaptive policy, fp32 on cpu"
    with np.load(tmp_path / "outputs" / name) as file:
        assert file["segs"].any()
    args += ["--checkpoint", str(PATH), "--device", "cpu"]
    assert infer.main(infer.get_args_parser().parse_args(args)) == 0
    assert "small network" not in capsys.readouterr().out
