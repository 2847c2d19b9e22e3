// The work on each scan, kept by the browser.

const keyOf = (id) => `sam-med3d:${id}`;

const isPoint = (point, shape) =>
  Array.isArray(point) && shape.every((extent, axis) => Number.isInteger(point[axis]) && point[axis] >= 0 && point[axis] < extent);

const isBox = (box, shape) =>
  Array.isArray(box) && isPoint(box, shape) && isPoint(box.slice(3).map((end) => end - 1), shape) && [0, 1, 2].every((axis) => box[axis] < box[axis + 3]);

const isDrawing = ({ box, scribble, lasso }, shape) =>
  box ? isBox(box, shape) : (scribble ?? lasso).every((point) => isPoint(point, shape));

// Whether an object has the form that the page works with.
export const isObject = ({ box, clicks, drawings }, shape) =>
  (!box || isBox(box, shape)) &&
  clicks.every((click) => isPoint(click, shape) && (click[3] === 0 || click[3] === 1)) &&
  drawings.every((drawing) => isDrawing(drawing, shape));

// Throws where the browser has no room, or keeps nothing.
export function keepWork(id, work) {
  localStorage.setItem(keyOf(id), JSON.stringify(work));
}

// The work kept for a scan, or null where there is none; throws where it can't be used.
export function keptWork(id, shape) {
  const text = localStorage.getItem(keyOf(id));
  if (!text) return null;
  const work = JSON.parse(text);
  const usable =
    work.objects.every((object) => Number.isInteger(object.id) && Number.isInteger(object.number) && typeof object.name === 'string' && isObject(object, shape)) &&
    isPoint(work.view.crosshair, shape);
  if (!usable) throw new TypeError('kept in another form');
  return work;
}
