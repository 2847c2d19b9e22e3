// The work on the scan: kept a moment after each change, and brought back when the scan is opened again.

import { keepWork, keptWork } from './store.js';

const KEEP_AFTER = 400;

export class Work {
  constructor({ model, session, objects, actions }) {
    Object.assign(this, { model, session, objects, actions });
    this.keeping = null;
  }

  keepSoon() {
    this.keeping ??= setTimeout(() => this.keepNow(), KEEP_AFTER);
  }

  keepNow() {
    clearTimeout(this.keeping);
    this.keeping = null;
    const { model, session, objects, actions } = this;
    if (!model.scan || actions.loading) return;
    const work = {
      objects: objects.list.map((object) => ({ ...object, ...objects.looks.get(object.id) })),
      selected: objects.selected,
      labels: model.labelsName,
      network: session.window,
      view: model.view,
    };
    try {
      keepWork(model.scan.id, work);
    } catch {
      actions.say('The browser has no room to keep this work: save the prompts.');
    }
  }

  // What was kept for a scan, or null.
  kept({ id, shape }) {
    try {
      return keptWork(id, shape);
    } catch {
      this.actions.say('The work that the browser kept for this scan can’t be read.');
      return null;
    }
  }

  // Puts the kept objects, or none, in the place of those of the scan before.
  restore(work) {
    const { model, objects } = this;
    objects.clear();
    model.labelsName = work?.labels ?? null;
    for (const { id, number, name, colour, visible } of work?.objects ?? []) objects.looks.set(id, { number, name, colour, visible });
    const kept = (work?.objects ?? []).map(({ id, box, clicks, drawings, initial }) => ({ id, box, clicks, drawings, initial }));
    objects.restore({ list: kept, selected: work?.selected ?? null });
  }
}
