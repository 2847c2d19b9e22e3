// What follows from the objects and the tool: masks on the planes, the list, the buttons, the next step and the status.

import { shownVoxels } from './masks.js';
import { $, nextStep, objectHint, setStatus } from './panel.js';

export class State {
  constructor({ model, session, objects, predictions, tools, display, list, work, actions }) {
    Object.assign(this, { model, session, objects, predictions, tools, display, list, work, actions });
    this.measured = { masks: [], voxels: [] };
  }

  // After a change of the objects, or of what is known of them.
  update() {
    if (!this.model.scan) return this.show();
    this.showObjects();
    this.show();
    this.display.redraw();
    this.work.keepSoon();
    this.predictions.run();
  }

  showObjects() {
    const { model, objects, predictions } = this;
    const masks = objects.list.map((object) => predictions.mask(object));
    const voxels = this.voxels(masks);
    model.layers = objects.list.map((object, index) => ({ id: object.id, mask: masks[index], ...objects.looks.get(object.id) }));
    model.layersVersion += 1;
    this.list.show(objects.list.map((object, index) => ({
      id: object.id,
      ...objects.looks.get(object.id),
      millilitres: masks[index] && voxels[index] * model.scan.millilitres,
      hint: objectHint(object, masks[index], predictions),
      selected: object.id === objects.selected,
    })));
  }

  // How many voxels each mask shows; counted again only for other masks, since that takes long.
  voxels(masks) {
    const { measured } = this;
    if (masks.length !== measured.masks.length || masks.some((mask, index) => mask !== measured.masks[index])) {
      this.measured = { masks, voxels: shownVoxels(masks) };
    }
    return this.measured.voxels;
  }

  show() {
    this.showNextStep();
    this.showButtons();
    this.showStatus();
  }

  showNextStep() {
    const { model, session, objects, predictions, tools } = this;
    const object = objects.current;
    $('hint').textContent = nextStep({
      scan: model.scan,
      object,
      mask: object && predictions.mask(object),
      draft: tools.draft,
      tool: tools.name,
      draws: model.scan && session.draws,
      predictions,
      labelsName: model.labelsName,
      needsLabels: objects.list.some((other) => predictions.needsLabels(other)),
    });
  }

  showButtons() {
    const { objects, predictions, tools } = this;
    $('undo').disabled = !objects.past.length;
    $('redo').disabled = !objects.future.length;
    for (const button of document.querySelectorAll('[data-tool]')) {
      button.setAttribute('aria-pressed', String(button.dataset.tool === tools.name));
    }
    $('sign').textContent = tools.sign ? 'In (X)' : 'Out (X)';
    $('sign').setAttribute('aria-pressed', String(!tools.sign));
    for (const plane of this.display.planes) plane.canvas.dataset.cursor = tools.name;
    $('suggest').disabled = !objects.current || !predictions.request(objects.current);
    const some = objects.list.some((object) => predictions.request(object));
    $('save-labels').disabled = !some;
    $('save-prompts').disabled = !some;
  }

  showStatus() {
    const { objects, predictions, actions } = this;
    if (actions.loading) return;
    const { predicting } = predictions;
    if (predicting) setStatus('predicting', `Finding ${objects.looks.get(predicting)?.name}…`);
    else if (!$('error').hidden) setStatus('error', 'Something went wrong.');
    else setStatus('ready', actions.said || 'Ready');
  }
}
