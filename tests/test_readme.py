"""Every command of the README runs: in a copy of the repository, on small cases and networks."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from conftest import ROOT, SHAPE, case_arrays
from scans import image_of, write_series

README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TRAINED = "--num_epochs 1 --batch_size 1 --accumulation_steps 1 --num_workers 0 --min_voxels 20"
TRAINED += " --device cpu"
# What is added to a command, or put in place of a part, so that it takes seconds on a CPU.
CHANGES = {
    "sh test.sh": "sh test.sh --collect-only -q tests/test_roi.py",
    "sh test.sh -m slow": "sh test.sh --collect-only -q -m slow tests/test_readme.py",
    "--device cuda --precision bf16": "--device cpu",
    "--nproc-per-node 8": "--nproc-per-node 2",
    "--workers 8": "--workers 1",
    "--model_type hybrid_s": "--model_type hybrid_s --img_size 16",
    "--model_type vit_s_ori": "--model_type vit_s_ori --img_size 32",
}
# Downloads and what publishes are not run, but have to be what they seem to be.
DRY = {
    r"python ckpt/download\.py (\w+)": "python ckpt/download.py --help",
    r"git (tag|push) .*": "git --version",
}


def commands() -> list[str]:
    """Of all sh blocks, a line each; scripts for a batch system are not among them."""
    found = []
    for language, text in BLOCK.findall(README):
        if language == "sh" and not text.startswith("#!"):
            lines = text.replace("\\\n", " ").splitlines()
            found += [re.sub(r"\s+# .*", "", line).strip() for line in lines]
    return [" ".join(line.split()) for line in found if line]


def runnable(command: str) -> str:
    for pattern, instead in DRY.items():
        if re.fullmatch(pattern, command):
            return instead
    if command in CHANGES:
        return CHANGES[command]
    for part, instead in CHANGES.items():
        command = command.replace(part, instead)
    if command.startswith(("bash train.sh", "python train.py")):
        command += f" {TRAINED}"
        command += " --data data/prepared" if "--data" not in command else ""
    return command


@pytest.fixture(scope="module")
def clone(tmp_path_factory, tiny_checkpoint) -> Path:
    """The repository as it is committed, with the files that the README speaks of."""
    clone = tmp_path_factory.mktemp("readme") / "clone"
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    shutil.copy(tiny_checkpoint, clone / "ckpt/sam_med3d_turbo_bbox_init.pth")
    content = torch.load(tiny_checkpoint, weights_only=True)  # as turbo, before it had boxes:
    corners = re.compile(r"point_embeddings\.[23]\.")
    weights = content["model_state_dict"]
    weights = {key: value for key, value in weights.items() if not corners.search(key)}
    torch.save(content | {"model_state_dict": weights}, clone / "ckpt/sam_med3d_turbo.pth")
    (clone / "my_cases").mkdir()
    for name in ("case_06.npz", "case_07.npz"):
        np.savez_compressed(clone / "my_cases" / name, **case_arrays())
    values = np.random.default_rng(0).integers(-160, 240, (40, 120, 120)).astype(np.int16)
    sitk.WriteImage(image_of(values), str(clone / "scan.nii.gz"))
    values = np.random.default_rng(0).integers(1, 900, (20, 60, 500)).astype(np.int16)
    write_series(clone / "series", values)
    gts = np.zeros(SHAPE, np.uint8)
    gts[2:7, 3:9, 4:11] = 1
    boxes = case_arrays()["boxes"][:1]
    labelled = case_arrays(boxes=boxes, gts=gts)
    for folder, arrays in (("val", labelled), ("val_gts", {"gts": gts})):
        (clone / folder).mkdir()
        np.savez_compressed(clone / folder / "case.npz", **arrays)
    folder = clone / "3D_train_npz_all/MR/MR_Some"
    folder.mkdir(parents=True)
    np.savez_compressed(folder / "case.npz", **labelled)
    for kind, array in (("images", labelled["imgs"]), ("labels", gts)):
        folder = clone / f"Dataset007_Pancreas/{kind}Tr"
        folder.mkdir(parents=True)
        name = "a_0000.nii.gz" if kind == "images" else "a.nii.gz"
        sitk.WriteImage(image_of(array), str(folder / name))
    return clone


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """`python` is this one, and `docker` runs what it is to run in the container here."""
    folder = tmp_path_factory.mktemp("bin")
    docker = folder / "docker"
    docker.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = build ]; then exec test -e Dockerfile; fi\n'
        'for last; do :; done\nexec sh -c "$last"\n'
    )
    docker.chmod(0o755)
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHON": sys.executable, "VIRTUAL_ENV": sys.prefix}


def prepare(command: str, clone: Path, environment: dict[str, str]) -> None:
    """Bring the copy into the state in which a reader would run the command."""
    if "make_bbox_init" in command:
        (clone / "ckpt/sam_med3d_turbo_bbox_init.pth").unlink()


@pytest.mark.slow
def test_every_command_runs(clone, environment):
    """In their order: what one writes, another reads."""
    for command in commands():
        prepare(command, clone, environment)
        run(runnable(command), clone, environment)
    assert (clone / "out/scan.nii.gz").is_file() and (clone / "out/series.nrrd").is_file()


def run(command: str, clone: Path, environment: dict[str, str]) -> None:
    result = subprocess.run(
        ["sh", "-c", command], cwd=clone, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"


def test_the_first_commands_run(clone, environment):
    run("sh predict.sh --preview", clone, environment)
    for path in (clone / "inputs").glob("*.npz"):
        assert (clone / "outputs" / path.name).is_file()
        assert (clone / "outputs" / f"{path.stem}.png").is_file()


def test_the_python_example_runs(clone, environment):
    (example,) = (text for language, text in BLOCK.findall(README) if "SamPredictor3D(" in text)
    result = subprocess.run(
        [sys.executable, "-c", example], cwd=clone, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_the_case_that_is_written_is_one(tmp_path):
    from utils.formats.case import read_case

    (example,) = (text for language, text in BLOCK.findall(README) if "savez_compressed" in text)
    subprocess.run([sys.executable, "-c", example], cwd=tmp_path, check=True)
    (prompts,) = read_case(tmp_path / "case.npz").objects
    assert prompts.box is not None and len(prompts.clicks) == 1


def test_the_prompt_file_is_one(tmp_path):
    from utils.formats.scan_prompts import read_prompts

    (example,) = (text for language, text in BLOCK.findall(README) if language == "json")
    (tmp_path / "scan.json").write_text(example)
    assert len(read_prompts(tmp_path / "scan.json").objects) == len(json.loads(example)["objects"])


def test_the_messages_are_real():
    """Those that the table of troubles names are in the code."""
    table = README.split("## Troubleshooting")[1].split("\n## ")[0]
    code = "\n".join(
        path.read_text() for path in ROOT.glob("**/*.[ps][yh]") if "venv" not in str(path)
    )
    code = re.sub(r'"\n\s*f?"', "", code)  # texts that go on in the next line
    code = re.sub(r"\{[^{}]*\}", "{}", code)
    for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        for message in re.findall(r"`([^`]+)`", row):
            assert message in code or message.startswith("--"), message


def test_links_lead_somewhere():
    text = re.sub(r"`[^`]*`", "", README)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    }
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        assert anchor in anchors, anchor
