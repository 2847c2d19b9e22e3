// Masks of objects: 0/1 voxels of a box `bbox` of the volume, in C order.

const extents = (bbox) => bbox.map(([low, high]) => high - low);

// Clears in `rest`, a copy of the voxels of `mask`, those that `other` holds too, and returns how many they were.
function subtract(rest, mask, other) {
  if (!mask.bbox || !other?.bbox) return 0;
  const [a, b] = [mask.bbox, other.bbox];
  const shared = a.map(([low, high], axis) => [Math.max(low, b[axis][0]), Math.min(high, b[axis][1])]);
  const [, rows, columns] = extents(a);
  const [, otherRows, otherColumns] = extents(b);
  let removed = 0;
  for (let z = shared[0][0]; z < shared[0][1]; z += 1) {
    for (let y = shared[1][0]; y < shared[1][1]; y += 1) {
      let index = ((z - a[0][0]) * rows + y - a[1][0]) * columns + shared[2][0] - a[2][0];
      let otherIndex = ((z - b[0][0]) * otherRows + y - b[1][0]) * otherColumns + shared[2][0] - b[2][0];
      for (let x = shared[2][0]; x < shared[2][1]; x += 1, index += 1, otherIndex += 1) {
        if (rest[index] && other.data[otherIndex]) {
          rest[index] = 0;
          removed += 1;
        }
      }
    }
  }
  return removed;
}

// How many voxels each mask of the list shows, where an earlier one keeps its voxels.
export function shownVoxels(masks) {
  return masks.map((mask, index) => {
    if (!mask?.bbox) return 0;
    const rest = mask.data.slice();
    return masks.slice(0, index).reduce((left, earlier) => left - subtract(rest, mask, earlier), mask.voxels);
  });
}

// Which masks of the list would lose voxels that they show now if mask `index` became `mask`.
export function losers(masks, index, mask) {
  const rest = mask.data.slice();
  masks.slice(0, index + 1).forEach((keeper) => subtract(rest, mask, keeper));
  return masks.flatMap((later, at) => (at > index && subtract(rest, mask, later) ? [at] : []));
}

// The mask of each label of a volume of labels.
export function masksOfLabels(volume, [depth, height, width], labels) {
  const found = new Map(labels.map((label) => [label, { low: [depth, height, width], high: [0, 0, 0], voxels: 0 }]));
  for (let z = 0, index = 0; z < depth; z += 1) {
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1, index += 1) {
        const box = volume[index] && found.get(volume[index]);
        if (!box) continue;
        box.voxels += 1;
        if (z < box.low[0]) box.low[0] = z;
        if (y < box.low[1]) box.low[1] = y;
        if (x < box.low[2]) box.low[2] = x;
        if (z >= box.high[0]) box.high[0] = z + 1;
        if (y >= box.high[1]) box.high[1] = y + 1;
        if (x >= box.high[2]) box.high[2] = x + 1;
      }
    }
  }
  const crop = (label, { low, high, voxels }) => {
    if (!voxels) return { bbox: null, voxels, doubtful: false, data: new Uint8Array() };
    const bbox = low.map((start, axis) => [start, high[axis]]);
    const data = new Uint8Array(extents(bbox).reduce((product, extent) => product * extent, 1));
    let target = 0;
    for (let z = low[0]; z < high[0]; z += 1) {
      for (let y = low[1]; y < high[1]; y += 1) {
        const row = (z * height + y) * width;
        for (let x = low[2]; x < high[2]; x += 1) data[target++] = Number(volume[row + x] === label);
      }
    }
    return { bbox, voxels, doubtful: false, data };
  };
  return new Map([...found].map(([label, box]) => [label, crop(label, box)]));
}

// Writes into `labels`, the cells of one slice, which mask of the list shows there: its place counted from 1, or 0.
// Returns the rows and columns outside of which all is 0.
export function fillLabels(labels, masks, { normal, row, column }, slice, columns) {
  const used = { rows: [Infinity, 0], columns: [Infinity, 0] };
  labels.fill(0);
  for (let place = masks.length; place > 0; place -= 1) {
    const bbox = masks[place - 1]?.bbox;
    if (!bbox || slice < bbox[normal][0] || slice >= bbox[normal][1]) continue;
    const [, height, width] = extents(bbox);
    const strides = [height * width, width, 1];
    const { data } = masks[place - 1];
    const [firstColumn, endColumn] = bbox[column];
    for (let r = bbox[row][0]; r < bbox[row][1]; r += 1) {
      let index = (slice - bbox[normal][0]) * strides[normal] + (r - bbox[row][0]) * strides[row];
      for (let c = firstColumn; c < endColumn; c += 1, index += strides[column]) {
        if (data[index]) labels[r * columns + c] = place;
      }
    }
    used.rows = [Math.min(used.rows[0], bbox[row][0]), Math.max(used.rows[1], bbox[row][1])];
    used.columns = [Math.min(used.columns[0], firstColumn), Math.max(used.columns[1], endColumn)];
  }
  return used;
}

// Paths along the edges of the cells of each label, in cells.
export function outlines(labels, { rows, columns }, width, height, count) {
  const paths = Array.from({ length: count + 1 }, () => new Path2D());
  const at = (r, c) => (r < 0 || c < 0 || r >= height || c >= width ? 0 : labels[r * width + c]);
  // Walks along one line of edges and draws each run of the same label in one stroke.
  const walk = (start, end, inside, outside, draw) => {
    let from = start;
    let current = 0;
    for (let position = start; position <= end; position += 1) {
      const label = position < end ? inside(position) : 0;
      const edge = label && label !== outside(position) ? label : 0;
      if (edge === current) continue;
      if (current) draw(paths[current], from, position);
      [from, current] = [position, edge];
    }
  };
  const horizontal = (r) => (path, from, to) => (path.moveTo(from, r), path.lineTo(to, r));
  const vertical = (c) => (path, from, to) => (path.moveTo(c, from), path.lineTo(c, to));
  for (let r = rows[0]; r < rows[1]; r += 1) {
    walk(...columns, (c) => at(r, c), (c) => at(r - 1, c), horizontal(r));
    walk(...columns, (c) => at(r, c), (c) => at(r + 1, c), horizontal(r + 1));
  }
  for (let c = columns[0]; c < columns[1]; c += 1) {
    walk(...rows, (r) => at(r, c), (r) => at(r, c - 1), vertical(c));
    walk(...rows, (r) => at(r, c), (r) => at(r, c + 1), vertical(c + 1));
  }
  return paths;
}
