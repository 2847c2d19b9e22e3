"""Every layout of checkpoint, and each message for one that can't be used."""

import argparse
import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ckpt import export
from conftest import TINY, TINY_HYBRID
from seeded import DATA, published_weights
from segment_anything import sam_model_registry3D
from segment_anything.bounds import AdaptiveSettings
from utils.inference.checkpoint import (
    BOX_EMBEDDINGS,
    CheckpointError,
    adaptive_settings,
    build_model,
    read_checkpoint,
)
from utils.inference.published import CHECKPOINT_ORDER, PUBLISHED, find_checkpoint

META = {"model_args": TINY}


def save(path, content):
    torch.save(content, path)
    return path


def load(path):
    return build_model(read_checkpoint(path))


def is_equal(a, b) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


LAYOUTS = {
    "model_state_dict": lambda weights: META | {"model_state_dict": weights},
    "state_dict": lambda weights: META | {"state_dict": weights},
    "bare": lambda weights: META | weights,
    "module prefix": lambda weights: (
        META | {"model_state_dict": {f"module.{key}": value for key, value in weights.items()}}
    ),
    "compiled and wrapped": lambda weights: (
        META
        | {"state_dict": {f"module._orig_mod.model.{key}": value for key, value in weights.items()}}
    ),
    "Lightning": lambda weights: (
        META
        | {
            "epoch": 3,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": {f"net.{key}": value for key, value in weights.items()},
            "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": None}},
            "hyper_parameters": {"lr": np.float64(1e-4), "sizes": np.array([3, 4])},
        }
    ),
    "numbers of numpy": lambda weights: (
        META
        | {
            "model_state_dict": weights,
            "best_loss": np.float64(0.31),
            "losses": [np.float32(0.5), np.int64(4), np.bool_(True)],
            "history": np.linspace(0, 1, 20).reshape(4, 5),
            "none": np.zeros((0, 3)),
        }
    ),
    "training state": lambda weights: (
        META
        | {
            "epoch": 3,
            "model_state_dict": weights,
            "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 1e-4}]},
            "losses": [1.0, 0.5],
            "args": argparse.Namespace(lr=1e-4, task_name="x"),
            "used_datas": ["a", "b"],
        }
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False])
def test_layouts_of_pth_files(layout, zipped, tmp_path, tiny_model):
    path = tmp_path / "model.pth"
    content = LAYOUTS[layout](tiny_model.state_dict())
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    model = load(path)
    assert is_equal(model, tiny_model) and not model.training


def test_safetensors_with_metadata_that_is_no_object(tmp_path, tiny_model):
    from safetensors.torch import save_file

    save_file(tiny_model.state_dict(), tmp_path / "odd.safetensors", {"sam_med3d": "[]"})
    with pytest.raises(CheckpointError, match="its metadata sam_med3d is .*, expected an object"):
        read_checkpoint(tmp_path / "odd.safetensors")


def test_safetensors_with_its_metadata_and_half_precision(tmp_path, tiny_model):
    from safetensors.torch import save_file

    weights = {key: value.half().contiguous() for key, value in tiny_model.state_dict().items()}
    metadata = {"sam_med3d": json.dumps({"model_args": TINY, "policy": "other"})}
    save_file(weights, tmp_path / "model.safetensors", metadata)
    checkpoint = read_checkpoint(tmp_path / "model.safetensors")
    assert checkpoint.policy == "other"
    model = build_model(checkpoint)
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, weights[key].float())


def test_exported_weights_are_the_same_but_for_their_precision(tmp_path, tiny_hybrid):
    content = META | {"model_type": "hybrid_s", "model_args": TINY_HYBRID, "policy": "adaptive"}
    content |= {"policy_args": {"roi_factor": 1.6}, "optimizer_state_dict": {"lr": 1.0}}
    source = save(tmp_path / "run.pth", content | {"model_state_dict": tiny_hybrid.state_dict()})
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        assert export.main(export.get_args_parser().parse_args([str(source), str(file)])) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].stat().st_size < 0.6 * 4 * sum(p.numel() for p in tiny_hybrid.parameters())
    checkpoint = read_checkpoint(files[0])
    assert (checkpoint.policy, checkpoint.policy_args) == ("adaptive", {"roi_factor": 1.6})
    weights = build_model(checkpoint).state_dict()
    for key, value in tiny_hybrid.state_dict().items():
        torch.testing.assert_close(weights[key], value, rtol=1e-3, atol=1e-6)
    options = [str(source), str(tmp_path / "c.safetensors"), "--iou-line", "0.5", "0.4"]
    assert export.main(export.get_args_parser().parse_args(options)) == 0
    settings = adaptive_settings(read_checkpoint(tmp_path / "c.safetensors"))
    assert settings == AdaptiveSettings(roi_factor=1.6, iou_slope=0.5, iou_intercept=0.4)


