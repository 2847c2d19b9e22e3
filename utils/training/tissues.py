"""What tissues look like in CT, by the names of their labels.

Hounsfield units as radiology's textbooks give them, rounded: without contrast agent, and at its
arterial and portal venous phase. What a label is comes from the words in its name.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.training.clicks import squared_depth
from utils.training.fields import RandomFields

FAT, AIR = -100.0, -1000.0  # Hounsfield units of what lies between the objects, and around them
KNOWN = 0.5  # of a map's names at least, for it to be painted as CT
WALL = 2  # voxels, of hollow organs and of the hard shell of bones
PHASE = (0.6, 1.2)  # of the agent's full effect
# Width and level of the challenge's windows of soft tissue, bone and chest; how often each is used.
WINDOWS = ((400, 40), (1800, 400), (1500, -160))
WINDOW_SHARES = (0.8, 0.1, 0.1)
WINDOW_JITTER = 0.15  # of the width, of both
KINDS = ("", "hollow", "bone")
CONTENTS = (-850.0, 10.0, 60.0, 250.0)  # of the bowel: gas, water, food, oral contrast agent


class Tissue(NamedTuple):
    """Hounsfield units of a tissue.

    Attributes:
        words: A regular expression; the first tissue of TISSUES in whose name it is found counts.
        native: Without contrast agent,
        arterial: in the arterial phase,
        portal: in the portal venous phase.
        spread: One standard deviation, from patient to patient.
        kind: One of KINDS: hollow organs have a wall and contents, bones a hard shell.
    """

    words: str
    native: float
    arterial: float
    portal: float
    spread: float
    kind: str = ""


TISSUES = (
    Tissue("disc|meniscus", 80, 80, 85, 15),
    Tissue("cartilage|costal", 100, 100, 105, 25),
    Tissue("tendon|ligament|tract", 90, 90, 95, 15),
    Tissue("nerve|spinal_cord|plexus", 35, 35, 40, 8),
    Tissue("muscle|psoas|iliacus|glute|erector|autochthon|tibialis|fascia", 55, 60, 65, 8),
    Tissue("artery|arteries|aorta|trunk", 40, 320, 150, 25),
    Tissue("portal|mesenteric_vein|splenic_vein", 40, 90, 175, 20),
    Tissue("vein|vena|cava|vessel|atrium|atrial|ventricle_of_heart", 40, 100, 150, 20),
    Tissue("renal_pelvis|ureter", 8, 10, 25, 15),
    Tissue("adrenal", 20, 55, 70, 12),
    Tissue("kidney", 32, 150, 180, 20),
    Tissue("gallbladder|bladder|cyst", 10, 10, 12, 8),
    Tissue("pancreas", 40, 100, 90, 15),
    Tissue("spleen", 48, 130, 120, 12),
    Tissue("liver|hepatic", 56, 70, 110, 12),
    Tissue("stomach|duodenum|colon|bowel|ileum|jejunum|intestine|rectum", 40, 65, 85, 15, "hollow"),
    Tissue("esophagus|oesophagus", 38, 50, 65, 10),
    Tissue("lung", -830, -820, -820, 40),
    Tissue("trachea|bronch|airway", -980, -980, -980, 10),
    Tissue("heart|myocard", 45, 110, 110, 12),
    Tissue("thyroid", 110, 200, 170, 20),
    Tissue("prostate|uterus|ovary|seminal", 40, 60, 80, 12),
    Tissue(
        "(?<![a-z])(bone|femur|tibia|fibula|patella|hip(?![a-z])|pelvis|sacrum|vertebra|thoracic|lumbar|"
        "cervical|intervertebral|coccyx|rib|sternum|scapula|clavic|humerus|ulna|radius|skull|"
        "mandible)",
        220,
        220,
        230,
        80,
        "bone",
    ),
    Tissue("fat", FAT, FAT, FAT, 10),
)


def tissue_of(name: str) -> Tissue | None:
    """The tissue that a label's name tells, None if it tells none."""
    return next((tissue for tissue in TISSUES if re.search(tissue.words, name.lower())), None)


def is_known(names: Mapping[int, str]) -> bool:
    """Whether enough of the names tell a tissue, to paint a map as CT."""
    found = sum(tissue_of(name) is not None for name in names.values())
    return bool(names) and found >= KNOWN * len(names)


def painted_ct(
    fields: RandomFields, labels: Tensor, names: Mapping[int, str], body: Tensor
) -> Tensor:
    """What a CT shows of a map, before blur and noise.

    Args:
        fields: Decides phase, patient and contents.
        labels: (N, N, N) from 0 on.
        names: Of the labels; those that tell no tissue are some soft one.
        body: (N, N, N) bool, outside of which there is air.

    Returns:
        (N, N, N) float32 Hounsfield units.
    """
    phase, effect = fields.integer(0, 2), fields.uniform(*PHASE)
    count = int(labels.max()) + 1
    greys = fields.numbers.normal(45, 25, count)  # of what has no known name
    kinds = np.zeros(count, dtype=np.int64)
    greys[0] = FAT
    for label in range(1, count):
        tissue = tissue_of(names.get(label, ""))
        if tissue is not None:
            enhanced = (tissue.native, tissue.arterial, tissue.portal)[phase] - tissue.native
            greys[label] = fields.numbers.normal(tissue.native + effect * enhanced, tissue.spread)
            kinds[label] = KINDS.index(tissue.kind)
    image, kind = (torch.from_numpy(a).to(labels.device)[labels] for a in (greys, kinds))
    texture = fields.uniform(0, 12) * fields.smooth(fields.integer(8, fields.side // 2))[0]
    strands = (labels == 0) & (fields.smooth(8)[0] > fields.uniform(0.8, 2.5))
    image = image.float() + texture + fields.uniform(60, 150) * strands
    parts = torch.stack([kind == KINDS.index(name) for name in ("hollow", "bone")])
    hollow, marrow = squared_depth(parts, reach=WALL + 1) > WALL**2
    content = fields.smooth(4)[0]
    for grey in fields.numbers.permutation(CONTENTS)[:2].tolist():
        image = torch.where(hollow & (content > 0), grey + texture, image)
        content = -content
    shell = parts[1] & ~marrow
    image = image + fields.uniform(150, 500) * shell
    return torch.where(body, image, AIR)


def windowed(fields: RandomFields, hounsfield: Tensor) -> Tensor:
    """Hounsfield units -> 0..1 through one of the challenge's windows, about."""
    width, level = WINDOWS[int(fields.numbers.choice(len(WINDOWS), p=WINDOW_SHARES))]
    middle = level + WINDOW_JITTER * width * fields.uniform(-1, 1)
    scale = width * (1 + WINDOW_JITTER * fields.uniform(-1, 1))
    return ((hounsfield - middle) / scale + 0.5).clamp(0, 1)
