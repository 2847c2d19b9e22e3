"""The network against values of the original, against medim's, and against itself."""

import copy

import numpy as np
import pytest
import torch
from medim.models.sam_med3d import ImageEncoderViT3D as MedimEncoder

from conftest import TINY
from seeded import DATA, published_shapes, randomise, seeded_roi
from segment_anything import sam_model_registry3D
from segment_anything.modeling.image_encoder3D import Attention, ImageEncoderViT3D
from utils.inference.checkpoint import build_empty

GOLDEN = np.load(DATA / "golden_model_seed0.npz")
PROMPT_SETS = sorted({key.split("/")[0] for key in GOLDEN.files if "/" in key})


def golden(key: str) -> torch.Tensor | None:
    return torch.from_numpy(GOLDEN[key]) if key in GOLDEN.files else None


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    assert actual.shape == expected.shape
    return (actual - expected).abs().max().item() if actual.numel() else 0.0


@pytest.fixture(scope="module")
def embedding(seeded_model):
    with torch.no_grad():
        return seeded_model.encode(seeded_roi(0))


def test_names_and_shapes_are_those_of_the_published_checkpoint():
    model = build_empty(sam_model_registry3D["vit_b_ori"])
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert shapes == published_shapes()
    assert sum(p.numel() for p in model.image_encoder.parameters()) == pytest.approx(92.9e6, 1e-3)


def test_image_embedding_equals_the_original(embedding):
    assert error(embedding[0], golden("image_embedding")) <= 1e-4


def test_dense_positions_swap_the_first_two_axes_as_the_original(seeded_model):
    dense_pe = seeded_model.prompt_encoder.get_dense_pe()[0]
    assert error(dense_pe, golden("dense_pe")) <= 1e-4
    assert error(dense_pe, dense_pe.transpose(1, 2)) > 0.1  # a swap would show


@pytest.mark.parametrize("name", PROMPT_SETS)
@torch.no_grad()
def test_prompts_and_masks_equal_the_original(name, seeded_model, embedding):
    coords = golden(f"{name}/in_coords")
    points = None if coords is None else (coords, golden(f"{name}/in_labels"))
    boxes, masks = golden(f"{name}/in_boxes"), golden(f"{name}/in_mask")
    sparse, dense = seeded_model.prompt_encoder(points, boxes, masks)
    assert error(sparse, golden(f"{name}/sparse")) <= 1e-4

    low_res_mask, iou = seeded_model.decode(embedding, points, boxes, masks)
    assert error(low_res_mask, golden(f"{name}/low_res_masks")) <= 1e-4
    assert error(iou, golden(f"{name}/iou")) <= 1e-4

    image_pe = seeded_model.prompt_encoder.get_dense_pe()
    multi, iou = seeded_model.mask_decoder(embedding, image_pe, sparse, dense, True)
    assert error(multi[..., ::4, ::4, ::4], golden(f"{name}/low_res_multi_stride4")) <= 1e-4
    assert error(iou, golden(f"{name}/iou_multi")) <= 1e-4


def medim_encoder(**sizes) -> torch.nn.Module:
    norm = {"norm_layer": lambda dim: torch.nn.LayerNorm(dim, eps=1e-6), "use_rel_pos": True}
    return MedimEncoder(**sizes, **norm)


# One padded window; windows of 3, 3 and 2 tokens; windows that fit exactly.
@pytest.mark.parametrize("window, img_size", [(6, 32), (3, 64), (4, 64)])
def test_encoder_and_its_gradients_equal_medims(window, img_size):
    sizes = dict(img_size=img_size, patch_size=8, embed_dim=24, depth=3, num_heads=2)
    sizes |= dict(out_chans=12, window_size=window, global_attn_indexes=(1,))
    ours = randomise(ImageEncoderViT3D(**sizes))
    theirs = medim_encoder(**sizes)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 1, *[img_size] * 3, generator=torch.Generator().manual_seed(0))
    outputs, gradients = [], []
    for encoder in (ours, theirs):
        out = encoder(x)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        outputs.append(out.detach())
        gradients.append({name: p.grad for name, p in encoder.named_parameters()})
    assert error(*outputs) <= 1e-4
    for name, gradient in gradients[1].items():
        scale = gradient.abs().max().item()
        assert error(gradients[0][name], gradient) <= 1e-4 * max(scale, 1.0), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_within_two_percent(dtype, tiny_model):
    x = seeded_roi(0, size=32)
    with torch.no_grad():
        exact = tiny_model.encode(x)
        with torch.autocast("cpu", dtype):
            low = tiny_model.encode(x)
    assert (low.float() - exact).norm() / exact.norm() <= 0.02
    assert low.isfinite().all()


def test_the_weight_of_the_padding_is_not_rounded():
    """Its logit is about log(14^3 - 8^3) = 7.7, which bf16 would move by up to 0.03."""
    attention = randomise(Attention(dim=16, num_heads=2, side=14))
    q = torch.randn(1, 2, 8, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        bias = attention.position_bias(q, torch.zeros(1, 2, 1, 8))
    exact, rounded = (b.double().softmax(dim=-1)[..., -1] for b in (bias, bias.bfloat16()))
    assert 0.5 < exact.mean() < 0.9
    assert (rounded - exact).abs().mean() <= 3e-4  # 27e-4 with that logit in the last column


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_equals_cpu(precision, tiny_model):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    x = seeded_roi(0, size=32)
    model = copy.deepcopy(tiny_model).cuda()
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    with torch.no_grad():
        exact = tiny_model.encode(x)
        with torch.autocast("cuda", dtype, enabled=dtype is not None):
            actual = model.encode(x.cuda()).float().cpu()
    assert (actual - exact).norm() / exact.norm() <= (1e-3 if dtype is None else 0.02)


@torch.no_grad()
def test_a_batch_equals_its_items_one_by_one(tiny_model):
    x = torch.cat([seeded_roi(seed, size=32) for seed in range(3)])
    points = torch.tensor([[[3.0, 5, 7]], [[30, 2, 16]], [[8, 9, 10]]])
    labels = torch.tensor([[1], [0], [1]])
    masks = torch.randn(3, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    together, _ = tiny_model.decode(tiny_model.encode(x), (points, labels), mask_prompt=masks)
    for i in range(3):
        prompt = (points[i : i + 1], labels[i : i + 1])
        embedding = tiny_model.encode(x[i : i + 1])
        alone, _ = tiny_model.decode(embedding, prompt, mask_prompt=masks[i : i + 1])
        assert error(together[i : i + 1], alone) <= 1e-5


@torch.no_grad()
def test_one_embedding_serves_many_prompts(tiny_model):
    embedding = tiny_model.encode(seeded_roi(0, size=32))
    boxes = torch.tensor([[1.0, 2, 3, 9, 9, 9], [4, 4, 4, 30, 20, 10]])
    together, iou = tiny_model.decode(embedding, boxes=boxes)
    assert together.shape == (2, 1, 16, 16, 16) and iou.shape == (2, 1)
    alone, _ = tiny_model.decode(embedding, boxes=boxes[1:])
    assert error(together[1:], alone) <= 1e-5
    assert error(together[:1], together[1:]) > 1e-3


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="num_heads 5 divides embed_dim 48"):
        sam_model_registry3D["vit_b_ori"](**(TINY | {"num_heads": 5}))
