// The volume of a scan: its geometry, its slices, and grey levels for its values.

const BLACK = 0xff000000;

// Axes are those of the volume: 0 is z (to Superior), 1 is y (to Posterior), 2 is x (to Left).
export const ENDS = [['I', 'S'], ['A', 'P'], ['R', 'L']];

export class Scan {
  constructor(meta, buffer) {
    Object.assign(this, meta);
    this.voxels = meta.type === 'int16' ? new Int16Array(buffer) : new Uint8Array(buffer);
    this.strides = [this.shape[1] * this.shape[2], this.shape[2], 1];
    this.lowest = meta.type === 'int16' ? -32768 : 0;
    this.greys = new Uint32Array(meta.type === 'int16' ? 65536 : 256);
    this.greysVersion = 0;
  }

  get millilitres() {
    return this.spacing.reduce((product, length) => product * length, 1) / 1000;
  }

  value([z, y, x]) {
    return this.voxels[z * this.strides[0] + y * this.strides[1] + x] * this.slope + this.intercept;
  }

  position([z, y, x]) {
    return this.affine.slice(0, 3).map((row) => row[0] * x + row[1] * y + row[2] * z + row[3]);
  }

  fullRange() {
    let low = Infinity;
    let high = -Infinity;
    for (const voxel of this.voxels) {
      if (voxel < low) low = voxel;
      if (voxel > high) high = voxel;
    }
    return [low, high].map((voxel) => voxel * this.slope + this.intercept);
  }

  setWindow(level, width) {
    const scale = (255 / width) * this.slope;
    const offset = ((this.intercept - level) / width + 0.5) * 255;
    for (let index = 0; index < this.greys.length; index += 1) {
      const grey = Math.max(0, Math.min(255, Math.round((index + this.lowest) * scale + offset)));
      this.greys[index] = BLACK | (grey << 16) | (grey << 8) | grey;
    }
    this.greysVersion += 1;
  }

  // Writes the pixels of one slice, rows along axis `row` and columns along axis `column`.
  fillSlice(pixels, { normal, row, column }, slice) {
    const { voxels, greys, lowest } = this;
    const columns = this.shape[column];
    const step = this.strides[column];
    let pixel = 0;
    for (let r = 0; r < this.shape[row]; r += 1) {
      let voxel = slice * this.strides[normal] + r * this.strides[row];
      for (let c = 0; c < columns; c += 1, voxel += step) pixels[pixel++] = greys[voxels[voxel] - lowest];
    }
  }
}
