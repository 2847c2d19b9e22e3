"""The small network: what its prompts look like, and that its parts fit the others' interfaces."""

import pytest
import torch
import torch.nn.functional as F

from conftest import TINY_HYBRID
from segment_anything import sam_model_registry3D
from segment_anything.modeling.hybrid3D import DensePromptEncoder3D, Doubling3D, pixel_shuffle3d
from segment_anything.modeling.sam3D import join_embeddings, split_embedding

ENCODER = DensePromptEncoder3D(6, img_size=32, grid=4)  # draws in voxels of twice the ROI's


def draw(points, labels, **prompts):
    _, drawn = ENCODER((torch.tensor([points]), torch.tensor([labels])), **prompts)
    assert drawn.shape == (1, 4, 16, 16, 16)
    return drawn[0]


def test_clicks_are_drawn_where_they_are():
    foreground, background, box, mask = draw([[4.5, 10.5, 20.5], [30.0, 2.0, 7.0]], [1, 0])
    assert foreground[2, 5, 10] == foreground.max() == 1
    assert foreground[2, 5, 11] == foreground[3, 5, 10] == pytest.approx(0.6065, abs=1e-4)
    at = torch.unravel_index(background.argmax(), background.shape)
    assert [int(i) for i in at] == [15, 1, 3]
    assert not box.any() and not mask.any()


def test_clicks_of_one_kind_do_not_add_up():
    twice, *_ = draw([[4.5, 10.5, 20.5], [4.5, 10.5, 20.5]], [1, 1])
    once, *_ = draw([[4.5, 10.5, 20.5]], [1])
    torch.testing.assert_close(twice, once)


def test_padding_is_not_drawn():
    assert not draw([[4.0, 10.0, 20.0]], [-1]).any()


def test_a_box_is_drawn_as_the_share_of_each_voxel_inside():
    *_, box, _ = draw([[4.0, 10.0, 20.0], [9.0, 14.0, 20.0]], [2, 3])  # voxels 4..9, 10..14, 20
    assert box.sum() * 8 == pytest.approx(6 * 5 * 1)
    assert box[2, 5, 10] == 0.5 and box[4, 7, 10] == 0.25  # half of x; half of x and y
    assert not box[1].any() and not box[5].any() and not box[:, :, 11].any()


def test_boxes_and_their_corners_as_points_are_the_same():
    box = torch.tensor([[4.0, 10.0, 20.0, 9.0, 14.0, 25.0]])
    expected = draw([[4.0, 10.0, 20.0], [9.0, 14.0, 25.0]], [2, 3])
    _, drawn = ENCODER(boxes=box)
    torch.testing.assert_close(drawn[0], expected)
    with_click = draw([[5.0, 11.0, 21.0]], [1], boxes=box)
    torch.testing.assert_close(with_click[2], expected[2])
    assert with_click[0].max() > 0.8


def test_a_mask_is_drawn_as_the_share_of_each_voxel_inside():
    mask = torch.zeros(2, 1, 32, 32, 32)
    mask[0, 0, 4:7, 6:8, 10:12] = 1
    sparse, drawn = ENCODER(masks=mask)
    assert sparse.shape == (2, 0, 1) and not drawn[:, :3].any() and not drawn[1].any()
    assert drawn[0, 3, 2:4, 3, 5].tolist() == [1.0, 0.5] and drawn[0, 3].sum() == 1.5


def test_nothing_that_is_drawn_is_too_small_for_a_normal_float():
    drawn = draw([[4.5, 10.5, 20.5], [30.0, 2.0, 7.0]], [1, 0])
    assert drawn[drawn > 0].min() > torch.finfo(torch.float32).tiny


def test_doubling_is_a_transposed_convolution():
    doubling, x = Doubling3D(3, 5), torch.randn(2, 3, 2, 3, 4)
    weight = doubling.linear.weight.view(2, 2, 2, 5, 3).permute(4, 3, 0, 1, 2)
    expected = F.conv_transpose3d(x, weight, stride=2) + pixel_shuffle3d(
        doubling.linear.bias.view(1, -1, 1, 1, 1).expand(2, -1, *x.shape[2:])
    )
    torch.testing.assert_close(doubling(x), expected)


@torch.no_grad()
def test_a_batch_equals_its_samples_and_one_image_serves_all_prompts(tiny_hybrid):
    images = torch.randn(2, 1, 32, 32, 32)
    points, labels = 32 * torch.rand(2, 3, 3), torch.tensor([[2, 3, 1], [0, 1, -1]])
    masks = (torch.randn(2, 1, 32, 32, 32) > 0).float()
    embedding = tiny_hybrid.encode(images)
    together, iou = tiny_hybrid.decode(embedding, (points, labels), mask_prompt=masks)
    assert together.shape == (2, 1, 32, 32, 32) and iou.shape == (2, 1)
    for i, alone in enumerate(split_embedding(embedding)):
        prompts = (points[i : i + 1], labels[i : i + 1])
        logits, _ = tiny_hybrid.decode(alone, prompts, mask_prompt=masks[i : i + 1])
        torch.testing.assert_close(logits, together[i : i + 1], atol=1e-4, rtol=1e-4)
    both, _ = tiny_hybrid.decode(alone, (points, labels), mask_prompt=masks)
    torch.testing.assert_close(both[1:], together[1:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["tiny_hybrid", "tiny_model"])
@torch.no_grad()
def test_embeddings_split_and_join(name, request):
    model = request.getfixturevalue(name)
    embedding = model.encode(torch.randn(2, 1, 32, 32, 32))
    parts = split_embedding(embedding)
    assert len(parts) == 2
    torch.testing.assert_close(join_embeddings(parts), embedding, atol=0, rtol=0)


def test_every_weight_gets_a_gradient(tiny_hybrid):
    embedding = tiny_hybrid.encode(torch.randn(1, 1, 32, 32, 32))
    points = (32 * torch.rand(1, 3, 3), torch.tensor([[2, 3, 1]]))
    logits, iou = tiny_hybrid.decode(embedding, points)
    (logits.square().sum() + iou.square().sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in tiny_hybrid.parameters())
    tiny_hybrid.zero_grad()


def test_it_is_small():
    model = sam_model_registry3D["hybrid_s"]()
    assert sum(p.numel() for p in model.parameters()) < 6e6
    assert model.img_size == 64 and model.mask_size == 64


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="img_size 36 is a multiple of 8"):
        sam_model_registry3D["hybrid_s"](**TINY_HYBRID | {"img_size": 36})
