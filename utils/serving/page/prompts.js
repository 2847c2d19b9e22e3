// Prompts as a file: in voxels of the scan's own file, as the command line reads them.

const atFile = (point, axis, { order, flipped, shape }) =>
  flipped[axis] ? shape[order[axis]] - 1 - point[order[axis]] : point[order[axis]];

const pointToFile = (point, grid) => [0, 1, 2].map((axis) => atFile(point, axis, grid));

function pointToPage(point, { order, flipped, shape }) {
  const page = [];
  for (const axis of [0, 1, 2]) page[order[axis]] = flipped[axis] ? shape[order[axis]] - 1 - point[axis] : point[axis];
  return page;
}

// Boxes are half-open: their first and last voxels are points, and change places where the axis is flipped.
function convertBox(box, convert) {
  const first = convert(box.slice(0, 3));
  const last = convert(box.slice(3).map((end) => end - 1));
  return [...first.map((a, axis) => Math.min(a, last[axis])), ...first.map((a, axis) => Math.max(a, last[axis]) + 1)];
}

function convertObject(object, convert) {
  const converted = { ...object };
  if (object.box) converted.box = convertBox(object.box, convert);
  if (object.clicks) converted.clicks = object.clicks.map((click) => [...convert(click.slice(0, 3)), click[3]]);
  if (object.drawings) {
    converted.drawings = object.drawings.map((drawing) => {
      if (drawing.box) return { ...drawing, box: convertBox(drawing.box, convert) };
      const kind = drawing.scribble ? 'scribble' : 'lasso';
      return { ...drawing, [kind]: drawing[kind].map(convert) };
    });
  }
  return converted;
}

// grid: {shape, order, flipped} of the opened scan.
const objectToFile = (object, grid) => convertObject(object, (point) => pointToFile(point, grid));

export const objectToPage = (object, grid) => convertObject(object, (point) => pointToPage(point, grid));

export function promptsFile(objects, scan, labels) {
  const file = { space: 'voxel', overlap: 'first' };
  if (scan.window) file.window = scan.window;
  if (labels) file.labels = labels;
  file.objects = objects.map((object) => objectToFile(object, scan));
  return file;
}
