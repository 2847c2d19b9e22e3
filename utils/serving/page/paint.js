// What planes are painted with: sheets of pixels, lines, handles and markers.

const IN = '#fff';
const OUT = '#ff5a4f';

// Pixels of one slice, one for each voxel.
export class Sheet {
  constructor(columns, rows) {
    this.canvas = document.createElement('canvas');
    this.canvas.width = columns;
    this.canvas.height = rows;
    this.context = this.canvas.getContext('2d');
    this.data = this.context.createImageData(columns, rows);
    this.pixels = new Uint32Array(this.data.data.buffer);
    this.state = null;
  }

  put(state) {
    this.context.putImageData(this.data, 0, 0);
    this.state = state;
  }
}

export function opaque(colour) {
  const [red, green, blue] = [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
  return (0xff000000 | (blue << 16) | (green << 8) | red) >>> 0;
}

// A dark line below keeps a bright one visible on any grey.
export function strokeTwice(context, path, label, dash) {
  context.lineJoin = 'round';
  context.lineWidth = 3.5;
  context.strokeStyle = 'rgb(0 0 0 / 60%)';
  context.stroke(path);
  context.setLineDash(dash);
  context.lineWidth = 1.5;
  context.strokeStyle = label ? IN : OUT;
  context.stroke(path);
  context.setLineDash([]);
}

export function paintHandle(context, { x, y }) {
  context.beginPath();
  context.arc(x, y, 4, 0, 2 * Math.PI);
  context.fillStyle = IN;
  context.fill();
  context.lineWidth = 1;
  context.strokeStyle = '#000';
  context.stroke();
}

export function paintMarker(context, [x, y], label) {
  context.beginPath();
  context.arc(x, y, 6.5, 0, 2 * Math.PI);
  context.fillStyle = label ? IN : OUT;
  context.fill();
  context.lineWidth = 1.25;
  context.strokeStyle = '#000';
  context.stroke();
  context.beginPath();
  context.moveTo(x - 3.5, y);
  context.lineTo(x + 3.5, y);
  if (label) (context.moveTo(x, y - 3.5), context.lineTo(x, y + 3.5));
  context.lineWidth = 2;
  context.stroke();
}
