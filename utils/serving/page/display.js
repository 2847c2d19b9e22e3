// How the scan is shown: its planes, the crosshair and where it is, grey levels and the layout.

import { $, fillSelect } from './panel.js';
import { Plane } from './plane.js';

const PICTURE_SIDE = 640;

export class Display {
  // model: {scan, view} of the page; crosshairMoved() is called with each new place, changed() with each new view.
  constructor({ model, crosshairMoved, changed }) {
    Object.assign(this, { model, crosshairMoved, changed });
    this.redrawing = false;
    this.redraws = 0;
    this.planes = ['axial', 'coronal', 'sagittal'].map((name) => new Plane(name, $(`plane-${name}`), model));
    for (const plane of this.planes) {
      new ResizeObserver(() => {
        plane.resize(plane.canvas.clientWidth, plane.canvas.clientHeight);
        this.redraw();
      }).observe(plane.canvas);
    }
  }

  get view() {
    return this.model.view;
  }

  // Shows another scan in the view that was kept for it, if there is one.
  show(kept) {
    const { scan } = this.model;
    this.planes.forEach((plane) => plane.setScan(scan));
    Object.assign(this.view, { crosshair: scan.shape.map((extent) => Math.floor(extent / 2)) }, kept);
    const windows = Object.entries(scan.windows).map(([name, [level, width]]) => [name, `${name} (${level}, ${width})`]);
    fillSelect($('window-preset'), [['default', 'default'], ['full', 'full range'], ...windows, ['custom', 'custom']]);
    $('opacity').value = this.view.opacity;
    $('outline').checked = this.view.outline;
    $('convention').value = this.view.neurological ? 'neurological' : 'radiological';
    this.setLayout(this.view.layout);
    if (kept) this.setWindow(this.view.level, this.view.width, this.view.preset);
    else this.setPreset('default');
    this.showPosition(this.view.crosshair);
  }

  redraw() {
    if (this.redrawing) return;
    this.redrawing = true;
    requestAnimationFrame(() => {
      this.redrawing = false;
      if (!this.model.scan) return;
      for (const plane of this.planes) {
        if (!plane.width) continue;
        plane.draw();
        plane.canvas.parentElement.querySelector('output').textContent = `${plane.slice + 1} / ${this.model.scan.shape[plane.axes.normal]}`;
      }
      document.documentElement.dataset.redraws = this.redraws += 1;
    });
  }

  // changes: {opacity, outline, neurological} or some of them.
  change(changes) {
    Object.assign(this.view, changes);
    this.redraw();
    this.changed();
  }

  // The planes are redrawn when their new sizes are known.
  setLayout(layout) {
    this.view.layout = layout;
    $('layout').value = layout;
    $('planes').dataset.layout = layout;
    this.changed();
  }

  resetViews(...which) {
    which.forEach((plane) => plane.reset());
    this.redraw();
  }

  moveTo(voxel) {
    this.view.crosshair = voxel;
    this.crosshairMoved();
    this.showPosition(voxel);
    this.redraw();
    this.changed();
  }

  moveBy(axis, steps) {
    const { crosshair } = this.view;
    const last = this.model.scan.shape[axis] - 1;
    this.moveTo(crosshair.with(axis, Math.max(0, Math.min(last, crosshair[axis] + steps))));
  }

  scroll(plane, steps) {
    this.moveBy(plane.axes.normal, steps);
  }

  // voxel: under the pointer, or null where the pointer is over none.
  hover(voxel) {
    if (this.model.scan) this.showPosition(voxel ?? this.view.crosshair);
  }

  showPosition(voxel) {
    const { scan } = this.model;
    const [right, anterior, superior] = scan.position(voxel).map((length) => length.toFixed(1));
    const value = Number(scan.value(voxel).toPrecision(6));
    $('position').textContent =
      `R ${right}  A ${anterior}  S ${superior} mm  ·  voxel ${voxel.join(', ')} (z, y, x)  ·  value ${value}${scan.is_hu ? ' HU' : ''}`;
  }

  setWindow(level, width, preset = 'custom') {
    const { view } = this;
    view.level = level;
    view.width = Math.max(width, 1e-6);
    view.preset = preset;
    this.model.scan.setWindow(view.level, view.width);
    const round = (value) => Number(value.toPrecision(5));
    $('level').value = round(view.level);
    $('width').value = round(view.width);
    $('window-preset').value = preset;
    this.redraw();
    this.changed();
  }

  moveWindow(levels, widths) {
    const [low, high] = this.model.scan.levels;
    this.setWindow(this.view.level + levels * (high - low), this.view.width + widths * (high - low));
  }

  setTypedWindow() {
    const [level, width] = [$('level').valueAsNumber, $('width').valueAsNumber];
    if (Number.isFinite(level) && width > 0) this.setWindow(level, width);
  }

  setPreset(preset) {
    const { scan } = this.model;
    if (preset === 'custom') return;
    const [low, high] = preset === 'full' ? scan.fullRange() : scan.levels;
    const [level, width] = scan.windows[preset] ?? [(low + high) / 2, high - low];
    this.setWindow(level, width, preset);
  }

  // The planes side by side, on a canvas of its own.
  picture() {
    const canvas = document.createElement('canvas');
    canvas.width = PICTURE_SIDE * this.planes.length;
    canvas.height = PICTURE_SIDE;
    const context = canvas.getContext('2d', { alpha: false });
    this.planes.forEach((plane, index) => {
      context.save();
      context.translate(index * PICTURE_SIDE, 0);
      context.beginPath();
      context.rect(0, 0, PICTURE_SIDE, PICTURE_SIDE);
      context.clip();
      plane.paint(context, PICTURE_SIDE, PICTURE_SIDE);
      context.restore();
    });
    return canvas;
  }
}
