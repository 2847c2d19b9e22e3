"""How good a network is with each kind of prompt, and how deep objects are.

    python bench/bench_prompts.py --cases val --checkpoint ckpt/sam_med3d_small.safetensors
    python bench/bench_prompts.py --cases val --depths
    python bench/bench_prompts.py --cases val --checkpoint ckpt/sam_med3d_small.safetensors --turns
    python bench/bench_prompts.py --cases val --checkpoint ckpt/FILE.safetensors --at-once

For each kind the objects of all cases begin with such a prompt, drawn as in training by the case's
and the object's number, or with the case's own box; then the evaluator clicks as in its protocol.
DSC is averaged over the objects of a case, then over the cases. --depths measures the rule for the
depth of an object that is drawn on in one slice, beside others. --turns plays the boxes of objects
with the axes of the volumes in every order, as viewers may hand them over. --at-once asks for the
prompts of each round once more all at once, without the mask of the round before.
"""

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import origin, print_header, print_row
from segment_anything.prompts import Box, Prompts
from utils.evaluation.metrics import dsc
from utils.evaluation.protocol import ROUNDS, play, timed_predictor
from utils.evaluation.simulated_prompts import bounding_box
from utils.formats.case import Case, LabelledCase, read_labelled_case
from utils.inference.checkpoint import adaptive_settings, read_checkpoint
from utils.inference.load import build_model
from utils.inference.method import Segmenter, make_segmenter
from utils.training.object_shape import ObjectShape, first_drawing

KINDS = {
    "object": "box of the object",
    "box": "box in one slice",
    "scribble": "one scribble",
    "lasso": "one lasso",
    "click": "one click",
}
UNDRAWN = ("object", "click")  # what every network takes
LOOKED_AT = 64  # voxels along the sides of the cube on which a shape is looked at, as in training
# Depths in mm that the sides in the slice may tell.
DEPTH_RULES = {
    "the shorter side": lambda a, b: min(a, b),
    "the geometric mean": lambda a, b: math.sqrt(a * b),
    "the longer side": lambda a, b: max(a, b),
}


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, required=True, help="folder of cases with gts")
    parser.add_argument("--checkpoint", type=Path, help="of a network that draws its prompts")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--turns", action="store_true", help="the axes in every order")
    parser.add_argument("--at-once", action="store_true", help="also without the mask before")
    parser.add_argument("--depths", action="store_true", help="of the objects, without a network")
    return parser


def shapes_of(labelled: LabelledCase) -> list[ObjectShape]:
    """The objects of a case, in their order."""
    shapes = []
    for label in range(1, len(labelled.labels) + 1):
        region = bounding_box(labelled.truth == label)
        bounds = np.array([[part.start, part.stop] for part in region], float).T
        shapes.append(ObjectShape(labelled.truth, label, bounds, LOOKED_AT))
    return shapes


def begun(labelled: LabelledCase, kind: str, number: int) -> LabelledCase:
    """The case as it is before the first round, with a first prompt of a kind for each object."""
    case = labelled.case
    if kind == "object":
        return labelled
    if kind == "click":  # the protocol's first round without boxes
        objects = tuple(Prompts() for _ in case.objects)
        return replace(labelled, case=replace(case, objects=objects, rounds=0))
    drawings = (
        first_drawing(shape, np.random.default_rng((number, i)), kind)
        for i, shape in enumerate(shapes_of(labelled))
    )
    objects = tuple(Prompts(drawings=(drawing,)) for drawing in drawings)
    return replace(labelled, case=replace(case, objects=objects, rounds=1))


def turned(labelled: LabelledCase, order: tuple[int, ...]) -> LabelledCase:
    """A case with its axes (z, y, x) in another order, and its boxes with them."""
    case = labelled.case

    def exchanged(values: Sequence[Any]) -> Any:
        return tuple(values[axis] for axis in order)

    objects = tuple(
        replace(p, box=p.box and Box(exchanged(p.box.start), exchanged(p.box.stop)))
        for p in case.objects
    )
    image, truth = (
        np.ascontiguousarray(volume.transpose(order)) for volume in (case.image, labelled.truth)
    )
    case = replace(case, image=image, spacing=exchanged(case.spacing), objects=objects)
    return replace(labelled, case=case, truth=truth)


def bench_turns(cases: list[LabelledCase], segment: Segmenter) -> None:
    """Print DSC of the cases with boxes for each order of their axes."""
    print_header("axes", "cases", "box", *(f"+ {i}" for i in range(1, ROUNDS)))
    boxed = [labelled for labelled in cases if labelled.case.rounds]
    for order in permutations(range(3)):
        curves = []
        for labelled in boxed:
            played = play(turned(labelled, order), timed_predictor(segment), math.inf)
            curves.append([float(one.scores[:, 0].mean()) for one, _ in played])
        cells = (f"{value:.3f}" for value in np.mean(curves, axis=0))
        print_row(", ".join("zyx"[axis] for axis in order), len(boxed), *cells)