def test_a_checkpoint_from_before_boxes_is_exported_with_their_embeddings(
    tmp_path, tiny_model, capsys
):
    weights = {k: v for k, v in tiny_model.state_dict().items() if k not in BOX_EMBEDDINGS}
    old, new = tmp_path / "old.pth", tmp_path / "new.pth"
    save(old, META | {"model_state_dict": weights, "optimizer_state_dict": {"lr": 1.0}})
    assert export.main(export.get_args_parser().parse_args([str(old), str(new)])) == 0
    assert "old.pth: 2 point embeddings (made before boxes)" in capsys.readouterr().out
    checkpoint = read_checkpoint(new)
    assert checkpoint.notices == [] and build_model(checkpoint)
    assert checkpoint.state_dict.keys() == tiny_model.state_dict().keys()
    for name, value in checkpoint.state_dict.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, weights.get(name, torch.zeros_like(value)))
    assert "optimizer_state_dict" not in torch.load(new, weights_only=True)


@pytest.mark.parametrize(
    "target, message",
    [
        ("old.safetensors", "exists, expected the name of a new file"),
        ("new.bin", "expected the name of a .safetensors or .pth file"),
    ],
)
def test_what_can_not_be_exported(target, message, tmp_path, tiny_checkpoint, capsys):
    (tmp_path / "old.safetensors").write_bytes(b"mine")
    options = [str(tiny_checkpoint), str(tmp_path / target)]
    assert export.main(export.get_args_parser().parse_args(options)) == 1
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["old.safetensors"]


def test_weights_beyond_float16_are_not_exported_as_such(tmp_path, tiny_model, capsys):
    weights = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    weights["image_encoder.pos_embed"][0, 0, 0, 0, 0] = 1e5
    source = save(tmp_path / "large.pth", META | {"model_state_dict": weights})
    options = [str(source), str(tmp_path / "small.safetensors")]
    assert export.main(export.get_args_parser().parse_args(options)) == 1
    assert "large.pth: expected weights within float16's range" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["large.pth"]


def test_two_embeddings_get_corners_at_zero_with_a_notice(tmp_path, tiny_model):
    weights = {k: v for k, v in tiny_model.state_dict().items() if k not in BOX_EMBEDDINGS}
    checkpoint = read_checkpoint(save(tmp_path / "old.pth", META | {"state_dict": weights}))
    assert "2 point embeddings" in checkpoint.notices[0]
    model = build_model(checkpoint)
    for name in BOX_EMBEDDINGS:
        assert not model.state_dict()[name].any()


def test_a_published_file_loads_strictly(tmp_path):
    weights = published_weights()
    path = save(tmp_path / "sam_med3d_turbo_cvpr_coreset.pth", {"model_state_dict": weights})
    model = load(path)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_a_mismatch_names_the_tensors(tmp_path, tiny_model):
    weights = tiny_model.state_dict()
    del weights["mask_decoder.iou_token.weight"]
    weights["extra.weight"] = torch.zeros(1)
    weights["image_encoder.pos_embed"] = torch.zeros(1, 2, 2, 2, 48)
    path = save(tmp_path / "wrong.pth", META | {"model_state_dict": weights})
    with pytest.raises(CheckpointError) as info:
        load(path)
    assert str(info.value) == (
        "wrong.pth: tensors do not fit the network. 1 missing: mask_decoder.iou_token.weight; "
        "1 unexpected: extra.weight; 1 misshapen: image_encoder.pos_embed (expected "
        "(1, 4, 4, 4, 48), got (1, 2, 2, 2, 48))"
    )


def test_many_mismatches_are_counted(tmp_path, tiny_model):
    path = save(tmp_path / "wrong.pth", {"model_state_dict": tiny_model.state_dict()})
    with pytest.raises(CheckpointError, match="missing: .*, and [0-9]+ more; "):
        load(path)  # the weights of a tiny network for the full-size one


class Evil:
    def __reduce__(self):
        return os.system, (f"touch {Evil.marker}",)


