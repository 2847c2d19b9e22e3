"""Whole runs of the adaptive recipe."""

import json

import numpy as np
import pytest
import torch

from conftest import TINY_HYBRID
from runs import (
    NATIVE_SPACING,
    content_of,
    native_volumes,
    numbers,
    train,
    train_in_own_process,
    write_native_cases,
    write_val_case,
)
from segment_anything import sam_model_registry3D
from segment_anything.bounds import AdaptiveSettings
from train import get_args_parser
from utils.formats.prepared import write_prepared
from utils.inference.checkpoint import adaptive_settings, read_checkpoint
from utils.training.options import options_of
from utils.training.state import check_resumed

OPTIONS = ("--recipe=adaptive", "--others_lr=1", "--synthetic=2", "--optimizer=muon")
OPTIONS += ("--roi_factor=1.6",)
TRAINED = {"drawings": True, "clipped": True, "second_look": True}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("ckpt") / "tiny.pth"
    model = sam_model_registry3D["hybrid_s"](**TINY_HYBRID)
    content = {"model_type": "hybrid_s", "model_args": TINY_HYBRID}
    torch.save(content | {"model_state_dict": model.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, weights):
    folder = tmp_path_factory.mktemp("work")
    val = write_val_case(folder / "val/MR/MR_Some")
    data = write_native_cases(folder / "data", 3)
    result = train(weights, data, folder, *OPTIONS, "--val_cases", str(val))
    assert result.returncode == 0, result.stderr
    return folder


def test_a_checkpoint_says_how_it_is_to_be_used(finished):
    checkpoint = read_checkpoint(finished / "run/sam_model_latest.pth")
    assert checkpoint.policy == "adaptive" and checkpoint.model_type == "hybrid_s"
    assert adaptive_settings(checkpoint) == AdaptiveSettings(1.6, **TRAINED)
    assert checkpoint.model_args["img_size"] == 32 and checkpoint.policy_args == {
        "roi_factor": 1.6,
        "roi_spacing": 1.5,
        "normalisation": "zscore",
        "drawings": True,
        "clipped": True,
        "second_look": True,
        "iou_slope": 1.0,
        "iou_intercept": 0.0,
    }
    assert 0 <= content_of(finished)["log"][-1]["val_DSC_Final"] <= 1


def test_a_run_goes_on_to_the_same_losses_with_its_settings(finished, weights, tmp_path):
    """Without their options; and a run that begins from its weights has them, too."""
    data = finished / "data"
    assert train(weights, data, tmp_path, *OPTIONS, "--num_epochs=1").returncode == 0
    plain = (*OPTIONS[:-1], "--num_epochs=2")
    result = train(weights, data, tmp_path, *plain, "--resume")
    assert result.returncode == 0, result.stderr
    assert numbers(tmp_path) == numbers(finished)
    assert content_of(tmp_path)["policy_args"]["roi_factor"] == 1.6
    begun = finished / "run/sam_model_latest.pth"
    result = train(begun, data, tmp_path / "more", *plain, "--roi_spacing=2")
    assert result.returncode == 0, result.stderr
    checkpoint = read_checkpoint(tmp_path / "more/run/sam_model_latest.pth")
    assert adaptive_settings(checkpoint) == AdaptiveSettings(1.6, 2.0, **TRAINED)


def test_a_run_of_another_recipe_is_not_resumed(finished, weights):
    result = train(weights, finished / "data", finished, "--resume")
    assert result.returncode == 2 and "the run is of --recipe adaptive" in result.stderr
    result = train(weights, finished / "data", finished, "--recipe=adaptive", "--resume")
    assert result.returncode == 2 and "the run is of --optimizer muon" in result.stderr


def test_other_samples_do_not_go_on_within_an_epoch():
    def options(*given):
        args = get_args_parser().parse_args(["--recipe=adaptive", *given])
        return options_of(args) | {"processes": 1}

    saved = options()
    # Before there were these options.
    older = {k: v for k, v in saved.items() if k not in ("synthetic", "shapes", "weigh")}
    for args in (saved, older):
        content = {"args": args, "step": 3}
        check_resumed(content, options(), "hybrid_s", 32)
        with pytest.raises(ValueError, match="within an epoch of synthetic 0"):
            check_resumed(content, options("--synthetic=4"), "hybrid_s", 32)
        with pytest.raises(ValueError, match="within an epoch of weigh None"):
            check_resumed(content, options("--weigh", "data=2"), "hybrid_s", 32)
        check_resumed(content | {"step": 0}, options("--synthetic=4"), "hybrid_s", 32)


def test_label_maps_and_factors_are_used_and_recorded(finished, weights, tmp_path):
    shapes = tmp_path / "maps/some.npz"
    shapes.parent.mkdir()
    names = json.dumps({"4": "liver", "9": "aorta"})
    _, gts = native_volumes()
    np.savez(shapes, gts=gts, spacing=np.array(NATIVE_SPACING[::-1]), names=np.array(names))
    given = ("--shapes", str(shapes.parent), str(shapes), "--weigh", "data=2")
    data = finished / "data"
    result = train(weights, data, tmp_path, *OPTIONS, *given)
    assert result.returncode == 0, result.stderr
    saved = content_of(tmp_path)["args"]
    assert saved["shapes"] == [str(shapes.parent), str(shapes)] and saved["weigh"] == [["data", 2]]
    for wrong, message in (
        (("--weigh", "date=2"), "expected factors for data, got date"),
        (("--shapes", str(data / "0.npz"), str(tmp_path / "no.npz")), "No such file"),
    ):
        result = train(weights, data, tmp_path / "wrong", *OPTIONS, *wrong)
        assert result.returncode == 2 and message in result.stderr
    with pytest.raises(SystemExit):
        get_args_parser().parse_args(["--weigh", "data=0"])


@pytest.mark.parametrize(
    "option", ["synthetic=2", "roi_factor=2", "roi_spacing=2", "shapes=maps", "weigh=data=2"]
)
def test_its_options_need_the_adaptive_recipe(option, weights, finished, tmp_path):
    result = train(weights, finished / "data", tmp_path, f"--{option}")
    assert result.returncode == 2
    assert f"--{option.split('=')[0]}: expected --recipe adaptive, got published" in result.stderr


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_double_batch(weights, tmp_path):
    data = write_native_cases(tmp_path / "data", 3)
    one, two = tmp_path / "one", tmp_path / "two"
    result = train(weights, data, one, *OPTIONS, "--batch_size=2")
    assert result.returncode == 0, result.stderr
    options = (*OPTIONS, "--multi_gpu", "--gpu_ids", "0", "1")
    result = train_in_own_process(weights, data, two, *options)
    assert result.returncode == 0, result.stderr
    # The Dice in the middle is of voxels, of which rounding may turn one.
    np.testing.assert_allclose(numbers(two), numbers(one), rtol=1e-3)
    apart, together = (np.array(numbers(folder))[:, [0, 2]] for folder in (two, one))
    np.testing.assert_allclose(apart, together, rtol=1e-4)


def test_cases_prepared_for_the_published_recipe_stop_a_run(weights, tmp_path):
    """Cases of the published recipe are refused, with what to do."""
    image, gts = native_volumes()
    (tmp_path / "data").mkdir()
    write_prepared(tmp_path / "data/a.npz", image, gts, NATIVE_SPACING, b"")
    result = train(weights, tmp_path / "data", tmp_path, *OPTIONS)
    assert result.returncode == 1 and "prepared with --native" in result.stderr
