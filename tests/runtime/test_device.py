"""Which device is chosen, whose memory is told, and what float32 means there."""

import pytest
import torch

from seeded import randomise, seeded_roi
from segment_anything import sam_model_registry3D
from utils.runtime.device import choose_device
from utils.runtime.memory import peak_gb


@pytest.fixture
def gpus(monkeypatch) -> list[torch.device]:
    """Two GPUs of which the first holds 1 GB and the other 2; the current one comes last."""
    current = [torch.device("cuda", 0)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: (1 + current[-1].index) * 2**30)
    monkeypatch.setattr(torch, "empty", lambda *shape, device: None)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return current


@pytest.mark.parametrize(
    "name, local_rank, expected",
    [
        ("cuda", None, 0),
        ("auto", None, 0),
        ("cuda:1", None, 1),
        ("cuda", "1", 1),
        ("auto", "1", 1),
        ("cuda", "3", 1),  # more processes than GPUs
        ("cuda:0", "1", 0),
    ],
)
def test_the_chosen_gpu_is_the_current_one(name, local_rank, expected, gpus, monkeypatch):
    if local_rank:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    device = choose_device(name)
    assert device == gpus[-1] == torch.device("cuda", expected)
    assert peak_gb("cuda") == 1 + expected


def test_a_cpu_changes_no_gpu(gpus):
    assert choose_device("cpu") == torch.device("cpu") and len(gpus) == 1


@pytest.mark.parametrize("name", ["cuda:77", "gpu", "meta:x"])
def test_a_device_that_is_not_there(name):
    with pytest.raises(ValueError, match=f"--device {name} can't be used: "):
        choose_device(name)


def test_no_cuda_is_said_plainly(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device cuda can't be used: "):
        choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")


@pytest.fixture
def torch_defaults():
    """TF32 as torch has it at its start, before and after."""
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")
    yield
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")


def test_float32_is_not_computed_as_tf32(torch_defaults):
    torch.set_float32_matmul_precision("high")
    choose_device("cpu")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


@torch.no_grad()
def outputs_of(model, device: torch.device) -> list[torch.Tensor]:
    """Logits at ROI size and IoU of a seeded ROI, a click, a corner, and a mask prompt."""
    size, mask_size = model.img_size, model.mask_size
    points = torch.tensor([[[0.3, 0.5, 0.6], [0.1, 0.2, 0.7]]], device=device) * size
    mask = torch.zeros(1, 1, mask_size, mask_size, mask_size, device=device)
    mask[..., : mask_size // 2, : mask_size // 3, : mask_size // 4] = 1
    model = model.to(device)
    embedding = model.encode(seeded_roi(0, size).to(device))
    labels = torch.tensor([[1, 2]], device=device)
    low_res_mask, iou = model.decode(embedding, (points, labels), mask_prompt=mask)
    return [model.upscale(low_res_mask).cpu(), iou.cpu()]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ["vit_s_ori", "hybrid_s"])
def test_float32_on_cuda_agrees_with_the_cpu_as_closely_as_parity_asks(name, torch_defaults):
    model = randomise(sam_model_registry3D[name]())
    expected = outputs_of(model, choose_device("cpu"))
    for actual, wanted in zip(outputs_of(model, choose_device("cuda")), expected, strict=True):
        assert (actual - wanted).abs().max() <= 1e-4
