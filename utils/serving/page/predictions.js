// Masks of objects: asked one after the other, and kept, since the answer depends only on the prompts.

import { request } from './objects.js';
import { losers } from './masks.js';

const BYTES_KEPT = 400e6;
// The same prompt would be refused again.
const REFUSALS = new Set([400, 413]);
const EMPTY = { bbox: null, voxels: 0, doubtful: false, data: new Uint8Array() };

export class Predictions {
  // segment(request) resolves to a mask, mayTake(object, others) to whether it may take voxels of the others.
  constructor({ objects, segment, draws, mayTake, changed, failed }) {
    Object.assign(this, { objects, segment, draws, mayTake, changed, failed });
    this.clear();
  }

  clear() {
    this.answers = new Map();
    this.labelMasks = new Map();
    this.forget();
  }

  // Forgets all answers of the network: it sees something else now.
  forget() {
    this.answers.clear();
    this.refused = new Map();
    this.failedAt = null;
    // The last version of each object that was shown, with its mask.
    this.shown = new Map();
    this.predicting = null;
    this.generation = Symbol('predictions of one scan in one window');
  }

  request(object) {
    return request(object, this.draws());
  }

  keptAnswer(object, asked) {
    if (Object.keys(asked).join() === 'initial') return this.labelMasks.get(object.initial);
    return this.answers.get(JSON.stringify(asked));
  }

  // The mask of an object, or its last one while a new one is awaited, or null.
  mask(object) {
    const asked = this.request(object);
    if (!asked) return null;
    const mask = this.keptAnswer(object, asked);
    if (mask) this.shown.set(object.id, { object, mask });
    return mask ?? this.shown.get(object.id)?.mask ?? null;
  }

  // The reason why an object has no mask of its prompts.
  refusal(object) {
    return this.refused.get(JSON.stringify(this.request(object)));
  }

  needsLabels(object) {
    return Boolean(object.initial) && !this.labelMasks.has(object.initial);
  }

  next() {
    const { list, current } = this.objects;
    const waiting = (object) => {
      const asked = this.request(object);
      return asked && !this.needsLabels(object) && !this.keptAnswer(object, asked) && !this.refusal(object);
    };
    return current && waiting(current) ? current : list.find(waiting);
  }

  keep(key, mask) {
    this.answers.set(key, mask);
    let bytes = 0;
    for (const answer of this.answers.values()) bytes += answer.data.length;
    const needed = new Set(this.objects.list.map((object) => JSON.stringify(this.request(object))));
    for (const [old, answer] of this.answers) {
      if (bytes <= BYTES_KEPT) break;
      if (needed.has(old)) continue;
      bytes -= answer.data.length;
      this.answers.delete(old);
    }
  }

  retry() {
    this.refused.clear();
    this.failedAt = null;
    return this.run();
  }

  // Asks for all masks that are missing. After a failure the user tries again, or gives another prompt.
  async run() {
    if (this.running || this.objects.list === this.failedAt || !this.next()) return;
    this.running = true;
    try {
      for (let object = this.next(); object; object = this.next()) await this.predict(object);
    } catch (failure) {
      if (!REFUSALS.has(failure.status)) this.failedAt = this.objects.list;
      this.failed(failure);
    } finally {
      this.running = false;
      this.predicting = null;
      this.changed();
    }
  }

  async predict(object) {
    const { generation } = this;
    const asked = this.request(object);
    const key = JSON.stringify(asked);
    this.predicting = object.id;
    this.changed();
    let mask;
    try {
      mask = await this.segment(asked);
    } catch (failure) {
      if (generation !== this.generation) return;
      // A prompt that the server refuses must not keep the other objects waiting.
      if (REFUSALS.has(failure.status)) this.refused.set(key, failure.message);
      throw failure;
    }
    if (generation !== this.generation) return;
    this.predicting = null;
    if (await this.accepted(object, mask)) this.keep(key, mask);
    this.changed();
  }

  // Whether the answer to a correction may be shown. Objects later in the list lose what an earlier one covers.
  async accepted(object, mask) {
    const { list } = this.objects;
    const index = list.indexOf(object);
    const before = this.shown.get(object.id);
    if (index < 0 || !before || !mask.bbox) return true;
    const masks = list.map((other) => this.mask(other) ?? EMPTY);
    const others = losers(masks, index, mask).map((at) => list[at]);
    if (!others.length) return true;
    this.changed();
    if (await this.mayTake(object, others)) return true;
    this.objects.takeBack(object, before.object);
    return false;
  }
}
