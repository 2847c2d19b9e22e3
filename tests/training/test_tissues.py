"""What CT shows of tissues by their names."""

import numpy as np
import pytest
import torch

from utils.training import tissues
from utils.training.fields import RandomFields
from utils.training.tissues import AIR, FAT, is_known, painted_ct, tissue_of, windowed

SIDE = 24


def fields_of(seed=0):
    return RandomFields(seed, SIDE, torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("left_renal_pelvis", "renal_pelvis"),
        ("Pelvis", "bone"),
        ("right_renal_artery", "artery"),
        ("portal_vein_and_superior_mesenteric_vein", "portal"),
        ("superior_mesenteric_artery", "artery"),
        ("right_hepatic_vein", "vein"),
        ("right_kidney", "kidney"),
        ("L2-L1-IntervertebralDisc", "disc"),
        ("Lumbar1", "bone"),
        ("patellar_ligament", "tendon"),
        ("femoral_cartilage", "cartilage"),
        ("left_adrenal_gland", "adrenal"),
        ("urinary_bladder", "gallbladder"),
        ("stomach_and_duodenum", "stomach"),
        ("tibialis_anterior", "muscle"),
        ("lung_vessels", "vein"),
        ("iliac_vena_left", "vein"),
        ("atrial_appendage_left", "vein"),
        ("thoracolumbar_fascia", "fascia"),
        ("left_hip", "bone"),
        ("clavicle", "bone"),
    ],
)
def test_a_name_tells_the_tissue(name, words):
    assert words in tissue_of(name).words


def test_what_no_name_tells_is_not_painted():
    assert tissue_of("left_putamen") is tissue_of("hippocampus") is tissue_of("") is None
    assert is_known({1: "liver", 2: "putamen"}) and not is_known({1: "liver", 2: "a", 3: "b"})
    assert not is_known({})


def painted(seed, names, shape=SIDE):
    labels = torch.zeros(SIDE, SIDE, SIDE, dtype=torch.int64)
    width = SIDE // (len(names) + 1)
    for i, label in enumerate(names):
        labels[2:-2, 2:-2, i * width : (i + 1) * width] = label
    body = torch.ones_like(labels, dtype=torch.bool)
    body[0] = False
    return labels, painted_ct(fields_of(seed), labels, names, body)


def test_tissues_have_their_grey_values():
    names = {1: "liver", 2: "psoas", 3: "aorta"}
    found = []
    for seed in range(30):
        labels, image = painted(seed, names)
        assert (image[0] == AIR).all() and image.isfinite().all()
        assert image[1:][labels[1:] == 0].median() == pytest.approx(FAT, abs=25)
        found.append([float(image[labels == label].mean()) for label in names])
    liver, muscle, aorta = np.transpose(found)
    assert 40 < liver.mean() < 110 and 45 < muscle.mean() < 75
    assert aorta.max() > 200 and aorta.min() < 80  # by the phase


def test_bones_have_a_hard_shell_and_bowels_a_content():
    shells, spreads = [], []
    for seed in range(8):
        labels, image = painted(seed, {1: "femur", 2: "colon"})
        core = (slice(6, -6), slice(6, -6), slice(3, 5))
        shells.append(float(image[2, 2:-2, 0:8].mean() - image[core].mean()))
        spreads.append(float(image[labels == 2].std()))
    assert min(shells) > 100 and np.median(spreads) > 30


def test_a_window_shows_from_0_to_1(monkeypatch):
    monkeypatch.setattr(tissues, "WINDOW_JITTER", 0.0)
    monkeypatch.setattr(tissues, "WINDOW_SHARES", (1.0, 0.0, 0.0))
    seen = windowed(fields_of(), torch.tensor([-1000.0, -160, 40, 240, 3000]))
    torch.testing.assert_close(seen, torch.tensor([0.0, 0, 0.5, 1, 1]))
