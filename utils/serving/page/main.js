// The page: what is shown, what the controls do, and how scans come in and results go out.

import { Failure } from './api.js';
import { download, filesOfDrop, filesOfInput, folderOf } from './files.js';
import { listen } from './gestures.js';
import { masksOfLabels, shownVoxels } from './masks.js';
import { Objects } from './objects.js';
import { $, ask, askKey, hideError, nextStep, objectHint, ObjectList, setStatus, showError } from './panel.js';
import { Plane } from './plane.js';
import { Predictions } from './predictions.js';
import { objectToPage, promptsFile } from './prompts.js';
import { Scan } from './scan.js';
import { Session } from './session.js';
import { isObject, keepWork, keptWork } from './store.js';
import { Tools } from './tools.js';

const KEEP_AFTER = 400;
const PICTURE_SIDE = 640;
const NO_RETRY = new Set([400, 403, 413]);
const TOOL_KEYS = { v: 'navigate', b: 'box', p: 'plus', '=': 'plus', '+': 'plus', n: 'minus', '-': 'minus', s: 'scribble', l: 'lasso' };

const session = new Session(askKey);
const view = { crosshair: [0, 0, 0], level: 0, width: 1, preset: 'default', opacity: 0.45, outline: false, layout: 'axial', neurological: false };
const objects = new Objects(() => update());
const predictions = new Predictions({
  objects,
  segment: (asked) => {
    hideError();
    return session.segment(asked);
  },
  draws,
  mayTake: (object, others) =>
    ask(`${looks(object).name} would take voxels that now belong to ${others.map((other) => looks(other).name).join(', ')}.`),
  changed: () => update(),
  failed: (failure) => report(failure, () => predictions.retry()),
});
const tools = new Tools({ view, objects, draws, redraw, say, moveTo, get model() { return model; } });
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
const planes = ['axial', 'coronal', 'sagittal'].map((name) => new Plane(name, $(`plane-${name}`), model));
const list = new ObjectList({
  select: (id) => id !== objects.selected && objects.select(id),
  rename: (id, name) => change(id, { name: name.trim() || `Object ${objects.looks.get(id).number}` }),
  show: (id) => change(id, { visible: !objects.looks.get(id).visible }),
  remove: (id) => objects.remove(id),
});

let loading = true;
let said = '';
let redrawing = false;
let redraws = 0;
let keeping = null;
let measured = { masks: [], voxels: [] };

function draws() {
  return session.draws;
}

function looks(object) {
  return objects.looks.get(object.id);
}

function change(id, changes) {
  Object.assign(objects.looks.get(id), changes);
  update();
}

// Drawing

function redraw() {
  if (redrawing) return;
  redrawing = true;
  requestAnimationFrame(() => {
    redrawing = false;
    if (!model.scan) return;
    for (const plane of planes) {
      if (!plane.width) continue;
      plane.draw();
      plane.canvas.parentElement.querySelector('output').textContent = `${plane.slice + 1} / ${model.scan.shape[plane.axes.normal]}`;
    }
    document.documentElement.dataset.redraws = redraws += 1;
  });
}

function moveTo(voxel) {
  view.crosshair = voxel;
  tools.crosshairMoved();
  showPosition(voxel);
  redraw();
  keepSoon();
}

function moveBy(axis, steps) {
  const last = model.scan.shape[axis] - 1;
  moveTo(view.crosshair.with(axis, Math.max(0, Math.min(last, view.crosshair[axis] + steps))));
}

function resetViews(...which) {
  which.forEach((plane) => plane.reset());
  redraw();
}

function showPosition(voxel) {
  const { scan } = model;
  const [right, anterior, superior] = scan.position(voxel).map((length) => length.toFixed(1));
  const value = Number(scan.value(voxel).toPrecision(6));
  $('position').textContent =
    `R ${right}  A ${anterior}  S ${superior} mm  ·  voxel ${voxel.join(', ')} (z, y, x)  ·  value ${value}${scan.is_hu ? ' HU' : ''}`;
}

function setWindow(level, width, preset = 'custom') {
  view.level = level;
  view.width = Math.max(width, 1e-6);
  view.preset = preset;
  model.scan.setWindow(view.level, view.width);
  const round = (value) => Number(value.toPrecision(5));
  $('level').value = round(view.level);
  $('width').value = round(view.width);
  $('window-preset').value = preset;
  redraw();
  keepSoon();
}

function moveWindow(levels, widths) {
  const [low, high] = model.scan.levels;
  setWindow(view.level + levels * (high - low), view.width + widths * (high - low));
}

// What follows from the objects

