// The page: its parts, the controls that act on them, and the start.

import { Actions } from './actions.js';
import { Display } from './display.js';
import { filesOfDrop, filesOfInput, folderOf } from './files.js';
import { listen } from './gestures.js';
import { Objects } from './objects.js';
import { Opening } from './opening.js';
import { $, ask, askKey, hideError, ObjectList } from './panel.js';
import { Predictions } from './predictions.js';
import { Session } from './session.js';
import { State } from './state.js';
import { Tools } from './tools.js';
import { Transfer } from './transfer.js';
import { Work } from './work.js';

const TOOL_KEYS = { v: 'navigate', b: 'box', p: 'plus', '=': 'plus', '+': 'plus', n: 'minus', '-': 'minus', s: 'scribble', l: 'lasso' };

// Parts. What a part causes in one that is built later goes through a function.

const session = new Session(askKey);
const view = { crosshair: [0, 0, 0], level: 0, width: 1, preset: 'default', opacity: 0.45, outline: false, layout: 'axial', neurological: false };
const objects = new Objects(() => state.update());
const model = {
  scan: null,
  view,
  layers: [],
  layersVersion: 0,
  labelsName: null,
  get current() { return objects.current; },
  get draft() { return tools.draft; },
  get handles() { return tools.name === 'box' || tools.name === 'navigate'; },
};
const actions = new Actions({ model, changed: () => state.show() });
const predictions = new Predictions({
  objects,
  segment: (asked) => {
    hideError();
    return session.segment(asked);
  },
  draws: () => session.draws,
  mayTake: (object, others) => {
    const name = ({ id }) => objects.looks.get(id).name;
    return ask(`${name(object)} would take voxels that now belong to ${others.map(name).join(', ')}.`);
  },
  changed: () => state.update(),
  failed: (failure) => actions.report(failure, () => predictions.retry()),
});
const tools = new Tools({
  view,
  model,
  objects,
  draws: () => session.draws,
  redraw: () => display.redraw(),
  moveTo: (voxel) => display.moveTo(voxel),
  say: (text) => actions.say(text),
});
const display = new Display({ model, crosshairMoved: () => tools.crosshairMoved(), changed: () => work.keepSoon() });
const list = new ObjectList({
  select: (id) => id !== objects.selected && objects.select(id),
  rename: (id, name) => objects.changeLooks(id, { name: name.trim() || `Object ${objects.looks.get(id).number}` }),
  show: (id) => objects.changeLooks(id, { visible: !objects.looks.get(id).visible }),
  remove: (id) => objects.remove(id),
});
const work = new Work({ model, session, objects, actions });
const state = new State({ model, session, objects, predictions, tools, display, list, work, actions });
const opening = new Opening({ model, session, predictions, tools, display, work, actions, state });
const transfer = new Transfer({ model, session, objects, predictions, display, actions, state });

// Controls

function on(id, type, action) {
  $(id).addEventListener(type, action);
}

function chooseTool(name) {
  tools.choose(name);
  state.show();
}

function turnSign() {
  tools.sign = 1 - tools.sign;
  state.show();
}

function onKey(event) {
  const typing = event.target.matches('input:not([type=file], [type=checkbox], [type=range]), select');
  if (typing || actions.loading || !model.scan || document.querySelector('dialog[open]') || event.altKey) return;
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) {
    if (key === 'z' && !event.shiftKey) objects.undo();
    else if (key === 'y' || key === 'z') objects.redo();
    else return;
  } else if (TOOL_KEYS[key]) chooseTool(TOOL_KEYS[key]);
  else if (key === 'x') turnSign();
  else if (key === 'm') objects.add();
  else if (key === 'u') transfer.goToDoubt();
  else if (key === '0') display.resetViews(...display.planes);
  else if (key === '?') $('help').showModal();
  else if (key === 'escape') tools.cancel();
  else return;
  event.preventDefault();
  state.show();
}

for (const plane of display.planes) {
  listen(plane, tools, display);
  plane.canvas.addEventListener('keyup', () => state.show());
}
for (const button of document.querySelectorAll('[data-tool]')) {
  button.addEventListener('click', ({ detail }) => {
    chooseTool(button.dataset.tool);
    if (detail) button.blur(); // after the mouse, the space bar is for the planes again
  });
}
on('sign', 'click', turnSign);
on('undo', 'click', () => objects.undo());
on('redo', 'click', () => objects.redo());
on('suggest', 'click', () => transfer.goToDoubt());
on('object-new', 'click', () => objects.add());
on('open-file', 'change', ({ target }) => {
  const files = filesOfInput(target);
  opening.openFiles(files, files[0]?.name);
});
on('open-folder', 'change', ({ target }) => {
  const files = filesOfInput(target);
  if (files.length) opening.openFiles(files, folderOf(files));
});
on('load-labels', 'change', ({ target }) => transfer.loadLabels(filesOfInput(target)[0].file));
on('load-prompts', 'change', ({ target }) => transfer.openPrompts(filesOfInput(target)[0].file));
on('window-preset', 'change', ({ target }) => display.setPreset(target.value));
on('level', 'change', () => display.setTypedWindow());
on('width', 'change', () => display.setTypedWindow());
on('network-window', 'change', ({ target }) => opening.changeNetworkWindow(target.value));
on('opacity', 'input', ({ target }) => display.change({ opacity: target.valueAsNumber }));
on('outline', 'change', ({ target }) => display.change({ outline: target.checked }));
on('convention', 'change', ({ target }) => display.change({ neurological: target.value === 'neurological' }));
on('layout', 'change', ({ target }) => display.setLayout(target.value));
on('save-labels', 'click', () => transfer.saveLabels());
on('save-prompts', 'click', () => transfer.savePrompts());
on('save-picture', 'click', () => transfer.savePicture());
on('help-open', 'click', () => $('help').showModal());
on('error-close', 'click', () => {
  hideError();
  state.show();
});

addEventListener('keydown', onKey);
addEventListener('pagehide', () => work.keepNow());
addEventListener('dragover', (event) => {
  event.preventDefault();
  $('drop').hidden = false;
});
addEventListener('dragleave', (event) => {
  if (!event.relatedTarget) $('drop').hidden = true;
});
addEventListener('drop', async (event) => {
  event.preventDefault();
  $('drop').hidden = true;
  const { files, name } = await filesOfDrop(event.dataTransfer);
  if (files.length === 1 && files[0].name.endsWith('.json')) transfer.openPrompts(files[0].file);
  else opening.openFiles(files, name);
});

if (Array.prototype.with && window.HTMLDialogElement) opening.start();
else $('old-browser').hidden = false;
