"""Every command of the README and of docs/ runs: in a copy of the repository, on small cases."""

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
from utils.formats.case import read_case
from utils.formats.scan_prompts import read_prompts
from utils.inference.published import PUBLISHED

README = ROOT / "README.md"
MAX_README_BYTES = 12_000
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
CARDS = [ROOT / name for name in ("ckpt/README.md", "data/sample_gts/README.md", "SECURITY.md")]
LINKED = [*PAGES, *CARDS, ROOT / "CHANGELOG.md", *sorted(ROOT.glob("bench/results/**/*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TRAINED = "--num_epochs 1 --batch_size 1 --accumulation_steps 1 --num_workers 0 --min_voxels 20"
TRAINED += " --device cpu"
# What is added to a command, or put in place of a part, so that it takes seconds on a CPU.
CHANGES = {
    "sh test.sh": "sh test.sh --collect-only -q tests/segment_anything/test_roi.py",
    "sh serve.sh": "sh serve.sh --help",
    "sh serve.sh --host 0.0.0.0": "sh serve.sh --help",
    "sh test.sh -m slow": "sh test.sh --collect-only -q -m slow tests/test_readme.py",
    'sh test.sh -m "not slow and not gpu" --cov': "sh test.sh --collect-only -q --cov tests",
    "--task_name docker": f"--task_name docker {TRAINED} --data data/prepared",
    "--device cuda --precision bf16": "--device cpu",
    "--nproc-per-node 8": "--nproc-per-node 2",
    "--workers 8": "--workers 1",
    "--model_type hybrid_s": "--model_type hybrid_s --img_size 16",
    "--model_type vit_s_ori": "--model_type vit_s_ori --img_size 32",
}
# Downloads and what publishes are not run, but have to be what they seem to be.
DOWNLOAD = r"python ckpt/download\.py (\w+)"
DRY = {
    DOWNLOAD: "python ckpt/download.py --help",
    r"hf download .*": "hf download --help",
    r"git (tag|push) .*": "git --version",
}
# Stands for docker: what is to run in the container runs here.
DOCKER = """\
#!/bin/sh
case "$1" in
    build) exec test -e Dockerfile ;;
    save) exec echo "layers of $2" ;;
    load) exec gzip -t "$3" ;;
    image) exec test "$2" = rm ;;
    run | container) for last; do :; done; exec sh -c "$last" ;;
esac
exit 1
"""


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text("utf-8")) if kind == language]


def commands(page: Path) -> list[str]:
    """The commands of all sh blocks, a line each; scripts for a batch system are not among them."""
    found = []
    for text in blocks(page, "sh"):
        if not text.startswith("#!"):
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
        if not part.startswith("sh test.sh"):
            command = command.replace(part, instead)
    if command.startswith(("bash train.sh", "python train.py")):
        command += f" {TRAINED}"
        command += " --data data/prepared" if "--data" not in command else ""
    return command


@pytest.fixture(scope="module")
def clone(tmp_path_factory, tiny_checkpoint) -> Path:
    """The repository as it is committed, with the files that its pages speak of."""
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
    for name in ("sam_med3d_turbo_bbox_init", "sam_med3d_turbo_cvpr_coreset"):
        shutil.copy(tiny_checkpoint, clone / f"ckpt/{name}.pth")
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
    for folder, arrays in (
        ("val", labelled),
        ("val_gts", {"gts": gts}),
        ("3D_val_npz", case_arrays(boxes=boxes)),
        ("3D_val_gt", {"gts": gts}),
        ("3D_train_npz_all/MR/MR_Some", labelled),
        ("3D_train_npz_random_10percent_16G/MR/MR_Some", labelled),
    ):
        (clone / folder).mkdir(parents=True)
        np.savez_compressed(clone / folder / "case.npz", **arrays)
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
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHON": sys.executable, "VIRTUAL_ENV": sys.prefix}


def run(command: str, clone: Path, environment: dict[str, str]) -> None:
    result = subprocess.run(
        ["sh", "-c", command], cwd=clone, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"


def prepare(command: str, clone: Path) -> None:
    """Bring the copy into the state in which a reader would run the command."""
    made = re.fullmatch(r"python ckpt/export\.py (\S+) (\S+)", command)
    if made:  # a new file of a checkpoint that is there
        source, target = clone / made[1], clone / made[2]
        target.unlink(missing_ok=True)
        if not source.exists():
            source.parent.mkdir(parents=True)
            shutil.copy(clone / "ckpt/sam_med3d_turbo_cvpr_coreset.pth", source)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda p: p.stem)
def test_every_command_runs(page, clone, environment, tmp_path):
    """In their order, in a copy for each page: what one writes, another reads."""
    clone = shutil.copytree(clone, tmp_path / "clone")
    for command in commands(page):
        prepare(command, clone)
        run(runnable(command), clone, environment)
    if page.stem == "scans":
        assert (clone / "out/scan.nii.gz").is_file() and (clone / "out/series.nrrd").is_file()


def test_the_first_commands_run(clone, environment):
    run("sh predict.sh --preview", clone, environment)
    for path in (clone / "inputs").glob("*.npz"):
        assert (clone / "outputs" / path.name).is_file()
        assert (clone / "outputs" / f"{path.stem}.png").is_file()


EXAMPLES = [(page, text) for page in PAGES for text in blocks(page, "python")]


@pytest.mark.parametrize("page, text", EXAMPLES, ids=[page.stem for page, _ in EXAMPLES])
def test_python_examples_run(page, text, clone, environment):
    subprocess.run([sys.executable, "-c", text], cwd=clone, env=environment, check=True)
    if "savez_compressed" in text:
        (prompts,) = read_case(clone / "case.npz").objects
        assert prompts.box is not None and len(prompts.clicks) == 1


def test_the_prompt_file_is_one(tmp_path):
    (example,) = blocks(ROOT / "docs/scans.md", "json")
    (tmp_path / "scan.json").write_text(example)
    assert len(read_prompts(tmp_path / "scan.json").objects) == len(json.loads(example)["objects"])


def test_the_downloads_are_published():
    found = [re.fullmatch(DOWNLOAD, command) for page in PAGES for command in commands(page)]
    names = {match[1] for match in found if match}
    assert names and names <= {name.removesuffix(".pth") for name in PUBLISHED}


def test_the_readme_is_short():
    assert len(README.read_bytes()) <= MAX_README_BYTES


def test_all_pages_are_linked():
    """From the README."""
    for page in PAGES[1:]:
        assert f"](docs/{page.name})" in README.read_text("utf-8"), page.name


def test_the_messages_are_real():
    """Those that the table of troubles names are in the code."""
    table = (ROOT / "docs/troubleshooting.md").read_text("utf-8").split("In a container:")[0]
    tracked = subprocess.run(
        ["git", "ls-files", "*.py", "*.sh", ":!tests"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    code = "\n".join((ROOT / name).read_text("utf-8") for name in tracked)
    code = re.sub(r'"\n\s*f?"', "", code)  # texts that go on in the next line
    code = re.sub(r"\{[^{}]*\}", "{}", code)
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert rows
    for message in re.findall(r"`([^`]+)`", "\n".join(rows)):
        assert message in code or message.startswith("--"), message


def anchors_of(page: Path) -> set[str]:
    """As GitHub makes them of the titles of a page, in which # in code is no title."""
    text = BLOCK.sub("", page.read_text("utf-8"))
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = re.sub(r"`[^`]*`", "", BLOCK.sub("", page.read_text("utf-8")))
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)]*)\)", text):
        if not target.startswith("https://"):
            linked = page.parent / target if target else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors_of(linked), f"{target}#{anchor}"
