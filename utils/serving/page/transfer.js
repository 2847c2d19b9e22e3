// Prompts and labels come in; labels, prompts and pictures go out.

import { download } from './files.js';
import { masksOfLabels } from './masks.js';
import { $ } from './panel.js';
import { objectToPage, promptsFile } from './prompts.js';
import { isObject } from './store.js';

export class Transfer {
  constructor({ model, session, objects, predictions, display, actions, state }) {
    Object.assign(this, { model, session, objects, predictions, display, actions, state });
  }

  // The objects that have a prompt, as the server is asked about them.
  get prompted() {
    return this.objects.list.map((object) => this.predictions.request(object)).filter(Boolean);
  }

  // The scan's name without its ending.
  get stem() {
    return this.model.scan.name.replace(/(\.nii)?\.\w+$/, '');
  }

  needScan() {
    if (!this.model.scan) throw new Error('Open a scan first.');
  }

  openPrompts(file) {
    const { model, objects } = this;
    return this.actions.attempt(async () => {
      this.needScan();
      const { shape } = model.scan;
      let found;
      try {
        found = JSON.parse(await file.text()).objects.map(({ box = null, clicks = [], drawings = [], initial }) =>
          objectToPage({ box, clicks, drawings, initial }, model.scan));
      } catch {
        found = null;
      }
      if (!found?.every((object) => isObject(object, shape))) throw new Error(`${file.name} has no prompts for this scan.`);
      const added = found.map((prompts, ahead) => objects.create(prompts, { ahead }));
      objects.commit([...objects.list, ...added], added.at(-1)?.id ?? objects.selected);
    });
  }

  loadLabels(file) {
    const { model, session, objects, predictions, actions } = this;
    return actions.attempt(async () => {
      this.needScan();
      await actions.whileLoading('Loading the labels…', async () => {
        const { labels, volume } = await session.loadLabels(file);
        const again = file.name === model.labelsName && objects.list.some((object) => predictions.needsLabels(object));
        model.labelsName = file.name;
        predictions.forget();
        predictions.labelMasks = masksOfLabels(volume, model.scan.shape, labels);
        if (again) return;
        // Objects of other labels, and steps back to them, have lost what they started from.
        const kept = objects.list.filter((object) => !object.initial);
        objects.list = kept;
        const added = labels.map((label, ahead) => objects.create({ initial: label }, { name: `Label ${label}`, ahead }));
        objects.forget();
        objects.restore({ list: [...kept, ...added], selected: added[0]?.id ?? null });
      });
      this.state.update();
    });
  }

  // Goes to where the network is least sure of the selected object.
  goToDoubt() {
    const { objects, predictions, session, actions } = this;
    const asked = objects.current && predictions.request(objects.current);
    if (!asked) return actions.say('Give the object a prompt first.');
    return actions.attempt(async () => {
      const voxel = await session.suggest(asked);
      if (voxel) this.display.moveTo(voxel);
      actions.say(voxel ? 'Is this in the object? Click Add or Remove at the crosshair.' : 'The network is sure of all of it.');
    });
  }

  saveLabels() {
    const { session, actions } = this;
    return actions.attempt(async () => {
      actions.say('Saving the labels…');
      const { name, blob } = await session.save(this.prompted, $('format').value);
      download(name, blob);
      actions.say(`Saved ${name}.`);
    });
  }

  savePrompts() {
    const { scan, labelsName } = this.model;
    const { prompted } = this;
    const file = promptsFile(prompted, scan, prompted.some(({ initial }) => initial) && labelsName);
    download(`${this.stem}.json`, new Blob([JSON.stringify(file, null, 1)], { type: 'application/json' }));
  }

  savePicture() {
    this.display.picture().toBlob((blob) => download(`${this.stem}.png`, blob));
  }
}
