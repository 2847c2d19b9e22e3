"""The checkpoints: their names, their hashes, and which one is used. No torch here."""

from pathlib import Path

REPO_ID = "blueyo0/SAM-Med3D"  # on Hugging Face

# sha256 where one is published.
PUBLISHED: dict[str, str | None] = {
    "sam_med3d_turbo_cvpr_alldata.pth": None,
    "sam_med3d_turbo_cvpr_coreset.pth": (
        "11520a8f5adf1ef331c5858400138cc7f6eed65584bdd44e0f325fda5d1e0640"
    ),
    "sam_med3d_turbo_bbox_init.pth": None,
    "sam_med3d_turbo.pth": "899a46d04d3b70f723282ceb489149373558bf0aaba389a346f5ab57da5cdd3c",
}

# What files were called when they were first published, and in the baseline's own tutorial.
FORMER_NAMES = {"sam_med3d_turbo_bbox_cvpr.pth": "sam_med3d_turbo_cvpr_coreset.pth"}

# The one that comes with the repository; ckpt/README.md is its model card.
SMALL = "sam_med3d_small.safetensors"
SMALL_SHA256 = "7dfc8adb13bff6ca1630cc004ea92428cb76cf5e7a2974766279cd3a0adbdabc"

# What is used of a folder without --checkpoint: the first of these that exists. Those fine-tuned
# on the challenge's data come first, the one that comes with the repository last.
CHECKPOINT_ORDER = (
    "sam_med3d_turbo_cvpr_alldata.pth",
    "sam_med3d_turbo_cvpr_coreset.pth",
    *FORMER_NAMES,
    "sam_med3d_turbo_bbox_init.pth",
    "sam_med3d_turbo.pth",
    SMALL,
)


def find_checkpoint(folder: Path) -> Path | None:
    """The best checkpoint in `folder`, by CHECKPOINT_ORDER, or None."""
    return next((folder / name for name in CHECKPOINT_ORDER if (folder / name).is_file()), None)
