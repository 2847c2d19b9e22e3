// The objects of a scan and their prompts, with undo and redo. Objects are never changed, only replaced.

// Colours of Okabe and Ito, which colour-blind people tell apart.
const COLOURS = ['#e69f00', '#56b4e9', '#009e73', '#f0e442', '#d55e00', '#cc79a7', '#0072b2'];
const STEPS_KEPT = 500;

export class Objects {
  constructor(changed) {
    this.changed = changed;
    this.clear();
  }

  clear() {
    this.list = [];
    this.selected = null;
    // Name, colour and visibility stay as they are when prompts are undone.
    this.looks = new Map();
    this.forget();
  }

  forget() {
    this.past = [];
    this.future = [];
  }

  get current() {
    return this.list.find(({ id }) => id === this.selected) ?? null;
  }

  commit(list, selected = this.selected) {
    this.past.push({ list: this.list, selected: this.selected });
    if (this.past.length > STEPS_KEPT) this.past.shift();
    this.future = [];
    this.restore({ list, selected });
  }

  restore({ list, selected }) {
    this.list = list;
    this.selected = selected;
    this.changed();
  }

  undo() {
    this.step(this.past, this.future);
  }

  redo() {
    this.step(this.future, this.past);
  }

  step(from, to) {
    if (!from.length) return;
    to.push({ list: this.list, selected: this.selected });
    this.restore(from.pop());
  }

  select(id) {
    this.restore({ list: this.list, selected: id });
  }

  // `ahead` counts the objects that were created before this one and come to the list with it.
  create(prompts = {}, { name = null, ahead = 0 } = {}) {
    const id = Math.max(0, ...this.looks.keys()) + 1;
    const number = Math.max(0, ...this.list.map((object) => this.looks.get(object.id).number)) + ahead + 1;
    this.looks.set(id, { number, name: name ?? `Object ${number}`, colour: COLOURS[(number - 1) % COLOURS.length], visible: true });
    return { id, box: null, clicks: [], drawings: [], ...prompts };
  }

  // changes: {name, visible} or one of them.
  changeLooks(id, changes) {
    Object.assign(this.looks.get(id), changes);
    this.changed();
  }

  add() {
    // An empty object is there already: no second one is needed.
    const empty = this.list.find((object) => !request(object, true));
    if (empty) return this.select(empty.id);
    const object = this.create();
    return this.commit([...this.list, object], object.id);
  }

  remove(id) {
    const index = this.list.findIndex((object) => object.id === id);
    const list = this.list.filter((object) => object.id !== id);
    this.commit(list, this.selected === id ? (list[Math.max(0, index - 1)]?.id ?? null) : this.selected);
  }

  // Gives the selected object, or a new one, the prompts that change(object) returns.
  prompt(change) {
    const object = this.current ?? this.create();
    const next = { ...object, ...change(object) };
    const list = this.current ? this.list.map((other) => (other === object ? next : other)) : [...this.list, next];
    this.commit(list, object.id);
  }

  click(voxel, label) {
    this.prompt(({ clicks }) => ({ clicks: [...clicks, [...voxel, label]] }));
  }

  draw(drawing) {
    this.prompt(({ clicks, drawings }) => ({ drawings: [...drawings, { ...drawing, after: clicks.length }] }));
  }

  setBox(box) {
    this.prompt(() => ({ box }));
  }

  // Replaces a box of boxesOf(). A box in one slice that gets a third extent is the box of the whole object.
  moveBox({ drawing }, box) {
    if (drawing === null) return this.setBox(box);
    if (flatAxis(box) === null) {
      return this.prompt(({ drawings }) => ({ box, drawings: drawings.filter((other) => other !== drawing) }));
    }
    return this.prompt(({ drawings }) => ({ drawings: drawings.map((other) => (other === drawing ? { ...drawing, box } : other)) }));
  }

  // Takes back the prompts that made `refused` of `before`.
  takeBack(refused, before) {
    const previous = this.past.at(-1);
    if (previous?.list.length === this.list.length && previous.list.includes(before)) {
      this.past.pop();
      return this.restore(previous);
    }
    return this.restore({ list: this.list.map((object) => (object === refused ? before : object)), selected: this.selected });
  }
}

export function flatAxis(box) {
  const axis = [0, 1, 2].findIndex((index) => box[index + 3] - box[index] === 1);
  return axis < 0 ? null : axis;
}

// The boxes of an object that can be seen and moved; `drawing` is null for the box of the whole object.
export function boxesOf(object) {
  const drawn = object.drawings.filter(({ box }) => box).map((drawing) => ({ box: drawing.box, drawing, label: drawing.label }));
  return object.box ? [{ box: object.box, drawing: null, label: 1 }, ...drawn] : drawn;
}

// What the server is asked about an object, or null where it has no prompt yet.
export function request({ box, clicks, drawings, initial }, draws) {
  const asked = {};
  if (box) asked.box = box;
  if (clicks.length) asked.clicks = clicks;
  if (draws && drawings.length) asked.drawings = drawings;
  if (initial) asked.initial = initial;
  return Object.keys(asked).length ? asked : null;
}