function update() {
  if (!model.scan) return showState();
  const masks = objects.list.map((object) => predictions.mask(object));
  if (masks.length !== measured.masks.length || masks.some((mask, index) => mask !== measured.masks[index])) {
    measured = { masks, voxels: shownVoxels(masks) };
  }
  model.layers = objects.list.map((object, index) => ({ id: object.id, mask: masks[index], ...looks(object) }));
  model.layersVersion += 1;
  list.show(objects.list.map((object, index) => ({
    id: object.id,
    ...looks(object),
    millilitres: masks[index] && measured.voxels[index] * model.scan.millilitres,
    hint: objectHint(object, masks[index], predictions),
    selected: object.id === objects.selected,
  })));
  showState();
  redraw();
  keepSoon();
  predictions.run();
}

function showState() {
  const object = objects.current;
  $('undo').disabled = !objects.past.length;
  $('redo').disabled = !objects.future.length;
  $('hint').textContent = nextStep({
    scan: model.scan,
    object,
    mask: object && predictions.mask(object),
    draft: tools.draft,
    tool: tools.name,
    draws: model.scan && draws(),
    predictions,
    labelsName: model.labelsName,
    needsLabels: objects.list.some((other) => predictions.needsLabels(other)),
  });
  for (const button of document.querySelectorAll('[data-tool]')) {
    button.setAttribute('aria-pressed', String(button.dataset.tool === tools.name));
  }
  $('sign').textContent = tools.sign ? 'In (X)' : 'Out (X)';
  $('sign').setAttribute('aria-pressed', String(!tools.sign));
  for (const plane of planes) plane.canvas.dataset.cursor = tools.name;
  const some = objects.list.some((other) => predictions.request(other));
  $('save-labels').disabled = !some;
  $('save-prompts').disabled = !some;
  if (loading) return;
  const { predicting } = predictions;
  const name = objects.looks.get(predicting)?.name;
  if (predicting) setStatus('predicting', `Finding ${name}…`);
  else if (!$('error').hidden) setStatus('error', 'Something went wrong.');
  else setStatus('ready', said || 'Ready');
}

function say(text) {
  said = text;
  showState();
  setTimeout(() => {
    if (said !== text) return;
    said = '';
    showState();
  }, 5000);
}

function report(failure, again) {
  console.error(failure);
  const retry = failure instanceof Failure && !NO_RETRY.has(failure.status);
  showError(failure.message, retry ? { label: 'Try again', run: again } : failure.action);
  showState();
}

// Runs an action that talks to the server; where it fails, says so and offers to try again.
async function attempt(action) {
  hideError();
  try {
    await action();
  } catch (failure) {
    report(failure, () => attempt(action));
  }
  showState();
}

function setLoading(value) {
  loading = value;
  for (const part of document.querySelectorAll('nav, #planes, aside')) part.inert = loading || !model.scan;
}

async function whileLoading(text, action) {
  setLoading(true);
  setStatus('loading', text);
  try {
    await action();
  } finally {
    setLoading(false);
  }
}

// The work on the scan

function keepSoon() {
  keeping ??= setTimeout(keepNow, KEEP_AFTER);
}

function keepNow() {
  clearTimeout(keeping);
  keeping = null;
  if (!model.scan || loading) return;
  const work = {
    objects: objects.list.map((object) => ({ ...object, ...looks(object) })),
    selected: objects.selected,
    labels: model.labelsName,
    network: session.window,
    view,
  };
  try {
    keepWork(model.scan.id, work);
  } catch {
    say('The browser has no room to keep this work: save the prompts.');
  }
}

function workOf(meta) {
  try {
    return keptWork(meta.id, meta.shape);
  } catch {
    say('The work that the browser kept for this scan can’t be read.');
    return null;
  }
}

function restoreWork(work) {
  objects.clear();
  model.labelsName = work?.labels ?? null;
  for (const { id, number, name, colour, visible } of work?.objects ?? []) objects.looks.set(id, { number, name, colour, visible });
  const kept = (work?.objects ?? []).map(({ id, box, clicks, drawings, initial }) => ({ id, box, clicks, drawings, initial }));
  objects.restore({ list: kept, selected: work?.selected ?? null });
}

// Scans in

async function openScan(uploaded) {
  keepNow();
  await whileLoading('Opening the scan…', async () => {
    let meta = await session.open(uploaded);
    session.labels = null;
    const work = workOf(meta);
    if (work?.network && meta.is_hu) meta = await session.open(uploaded, work.network);
    const scan = new Scan(meta, await session.volume());
    predictions.clear();
    model.scan = scan;
    planes.forEach((plane) => plane.setScan(scan));
    Object.assign(view, { crosshair: scan.shape.map((extent) => Math.floor(extent / 2)) }, work?.view);
    showScan(work);
    restoreWork(work);
  });
  update();
}

