// What the tools make of presses, drags and keys on a plane: crosshair, clicks, boxes and drawings.

const SMALLEST_SIDE = 2;

export class Tools {
  // page: {view, model, objects, moveTo, say, draws} of the page.
  constructor(page) {
    this.page = page;
    this.name = 'box';
    this.sign = 1;
    this.draft = null;
  }

  get label() {
    return this.page.draws() ? this.sign : 1;
  }

  choose(name) {
    if (!this.page.draws() && (name === 'scribble' || name === 'lasso')) return;
    this.name = name;
    this.cancel();
  }

  cancel() {
    this.draft = null;
    this.page.redraw();
  }

  edgeAt(plane, x, y) {
    return this.name === 'box' || this.name === 'navigate' ? plane.edgeAt(x, y, this.page.objects.current) : null;
  }

  press(plane, x, y) {
    this.draft = null;
    const edge = this.edgeAt(plane, x, y);
    if (edge) {
      this.draft = { kind: 'edge', plane, edge, box: edge.target.box, label: edge.target.label };
      return;
    }
    if (!plane.holds(x, y) && this.name !== 'navigate') return;
    const voxel = plane.voxelAt(x, y);
    this.page.moveTo(voxel);
    this.place(plane, voxel);
  }

  // Begins the prompt of the tool at a voxel. A click is given when the pointer is released: a second finger may make it a pinch.
  place(plane, voxel) {
    const { label } = this;
    if (this.name === 'plus' || this.name === 'minus') this.draft = { kind: 'click', plane, voxel, label: Number(this.name === 'plus') };
    else if (this.name === 'navigate') this.draft = { kind: 'navigate', plane };
    else if (this.name === 'box') this.draft = { kind: 'box', plane, from: voxel, box: between(voxel, voxel), label };
    else this.draft = { kind: this.name, plane, points: [voxel], label };
  }

  move(plane, x, y) {
    const { draft } = this;
    if (!draft || draft.plane !== plane) return;
    if (draft.kind === 'edge') {
      draft.box = movedEdge(draft.edge, plane.cellAt(x, y), this.page.model.scan.shape);
      this.page.redraw();
    } else {
      this.extend(plane.voxelAt(x, y));
    }
  }

  extend(voxel) {
    const { draft } = this;
    if (draft.kind === 'navigate') this.page.moveTo(voxel);
    else if (draft.kind === 'box') draft.box = between(draft.from, voxel);
    else if (draft.kind === 'click') return;
    else if (String(draft.points.at(-1)) !== String(voxel)) draft.points.push(voxel);
    this.page.redraw();
  }

  release() {
    const { draft } = this;
    if (!draft) return;
    this.cancel();
    const { objects } = this.page;
    if (draft.kind === 'edge') {
      if (String(draft.box) !== String(draft.edge.target.box)) objects.moveBox(draft.edge.target, draft.box);
    } else if (draft.kind === 'box') {
      this.finishBox(draft);
    } else if (draft.kind === 'click') {
      objects.click(draft.voxel, draft.label);
    } else if (draft.kind === 'scribble') {
      objects.draw({ scribble: draft.points, label: draft.label });
    } else if (draft.kind === 'lasso') {
      if (draft.points.length < 3) this.page.say('A lasso goes round an area: draw a closed line.');
      else objects.draw({ lasso: draft.points, label: draft.label });
    }
  }

  finishBox({ plane, box, label }) {
    const { objects } = this.page;
    const { normal, row, column } = plane.axes;
    if ([row, column].some((axis) => box[axis + 3] - box[axis] < SMALLEST_SIDE)) {
      this.page.say('Drag from one corner of the box to the opposite one.');
      return;
    }
    // The other planes cut the box in its middle, where its third extent is adjusted.
    this.page.moveTo(box.slice(0, 3).map((low, axis) => (axis === normal ? this.page.view.crosshair[axis] : Math.floor((low + box[axis + 3]) / 2))));
    if (box[normal + 3] - box[normal] > 1 && label) {
      objects.setBox(box);
    } else {
      const slice = this.page.view.crosshair[normal];
      const flat = box.with(normal, slice).with(normal + 3, slice + 1);
      // Without drawings only one box counts, so a new one takes the place of the old.
      if (this.page.draws()) objects.draw({ box: flat, label });
      else objects.prompt(() => ({ box: null, drawings: [{ box: flat, label, after: 0 }] }));
    }
  }

  // Enter begins and ends what a drag would do; the crosshair, moved by keys, extends it.
  enter(plane) {
    const voxel = this.page.view.crosshair;
    if (this.draft) this.release();
    else if (this.name !== 'navigate') this.place(plane, voxel);
    if (this.draft?.kind === 'click') this.release();
    else if (this.draft) this.draft.byKeys = true;
    this.page.redraw();
  }

  crosshairMoved() {
    const { draft } = this;
    if (!draft?.byKeys) return;
    const voxel = this.page.view.crosshair;
    const { normal } = draft.plane.axes;
    if (draft.points && voxel[normal] !== draft.points[0][normal]) {
      this.cancel();
      this.page.say('A drawing stays in one slice: it was cancelled.');
    } else {
      this.extend(voxel);
    }
  }
}

const between = (a, b) => [...a.map((value, axis) => Math.min(value, b[axis])), ...a.map((value, axis) => Math.max(value, b[axis]) + 1)];

function movedEdge({ axis, end, direction, target }, [column, row], shape) {
  const box = [...target.box];
  const value = Math.round(direction === 'x' ? column : row);
  if (end) box[axis + 3] = Math.max(box[axis] + 1, Math.min(shape[axis], value));
  else box[axis] = Math.min(box[axis + 3] - 1, Math.max(0, value));
  return box;
}
