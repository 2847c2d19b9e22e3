// One plane of the scan on a canvas: where its voxels are on the screen, and what is drawn over them.

import { boxesOf, flatAxis } from './objects.js';
import { fillLabels, outlines } from './masks.js';
import { opaque, paintHandle, paintMarker, Sheet, strokeTwice } from './paint.js';
import { ENDS } from './scan.js';

const AXES = {
  axial: { normal: 0, row: 1, column: 2 },
  coronal: { normal: 1, row: 0, column: 2 },
  sagittal: { normal: 2, row: 0, column: 1 },
};
const MARGIN = 0.96;
const ZOOMS = [0.5, 40];
const GAP = 14;
const HANDLE_REACH = 9;
const EDGE_REACH = 4;
const FLAT = 18;

export class Plane {
  // model: {scan, view, layers, layersVersion, current, draft, handles} of the page, read at each draw.
  constructor(name, canvas, model) {
    this.name = name;
    this.canvas = canvas;
    this.model = model;
    this.axes = AXES[name];
    this.context = canvas.getContext('2d', { alpha: false });
    this.width = 0;
    this.height = 0;
  }

  setScan(scan) {
    this.columns = scan.shape[this.axes.column];
    this.rows = scan.shape[this.axes.row];
    this.image = new Sheet(this.columns, this.rows);
    this.fill = new Sheet(this.columns, this.rows);
    this.labels = new Uint8Array(this.columns * this.rows);
    this.reset();
  }

  reset() {
    this.zoom = 1;
    this.centre = [this.columns / 2, this.rows / 2];
  }

  resize(width, height) {
    const density = window.devicePixelRatio;
    this.width = width;
    this.height = height;
    this.canvas.width = Math.round(width * density);
    this.canvas.height = Math.round(height * density);
  }

  get slice() {
    return this.model.view.crosshair[this.axes.normal];
  }

  get mirrored() {
    return this.axes.column === 2 && this.model.view.neurological;
  }

  get upside() {
    return this.axes.row === 0;
  }

  // CSS pixels for each column and row, and the point of the canvas where column 0 and row 0 begin.
  geometry(width = this.width, height = this.height) {
    const { spacing } = this.model.scan;
    const [columnLength, rowLength] = [spacing[this.axes.column], spacing[this.axes.row]];
    const scale = MARGIN * this.zoom * Math.min(width / (this.columns * columnLength), height / (this.rows * rowLength));
    const column = scale * columnLength * (this.mirrored ? -1 : 1);
    const row = scale * rowLength * (this.upside ? -1 : 1);
    return { column, row, left: width / 2 - this.centre[0] * column, top: height / 2 - this.centre[1] * row };
  }

  // The place of a point of the canvas, in columns and rows.
  cellAt(x, y) {
    const { column, row, left, top } = this.geometry();
    return [(x - left) / column, (y - top) / row];
  }

  holds(x, y) {
    const [column, row] = this.cellAt(x, y);
    return column >= 0 && row >= 0 && column < this.columns && row < this.rows;
  }

  voxelAt(x, y) {
    const [column, row] = this.cellAt(x, y).map(Math.floor);
    const voxel = [];
    voxel[this.axes.normal] = this.slice;
    voxel[this.axes.column] = Math.max(0, Math.min(this.columns - 1, column));
    voxel[this.axes.row] = Math.max(0, Math.min(this.rows - 1, row));
    return voxel;
  }

  zoomAt(x, y, factor) {
    const before = this.cellAt(x, y);
    this.zoom = Math.max(ZOOMS[0], Math.min(ZOOMS[1], this.zoom * factor));
    const after = this.cellAt(x, y);
    this.centre = this.centre.map((value, index) => value + before[index] - after[index]);
  }

  pan(x, y) {
    const { column, row } = this.geometry();
    this.centre = [this.centre[0] - x / column, this.centre[1] - y / row];
  }

  // The rectangle of a box on the canvas, or null where the slice does not meet it.
  rectangle(box, geometry) {
    const { normal, row, column } = this.axes;
    if (this.slice < box[normal] || this.slice >= box[normal + 3]) return null;
    const x = [box[column], box[column + 3]].map((value) => geometry.left + value * geometry.column);
    const y = [box[row], box[row + 3]].map((value) => geometry.top + value * geometry.row);
    return { x, y };
  }