function options(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
}

function showScan(work) {
  const { scan } = model;
  document.title = `${scan.name} – SAM-Med3D`;
  $('scan-name').textContent = scan.name;
  $('scan-name').title = scan.name;
  const windows = Object.entries(scan.windows).map(([name, [level, width]]) => [name, `${name} (${level}, ${width})`]);
  options($('window-preset'), [['default', 'default'], ['full', 'full range'], ...windows, ['custom', 'custom']]);
  options($('format'), scan.formats.map((format) => [format, format]));
  showNetworkWindow();
  $('notices').replaceChildren(...scan.notices.map((text) => Object.assign(document.createElement('li'), { textContent: text })));
  $('notices-section').hidden = !scan.notices.length;
  for (const id of ['tool-scribble', 'tool-lasso', 'sign']) $(id).hidden = !draws();
  if (!draws() && ['scribble', 'lasso'].includes(tools.name)) tools.choose('box');
  $('opacity').value = view.opacity;
  $('outline').checked = view.outline;
  $('convention').value = view.neurological ? 'neurological' : 'radiological';
  setLayout(view.layout);
  if (work) setWindow(view.level, view.width, view.preset);
  else setPreset('default');
  showPosition(view.crosshair);
}

function showNetworkWindow() {
  const { scan } = model;
  $('network-row').hidden = !scan.is_hu;
  if (!scan.is_hu) return;
  const names = Object.keys(scan.windows);
  if (!names.includes(scan.window)) names.push(scan.window);
  options($('network-window'), [...names.map((name) => [name, name]), ['shown', 'as shown now']]);
  $('network-window').value = scan.window;
}

function setPreset(preset) {
  const { scan } = model;
  if (preset === 'custom') return;
  const [low, high] = preset === 'full' ? scan.fullRange() : scan.levels;
  const [level, width] = scan.windows[preset] ?? [(low + high) / 2, high - low];
  setWindow(level, width, preset);
}

function setLayout(layout) {
  view.layout = layout;
  $('layout').value = layout;
  $('planes').dataset.layout = layout;
}

async function openUploaded(files, name) {
  if (!files.length) return;
  await attempt(async () => {
    await whileLoading('Sending the files…', () =>
      session.upload(files, (sent, all) => setStatus('loading', `Sending the files: ${sent} of ${all}`)));
    await openScan(name);
  });
}

function needScan() {
  if (!model.scan) throw new Error('Open a scan first.');
}