def bench_at_once(cases: list[LabelledCase], segment: Segmenter, kinds: Iterable[str]) -> None:
    """Print DSC of each kind, the prompts one after the other, and the same ones all at once."""
    print_header("prompt", "taken", "first", *(f"+ {i}" for i in range(1, ROUNDS)))
    for kind in kinds:
        curves: dict[str, list[list[float]]] = defaultdict(list)
        for number, labelled in enumerate(cases):
            if kind == "object" and labelled.case.rounds == 0:
                continue
            own: dict[str, list[float]] = defaultdict(list)
            start = begun(labelled, kind, number)

            def both(case: Case, labelled: LabelledCase = labelled, own: dict = own) -> np.ndarray:
                seg = segment(case)
                for name, found in (
                    ("one after the other", seg),
                    ("at once", segment(replace(case, prev_pred=None))),
                ):
                    labels = range(1, len(labelled.labels) + 1)
                    scores = [dsc(labelled.truth == i, found == i) for i in labels]
                    own[name].append(float(np.mean(scores)))
                return seg

            for _ in play(start, timed_predictor(both), math.inf):
                pass
            for name, curve in own.items():
                curves[name].append(curve)
        for name, rows in curves.items():
            cells = [f"{value:.3f}" for value in np.mean(rows, axis=0)]
            print_row(KINDS[kind], name, *cells, *["–"] * (ROUNDS - len(cells)))


def bench_kinds(cases: list[LabelledCase], segment: Segmenter, kinds: Iterable[str]) -> None:
    """Print a row for each kind: DSC after the first prompt and after clicks, those obeyed."""
    rounds = ["first", *(f"+ {i}" for i in range(1, ROUNDS))]
    print_header("prompt", "cases", *rounds, "clicked voxels that became what was asked")
    for kind in kinds:
        curves: list[list[float]] = []
        is_obeyed: list[bool] = []
        for number, labelled in enumerate(cases):
            if kind == "object" and labelled.case.rounds == 0:
                continue
            curve = []
            played = play(begun(labelled, kind, number), timed_predictor(segment), math.inf)
            for one, seg in played:
                if one.failure:
                    raise RuntimeError(f"{labelled.case.name}: {one.failure}")
                curve.append(float(one.scores[:, 0].mean()))
                is_obeyed += [
                    bool((seg[click.point] == label) == click.is_foreground)
                    for label, click in enumerate(one.clicks, 1)
                    if click is not None
                ]
            curves.append(curve)
        cells = [f"{value:.3f}" for value in np.mean(curves, axis=0)]
        share = f"{np.mean(is_obeyed):.1%} of {len(is_obeyed)}"
        missing = ["–"] * (ROUNDS - len(cells))
        print_row(KINDS[kind], len(curves), *cells, *missing, share)


def bench_depths(cases: list[LabelledCase]) -> None:
    """Print how the depth of objects across a slice compares with what its sides tell."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for number, labelled in enumerate(cases):
        spacing = np.array(labelled.case.spacing)
        for i, shape in enumerate(shapes_of(labelled)):
            drawing = first_drawing(shape, np.random.default_rng((number, i)), "lasso")
            axis = drawing.inside.shape.index(1)
            a, b = np.delete((drawing.bounds[1] - drawing.bounds[0]) * spacing, axis)
            depth = (shape.bounds[1] - shape.bounds[0])[axis] * spacing[axis]
            for name, rule in DEPTH_RULES.items():
                ratios[name].append(depth / rule(a, b))
    print_header("depth over", "objects", "5 %", "25 %", "median", "75 %", "95 %", "log error")
    for name, values in ratios.items():
        cells = [f"{value:.2f}" for value in np.percentile(values, (5, 25, 50, 75, 95))]
        error = np.sqrt(np.mean(np.log(values) ** 2))
        print_row(name, len(values), *cells, f"{error:.2f}")


def main(args: argparse.Namespace) -> int:
    """Returns the exit status: 0, or 2 if there is nothing to measure."""
    cases = [read_labelled_case(path) for path in sorted(args.cases.rglob("*.npz"))]
    if not cases or not (args.checkpoint or args.depths):
        print(f"expected cases in {args.cases}, and --checkpoint or --depths", file=sys.stderr)
        return 2
    print(f"{origin('cpu')}\n")
    if args.depths:
        bench_depths(cases)
    if args.checkpoint:
        read = read_checkpoint(args.checkpoint)
        settings = adaptive_settings(read)
        kinds = args.kinds
        if not settings.drawings:
            kinds = [kind for kind in kinds if kind in UNDRAWN]
            print(f"{args.checkpoint}: trained without drawings", file=sys.stderr)
        segment = make_segmenter(build_model(read), "adaptive", settings)
        if args.turns:
            bench_turns(cases, segment)
        elif args.at_once:
            bench_at_once(cases, segment, kinds)
        else:
            bench_kinds(cases, segment, kinds)
    return 0


if __name__ == "__main__":
    sys.exit(main(get_args_parser().parse_args()))