  // The four edges of a box that can be dragged; those of a flat box have their handles apart from it.
  edges({ box, label }, geometry) {
    const rectangle = this.rectangle(box, geometry);
    if (!rectangle) return [];
    const { x, y } = rectangle;
    const middle = { x: (x[0] + x[1]) / 2, y: (y[0] + y[1]) / 2 };
    const flat = flatAxis(box);
    return ['x', 'y'].flatMap((direction) => {
      const axis = direction === 'x' ? this.axes.column : this.axes.row;
      if (axis === flat && !label) return [];
      const ends = rectangle[direction];
      const apart = Math.abs(ends[1] - ends[0]) < FLAT ? FLAT / 2 : 0;
      return [0, 1].map((end) => {
        const outward = Math.sign(ends[end] - ends[1 - end]) * apart;
        return { axis, end, direction, rectangle, ...middle, [direction]: ends[end] + outward };
      });
    });
  }

  // The edge of a box of the object under a point, or null.
  edgeAt(x, y, object) {
    if (!object) return null;
    const geometry = this.geometry();
    const all = boxesOf(object).flatMap((target) => this.edges(target, geometry).map((edge) => ({ ...edge, target })));
    const handle = all.find((edge) => Math.hypot(edge.x - x, edge.y - y) <= HANDLE_REACH);
    if (handle) return handle;
    const within = (value, [a, b]) => value >= Math.min(a, b) && value <= Math.max(a, b);
    const near = ({ direction, end, rectangle }) =>
      direction === 'x'
        ? Math.abs(rectangle.x[end] - x) <= EDGE_REACH && within(y, rectangle.y)
        : Math.abs(rectangle.y[end] - y) <= EDGE_REACH && within(x, rectangle.x);
    return all.find(near) ?? null;
  }

  draw() {
    const { canvas, context, width, height } = this;
    context.setTransform(canvas.width / width, 0, 0, canvas.height / height, 0, 0);
    this.paint(context, width, height);
    const { column, row, left, top } = this.geometry();
    Object.assign(canvas.dataset, {
      slice: this.slice,
      left: column < 0 ? left + column * this.columns : left,
      top: row < 0 ? top + row * this.rows : top,
      column: Math.abs(column),
      row: Math.abs(row),
      mirrored: this.mirrored,
      upside: this.upside,
    });
  }

  // Paints into any context; the plane fills width and height.
  paint(context, width, height) {
    const { view, current, draft, handles } = this.model;
    const geometry = this.geometry(width, height);
    context.fillStyle = '#000';
    context.fillRect(0, 0, width, height);
    this.refresh();
    this.paintSheets(context, geometry);
    this.paintCrosshair(context, geometry, width, height, view.crosshair);
    if (current) this.paintPrompts(context, geometry, current, handles);
    if (draft?.plane === this) this.paintDraft(context, geometry, draft);
    this.paintLetters(context, width, height);
  }

  // Fills the sheets again where the slice or what it shows has changed.
  refresh() {
    const { scan, view, layers, layersVersion } = this.model;
    const { slice } = this;
    const image = `${slice} ${scan.greysVersion}`;
    if (this.image.state !== image) {
      scan.fillSlice(this.image.pixels, this.axes, slice);
      this.image.put(image);
    }
    const fill = `${slice} ${layersVersion} ${view.outline}`;
    if (this.fill.state === fill) return;
    const used = fillLabels(this.labels, layers.map(({ mask }) => mask), this.axes, slice, this.columns);
    this.paths = view.outline ? outlines(this.labels, used, this.columns, this.rows, layers.length) : null;
    const colours = [0, ...layers.map(({ colour, visible }) => (visible ? opaque(colour) : 0))];
    this.labels.forEach((label, index) => (this.fill.pixels[index] = colours[label]));
    this.fill.put(fill);
  }

