// Scans are opened: what changes on the page with each, and what the network sees of it.

import { Failure } from './api.js';
import { $, fillSelect, setStatus } from './panel.js';
import { Scan } from './scan.js';

export class Opening {
  constructor({ model, session, predictions, tools, display, work, actions, state }) {
    Object.assign(this, { model, session, predictions, tools, display, work, actions, state });
  }

  // Opens the scan that this tab had open, or the one that the server was started with.
  start() {
    const { uploaded } = this.session;
    return this.actions.attempt(() => this.open(uploaded).catch((failure) => {
      if (failure.status !== 400 || !uploaded) throw failure;
      const missing = new Failure(400, `The server no longer has ${uploaded}. Open it again: your prompts are kept.`);
      missing.action = { label: `Open ${this.session.given}`, run: () => this.actions.attempt(() => this.open(null)) };
      throw missing;
    }));
  }

  async openFiles(files, name) {
    if (!files.length) return;
    await this.actions.attempt(async () => {
      await this.actions.whileLoading('Sending the files…', () =>
        this.session.upload(files, name, (sent, all) => setStatus('loading', `Sending the files: ${sent} of ${all}`)));
      await this.open(name);
    });
  }

  // uploaded: the name of files sent before, or null for the scan that the server was started with.
  async open(uploaded) {
    const { model, session, predictions, display, work } = this;
    work.keepNow();
    await this.actions.whileLoading('Opening the scan…', async () => {
      let meta = await session.open(uploaded);
      session.labels = null;
      const kept = work.kept(meta);
      if (kept?.network && meta.is_hu) meta = await session.open(uploaded, kept.network);
      const scan = new Scan(meta, await session.volume());
      predictions.clear();
      model.scan = scan;
      this.showScan();
      display.show(kept?.view);
      work.restore(kept);
    });
    this.state.update();
  }

  showScan() {
    const { session, tools } = this;
    const { scan } = this.model;
    document.title = `${scan.name} – SAM-Med3D`;
    $('scan-name').textContent = scan.name;
    $('scan-name').title = scan.name;
    fillSelect($('format'), scan.formats.map((format) => [format, format]));
    this.showNetworkWindow();
    $('notices').replaceChildren(...scan.notices.map((text) => Object.assign(document.createElement('li'), { textContent: text })));
    $('notices-section').hidden = !scan.notices.length;
    for (const id of ['tool-scribble', 'tool-lasso', 'sign']) $(id).hidden = !session.draws;
    if (!session.draws && ['scribble', 'lasso'].includes(tools.name)) tools.choose('box');
  }

  showNetworkWindow() {
    const { scan } = this.model;
    $('network-row').hidden = !scan.is_hu;
    if (!scan.is_hu) return;
    const names = Object.keys(scan.windows);
    if (!names.includes(scan.window)) names.push(scan.window);
    fillSelect($('network-window'), [...names.map((name) => [name, name]), ['shown', 'as shown now']]);
    $('network-window').value = scan.window;
  }

  changeNetworkWindow(choice) {
    const { model, session, predictions, actions } = this;
    const { level, width } = model.view;
    const window = choice === 'shown' ? `${Math.round(level)},${Math.round(width)}` : choice;
    return actions.attempt(async () => {
      await actions.whileLoading('Changing what the network sees…', async () => {
        try {
          model.scan.window = (await session.changeWindow(window)).window;
          predictions.forget();
        } finally {
          this.showNetworkWindow();
        }
      });
      this.state.update();
    });
  }
}