def test_a_checkpoint_that_would_run_code_is_refused_and_not_run(tmp_path, tiny_model):
    Evil.marker = tmp_path / "marker"
    content = META | {"model_state_dict": tiny_model.state_dict(), "x": Evil()}
    path = save(tmp_path / "evil.pth", content)
    with pytest.raises(CheckpointError, match="evil.pth: refused, .* would run code: .*system$"):
        read_checkpoint(path)
    assert not Evil.marker.exists()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("text.pth", b"hello", "text.pth: not a PyTorch checkpoint, but a text"),
        ("a.pth", b"", "a.pth: not a PyTorch checkpoint, but an empty file"),
        ("a.pth", b"<!DOCTYPE html><html>sign in</html>" * 9, "checkpoint, but a web page"),
        ("a.pth", b"\n <html>" * 90, "not a PyTorch checkpoint, but a web page"),
        ("a.safetensors", b"<html></html>", "not a safetensors file, but a web page"),
        ("a.pth", b"\xef\xbb\xbf<html>" * 9, "checkpoint, but a web page"),
        ("a.pth", b"Access denied", "checkpoint, but a text that begins with 'Access denied'"),
        ("a.pth", b"\x1f\x8b\x08" + bytes(50), "checkpoint, but a gzip file"),
        ("a.pth", b'{"error": "Entry not found"}', "checkpoint, but a JSON text"),
        (
            "a.pth",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:11\nsize 402\n",
            "not a PyTorch checkpoint, but a pointer of Git LFS",
        ),
        ("empty.pth", b"", "empty.pth: not a PyTorch checkpoint"),
        ("text.safetensors", b"hello", "text.safetensors: not a safetensors file"),
    ],
)
def test_other_files_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    "content, message",
    [
        ([1, 2], "expected a dict, got list"),
        ({"model_type": [1], "a": torch.zeros(1)}, "expected model_type as str, got .1."),
        ({"epoch": 3}, "expected named tensors, got keys .'epoch'."),
        ({"model_type": "vit_x", "state_dict": {"a": torch.zeros(1)}}, "a model_type of .*'vit_x'"),
        ({"model_args": {"img_size": 30}, "state_dict": {"a": torch.zeros(1)}}, "model_args do no"),
        ({"model_args": {"wings": 2}, "state_dict": {"a": torch.zeros(1)}}, "model_args do not"),
    ],
)
def test_content_that_is_no_checkpoint(content, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        load(save(tmp_path / "model.pth", content))


def test_two_networks_in_a_file_are_not_mixed(tmp_path):
    for first, second in (("model.a", "net.a"), ("module.a", "a")):
        path = save(
            tmp_path / "two.pth", {"state_dict": {first: torch.ones(2), second: torch.ones(2)}}
        )
        with pytest.raises(CheckpointError, match="expected one network, got two tensors a"):
            read_checkpoint(path)


def test_no_damaged_checkpoint_fails_otherwise(tmp_path, tiny_model):
    """With bytes changed in the pickles of both formats; and metadata that are too deep."""
    rng, small = np.random.default_rng(0), {"state_dict": {"a": torch.ones(3)}, "epoch": 3}
    for zipped in (True, False):
        path = tmp_path / "a.pth"
        torch.save(small, path, _use_new_zipfile_serialization=zipped)
        content = path.read_bytes()
        for _ in range(300):
            broken = bytearray(content)
            for _ in range(rng.integers(1, 4)):
                broken[rng.integers(len(broken))] = rng.integers(256)
            path.write_bytes(broken)
            try:
                read_checkpoint(path)
            except CheckpointError as error:
                assert "load" not in str(error) and len(str(error)) < 400
    deep = {"sam_med3d": "[" * 100_000}
    save_file({"a": torch.ones(2)}, tmp_path / "deep.safetensors", metadata=deep)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_checkpoint(tmp_path / "deep.safetensors")


def test_truncated_checkpoint(tmp_path, tiny_checkpoint):
    path = tmp_path / "part.pth"
    path.write_bytes(tiny_checkpoint.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match="part.pth: "):
        read_checkpoint(path)


def test_loading_initialises_nothing(tiny_checkpoint, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("initialised a tensor")

    for name in ("_no_grad_uniform_", "_no_grad_normal_"):
        monkeypatch.setattr(torch.nn.init, name, fail)
    load(tiny_checkpoint)
    with pytest.raises(AssertionError):
        sam_model_registry3D["vit_b_ori"](**TINY)


def test_order_of_checkpoints(tmp_path):
    assert find_checkpoint(tmp_path) is None
    for name in reversed(CHECKPOINT_ORDER):
        (tmp_path / name).touch()
        assert find_checkpoint(tmp_path) == tmp_path / name
    assert set(PUBLISHED) < set(CHECKPOINT_ORDER)


def test_medim_creates_the_network_with_four_embeddings(tiny_checkpoint, tiny_model):
    import medim

    from utils.inference.medim_backend import register_medim

    register_medim()
    model = medim.create_model("SAM-Med3D", pretrained=True, checkpoint_path=str(tiny_checkpoint))
    assert is_equal(model, tiny_model)
    assert set(BOX_EMBEDDINGS) < set(model.state_dict())
    fresh = medim.create_model("SAM-Med3D", **TINY)
    assert fresh.state_dict().keys() == tiny_model.state_dict().keys()
    with pytest.raises(ValueError, match="a checkpoint sets the sizes itself"):
        medim.create_model("SAM-Med3D", pretrained=True, checkpoint_path="x", depth=3)


@pytest.mark.slow
def test_medims_network_gives_the_same_segmentation():
    """The whole pipeline on an independent implementation, full size."""
    from pathlib import Path

    from utils.formats.case import read_case
    from utils.inference.baseline import predict_baseline
    from utils.inference.checkpoint import Checkpoint
    from utils.inference.medim_backend import build_medim_model

    checkpoint = Checkpoint(Path("seeded"), published_weights())
    case = read_case(DATA / "infer" / "small_volume_padded.npz")
    ours = predict_baseline(build_model(checkpoint), case)
    theirs = predict_baseline(build_medim_model(checkpoint), case)
    assert (ours != theirs).mean() < 1e-4
    assert np.unique(ours).tolist() == [0, 1, 2]