  paintSheets(context, { column, row, left, top }) {
    const { view, layers, current } = this.model;
    context.save();
    context.transform(column, 0, 0, row, left, top);
    context.drawImage(this.image.canvas, 0, 0);
    if (!view.outline) {
      context.imageSmoothingEnabled = false;
      context.globalAlpha = view.opacity;
      context.drawImage(this.fill.canvas, 0, 0);
    }
    context.restore();
    if (!view.outline) return;
    const matrix = new DOMMatrix([column, 0, 0, row, left, top]);
    context.save();
    // Thin lines need more of their colour than areas.
    context.globalAlpha = 0.7 + 0.3 * view.opacity;
    context.lineCap = 'square';
    layers.forEach(({ id, colour, visible }, index) => {
      if (!visible) return;
      const path = new Path2D();
      path.addPath(this.paths[index + 1], matrix);
      context.strokeStyle = colour;
      context.lineWidth = id === current?.id ? 3 : 2;
      context.stroke(path);
    });
    context.restore();
  }

  point([...voxel], { column, row, left, top }) {
    return [left + (voxel[this.axes.column] + 0.5) * column, top + (voxel[this.axes.row] + 0.5) * row];
  }

  paintCrosshair(context, geometry, width, height, crosshair) {
    const [x, y] = this.point(crosshair, geometry).map((value) => Math.round(value) + 0.5);
    context.beginPath();
    for (const [from, to] of [[0, x - GAP], [x + GAP, width]]) {
      if (to > from) (context.moveTo(from, y), context.lineTo(to, y));
    }
    for (const [from, to] of [[0, y - GAP], [y + GAP, height]]) {
      if (to > from) (context.moveTo(x, from), context.lineTo(x, to));
    }
    context.lineWidth = 1;
    context.strokeStyle = 'rgb(120 200 255 / 55%)';
    context.stroke();
  }

  paintPrompts(context, geometry, object, handles) {
    for (const target of boxesOf(object)) {
      this.paintBox(context, geometry, target);
      if (handles) this.edges(target, geometry).forEach((edge) => paintHandle(context, edge));
    }
    for (const { scribble, lasso, label } of object.drawings) {
      const points = scribble ?? lasso;
      if (points && points.every((point) => point[this.axes.normal] === this.slice)) this.paintLine(context, geometry, points, label, lasso);
    }
    for (const click of object.clicks) {
      if (click[this.axes.normal] === this.slice) paintMarker(context, this.point(click, geometry), click[3]);
    }
  }

  paintBox(context, geometry, { box, label }) {
    const rectangle = this.rectangle(box, geometry);
    if (!rectangle) return;
    const { x, y } = rectangle;
    const path = new Path2D();
    path.rect(x[0], y[0], x[1] - x[0], y[1] - y[0]);
    strokeTwice(context, path, label, [5, 4]);
  }

  paintLine(context, geometry, points, label, closed) {
    const path = new Path2D();
    const screen = points.map((point) => this.point(point, geometry));
    screen.forEach(([x, y]) => path.lineTo(x, y));
    if (screen.length === 1) path.arc(...screen[0], 1, 0, 2 * Math.PI);
    if (closed) path.closePath();
    strokeTwice(context, path, label, closed ? [3, 3] : []);
  }

  paintDraft(context, geometry, draft) {
    if (draft.box) this.paintBox(context, geometry, draft);
    else if (draft.points) this.paintLine(context, geometry, draft.points, draft.label, false);
  }

  paintLetters(context, width, height) {
    const sides = [this.axes.column, this.axes.row].map((axis) => ENDS[axis]);
    const [left, right] = this.mirrored ? sides[0].toReversed() : sides[0];
    const [top, bottom] = this.upside ? sides[1].toReversed() : sides[1];
    context.font = '600 14px system-ui, sans-serif';
    context.textAlign = 'center';
    context.textBaseline = 'middle';
    const places = [[left, 13, height / 2], [right, width - 13, height / 2], [top, width / 2, 14], [bottom, width / 2, height - 13]];
    for (const [letter, x, y] of places) {
      context.lineWidth = 3;
      context.strokeStyle = '#000';
      context.strokeText(letter, x, y);
      context.fillStyle = '#ffd479';
      context.fillText(letter, x, y);
    }
  }
}
