// The scan as the server has it: files sent, scan opened, objects predicted, labels loaded and saved.

import { Api, Failure, metaOf } from './api.js';

const UPLOADED = 'sam-med3d:uploaded';
const UPLOADS_AT_ONCE = 3;

export class Session {
  constructor(askKey) {
    this.api = new Api(askKey, () => this.reopen());
    this.uploaded = sessionStorage.getItem(UPLOADED);
    this.window = null;
    this.labels = null;
  }

  get draws() {
    return this.api.lease.draws;
  }

  get given() {
    return this.api.lease.given;
  }

  async open(uploaded, window = null) {
    const response = await this.api.leased(() => this.api.send('/page/open', { json: { uploaded: Boolean(uploaded), window } }));
    const meta = await response.json();
    this.uploaded = uploaded;
    this.window = window;
    if (uploaded) sessionStorage.setItem(UPLOADED, uploaded);
    else sessionStorage.removeItem(UPLOADED);
    return meta;
  }

  // Opens the same scan in a session of its own, after the old session has ended.
  async reopen() {
    await this.api.claim();
    await this.changeWindow(this.window).catch((failure) => {
      if (failure.status !== 400 || !this.uploaded) throw failure;
      throw new Failure(400, `The server no longer has ${this.uploaded}. Open it again: your prompts are kept.`);
    });
  }

  async changeWindow(window) {
    const meta = await this.open(this.uploaded, window);
    if (this.labels) await this.api.send('/page/labels', { meta: { name: this.labels.name }, body: this.labels });
    return meta;
  }

  // files: [{name, file}], several of them called `series`; progress(sent, all) is called after each.
  async upload(files, series, progress) {
    const bytes = files.reduce((sum, { file }) => sum + file.size, 0);
    await this.api.leased(async () => {
      const limit = this.api.lease.max_bytes;
      if (bytes > limit) throw new Failure(413, `This is ${megabytes(bytes)}; the server takes ${megabytes(limit)} at most.`);
      let next = 1;
      let sent = 0;
      const send = async (index) => {
        const { name, file } = files[index];
        await this.api.send('/page/upload', { meta: { name, first: index === 0, series }, body: file });
        progress((sent += 1), files.length);
      };
      await send(0);
      const worker = async () => {
        while (next < files.length) await send(next++);
      };
      await Promise.all(Array.from({ length: UPLOADS_AT_ONCE }, worker));
    });
  }

  async volume() {
    const response = await this.api.call('/page/volume', { method: 'GET' });
    return response.arrayBuffer();
  }

  async segment(object) {
    const response = await this.api.call('/page/segment', { json: { object } });
    return { ...metaOf(response), data: new Uint8Array(await response.arrayBuffer()) };
  }

  // Resolves to the voxel where a click may help most, or null.
  async suggest(object) {
    const response = await this.api.call('/page/suggest', { json: { object } });
    return (await response.json()).voxel;
  }

  async loadLabels(file) {
    const response = await this.api.call('/page/labels', { meta: { name: file.name }, body: file });
    this.labels = file;
    return { ...metaOf(response), volume: new Uint8Array(await response.arrayBuffer()) };
  }

  async save(objects, format) {
    const response = await this.api.call('/page/save', { json: { objects, format } });
    return { name: metaOf(response).name, blob: await response.blob() };
  }
}

const megabytes = (bytes) => `${Math.ceil(bytes / 1e6)} MB`;