function openPrompts(file) {
  return attempt(async () => {
    needScan();
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

function loadLabels(file) {
  return attempt(async () => {
    needScan();
    await whileLoading('Loading the labels…', async () => {
      const { labels, names, volume } = await session.loadLabels(file);
      const again = file.name === model.labelsName && objects.list.some((object) => predictions.needsLabels(object));
      model.labelsName = file.name;
      predictions.forget();
      predictions.labelMasks = masksOfLabels(volume, model.scan.shape, labels);
      if (again) return;
      // Objects of other labels, and steps back to them, have lost what they started from.
      const kept = objects.list.filter((object) => !object.initial);
      objects.list = kept;
      const added = labels.map((label, ahead) => objects.create({ initial: label }, { name: names[label] ?? `Label ${label}`, ahead }));
      objects.forget();
      objects.restore({ list: [...kept, ...added], selected: added[0]?.id ?? null });
    });
    update();
  });
}

function changeNetworkWindow(choice) {
  const window = choice === 'shown' ? `${Math.round(view.level)},${Math.round(view.width)}` : choice;
  return attempt(async () => {
    await whileLoading('Changing what the network sees…', async () => {
      try {
        model.scan.window = (await session.changeWindow(window)).window;
        predictions.forget();
      } finally {
        showNetworkWindow();
      }
    });
    update();
  });
}

// Results out

const prompted = () => objects.list.map((object) => predictions.request(object)).filter(Boolean);
const stem = () => model.scan.name.replace(/(\.nii)?\.\w+$/, '');

function saveLabels() {
  return attempt(async () => {
    say('Saving the labels…');
    const { name, blob } = await session.save(prompted(), $('format').value);
    download(name, blob);
    say(`Saved ${name}.`);
  });
}

function savePrompts() {
  const text = JSON.stringify(promptsFile(prompted(), model.scan, prompted().some(({ initial }) => initial) && model.labelsName), null, 1);
  download(`${stem()}.json`, new Blob([text], { type: 'application/json' }));
}

function savePicture() {
  const canvas = document.createElement('canvas');
  canvas.width = PICTURE_SIDE * planes.length;
  canvas.height = PICTURE_SIDE;
  const context = canvas.getContext('2d', { alpha: false });
  planes.forEach((plane, index) => {
    context.save();
    context.translate(index * PICTURE_SIDE, 0);
    context.beginPath();
    context.rect(0, 0, PICTURE_SIDE, PICTURE_SIDE);
    context.clip();
    plane.paint(context, PICTURE_SIDE, PICTURE_SIDE);
    context.restore();
  });
  canvas.toBlob((blob) => download(`${stem()}.png`, blob));
}

// Controls

function on(id, type, action) {
  $(id).addEventListener(type, action);
}

function chooseTool(name) {
  tools.choose(name);
  showState();
}

function turnSign() {
  tools.sign = 1 - tools.sign;
  showState();
}

function typedWindow() {
  const [level, width] = [$('level').valueAsNumber, $('width').valueAsNumber];
  if (Number.isFinite(level) && width > 0) setWindow(level, width);
}

function onKey(event) {
  const typing = event.target.matches('input:not([type=file], [type=checkbox], [type=range]), select');
  if (typing || loading || !model.scan || document.querySelector('dialog[open]') || event.altKey) return;
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) {
    if (key === 'z' && !event.shiftKey) objects.undo();
    else if (key === 'y' || key === 'z') objects.redo();
    else return;
  } else if (TOOL_KEYS[key]) chooseTool(TOOL_KEYS[key]);
  else if (key === 'x') turnSign();
  else if (key === 'm') objects.add();
  else if (key === '0') resetViews(...planes);
  else if (key === '?') $('help').showModal();
  else if (key === 'escape') tools.cancel();
  else return;
  event.preventDefault();
  showState();
}

for (const plane of planes) {
  listen(plane, {
    tools,
    redraw,
    moveBy,
    moveWindow,
    resetViews,
    scroll: (scrolled, steps) => moveBy(scrolled.axes.normal, steps),
    hover: (voxel) => model.scan && showPosition(voxel ?? view.crosshair),
  });
  plane.canvas.addEventListener('keyup', showState);
  new ResizeObserver(() => {
    plane.resize(plane.canvas.clientWidth, plane.canvas.clientHeight);
    redraw();
  }).observe(plane.canvas);
}
for (const button of document.querySelectorAll('[data-tool]')) button.addEventListener('click', () => chooseTool(button.dataset.tool));
on('sign', 'click', turnSign);
on('undo', 'click', () => objects.undo());
on('redo', 'click', () => objects.redo());
on('object-new', 'click', () => objects.add());
on('open-file', 'change', ({ target }) => {
  const files = filesOfInput(target);
  openUploaded(files, files[0]?.name);
});
on('open-folder', 'change', ({ target }) => {
  const files = filesOfInput(target);
  if (files.length) openUploaded(files, folderOf(files));
});
on('load-labels', 'change', ({ target }) => loadLabels(filesOfInput(target)[0].file));
on('load-prompts', 'change', ({ target }) => openPrompts(filesOfInput(target)[0].file));
on('window-preset', 'change', ({ target }) => setPreset(target.value));
on('level', 'change', typedWindow);
on('width', 'change', typedWindow);
on('network-window', 'change', ({ target }) => changeNetworkWindow(target.value));
on('opacity', 'input', ({ target }) => {
  view.opacity = target.valueAsNumber;
  redraw();
  keepSoon();
});
on('outline', 'change', ({ target }) => {
  view.outline = target.checked;
  redraw();
  keepSoon();
});
on('convention', 'change', ({ target }) => {
  view.neurological = target.value === 'neurological';
  redraw();
  keepSoon();
});
on('layout', 'change', ({ target }) => {
  setLayout(target.value);
  keepSoon();
});
on('save-labels', 'click', saveLabels);
on('save-prompts', 'click', savePrompts);
on('save-picture', 'click', savePicture);
on('help-open', 'click', () => $('help').showModal());
on('error-close', 'click', () => {
  hideError();
  showState();
});

addEventListener('keydown', onKey);
addEventListener('pagehide', keepNow);
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
  const files = await filesOfDrop(event.dataTransfer);
  if (files.length === 1 && files[0].name.endsWith('.json')) openPrompts(files[0].file);
  else openUploaded(files, files[0]?.name);
});

function start() {
  const { uploaded } = session;
  return attempt(() => openScan(uploaded).catch((failure) => {
    if (failure.status !== 400 || !uploaded) throw failure;
    const missing = new Failure(400, `The server no longer has ${uploaded}. Open it again: your prompts are kept.`);
    missing.action = { label: `Open ${session.given}`, run: () => attempt(() => openScan(null)) };
    throw missing;
  }));
}

if (Array.prototype.with && window.HTMLDialogElement) start();
else $('old-browser').hidden = false;
