// What the page says: the list of objects, the next step, the state, and failures.

import { request } from './objects.js';

const SPINNER_AFTER = 200;

export const $ = (id) => document.getElementById(id);

function make(tag, properties) {
  return Object.assign(document.createElement(tag), properties);
}

// entries: [[value, text]]
export function fillSelect(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
}

// Shows the objects; act: {select, rename, show, remove}, each called with the id of an object.
export class ObjectList {
  constructor(act) {
    this.act = act;
    this.items = new Map();
  }

  item(id) {
    const item = make('li', { tabIndex: -1 });
    item.dataset.object = id;
    const swatch = make('button', { className: 'object-select', type: 'button' });
    const name = make('input', { className: 'object-name', maxLength: 80, spellcheck: false });
    name.setAttribute('aria-label', 'Name of the object');
    const show = make('button', { className: 'object-show', type: 'button' });
    const remove = make('button', { className: 'object-delete', type: 'button', textContent: '✕', title: 'Delete this object' });
    item.append(swatch, name, make('span', { className: 'object-volume' }), show, remove, make('p', { className: 'object-hint' }));
    item.addEventListener('click', ({ target }) => {
      if (target === show) this.act.show(id);
      else if (target === remove) this.act.remove(id);
      else this.act.select(id);
    });
    name.addEventListener('focus', () => this.act.select(id));
    name.addEventListener('change', () => this.act.rename(id, name.value));
    name.addEventListener('keydown', ({ key }) => key === 'Enter' && name.blur());
    return item;
  }

  // rows: [{id, name, colour, visible, millilitres, hint, selected}]
  show(rows) {
    for (const [id, item] of this.items) {
      if (rows.some((row) => row.id === id)) continue;
      item.remove();
      this.items.delete(id);
    }
    rows.forEach((row, index) => {
      if (!this.items.has(row.id)) this.items.set(row.id, this.item(row.id));
      const item = this.items.get(row.id);
      const list = $('object-list');
      if (list.children[index] !== item) list.insertBefore(item, list.children[index] ?? null);
      this.fill(item, row);
    });
  }

  fill(item, { name, colour, visible, millilitres, hint, selected }) {
    const [swatch, input, volume, show, , note] = item.children;
    item.classList.toggle('hidden-object', !visible);
    if (!selected) item.removeAttribute('aria-current');
    else if (!item.hasAttribute('aria-current')) {
      item.setAttribute('aria-current', 'true');
      queueMicrotask(() => item.scrollIntoView({ block: 'nearest' })); // once it is in the list
    }
    swatch.style.background = colour;
    swatch.title = `Correct ${name}`;
    swatch.setAttribute('aria-label', swatch.title);
    if (document.activeElement !== input) input.value = name;
    volume.textContent = millilitres === null ? '' : `${millilitres.toFixed(millilitres < 10 ? 2 : 1)} ml`;
    show.textContent = visible ? '◉' : '○';
    show.title = visible ? 'Hide this object' : 'Show this object';
    show.setAttribute('aria-pressed', String(visible));
    note.textContent = hint;
    note.hidden = !hint;
  }
}

export function objectHint(object, mask, predictions) {
  if (predictions.needsLabels(object)) return 'Load its labels again.';
  const refusal = predictions.refusal(object);
  if (refusal) return refusal;
  if (!predictions.request(object)) return request(object, true) ? 'Drag an edge of the box in another plane.' : 'No prompt yet.';
  if (!mask || predictions.predicting === object.id) return '';
  if (!mask.bbox) return 'Nothing found: add a click (+).';
  return mask.doubtful ? 'Probably wrong: add a click.' : '';
}

// The next step, in words.
export function nextStep({ scan, object, mask, draft, tool, draws, predictions, labelsName, needsLabels }) {
  if (!scan) return 'Open a scan: a file, or a folder of DICOM images. You can also drop it here.';
  if (draft?.byKeys) return 'Move with the arrows, end with Enter. Esc cancels.';
  if (needsLabels) return `Load the labels “${labelsName}” again: some objects start from them.`;
  if (!object || !request(object, true)) {
    return tool === 'box' ? 'Drag a box round a structure.' : 'Drag a box (B) round a structure, or click in it (+).';
  }
  if (!predictions.request(object)) return 'Give the box its depth: drag its edge in another plane.';
  if (!mask) return '';
  const depth = draws && !object.box && object.clicks.length === 0 && object.drawings.length === 1 && object.drawings[0].box;
  return `Click what is missing (+, key P) or too much (−, key N)${depth ? ', or drag the box’s edge in another plane' : ''}. When it is right: New object, or Save labels.`;
}

let spinner = null;

export function setStatus(state, text) {
  const status = $('status');
  if (status.dataset.state !== state) status.dataset.state = state;
  if (status.textContent !== text) status.textContent = text;
  const busy = state === 'loading' || state === 'predicting';
  if (busy) spinner ??= setTimeout(() => ($('spinner').hidden = false), SPINNER_AFTER);
  if (!busy) {
    clearTimeout(spinner);
    spinner = null;
    $('spinner').hidden = true;
  }
}

// action: {label, run} of a button beside the text.
export function showError(text, action = null) {
  const button = $('error-action');
  $('error-text').textContent = text;
  button.hidden = !action;
  button.textContent = action?.label ?? '';
  button.onclick = () => {
    hideError();
    action.run();
  };
  $('error').hidden = false;
}

export function hideError() {
  $('error').hidden = true;
}

export function askKey(text) {
  $('key-text').textContent = text;
  $('key-screen').hidden = false;
  $('key-input').value = '';
  $('key-input').focus();
  return new Promise((resolve) => {
    $('key-form').onsubmit = (event) => {
      event.preventDefault();
      // The whole URL may be pasted too.
      const key = $('key-input').value.trim().replace(/^.*#key=/, '');
      if (!key) return;
      $('key-screen').hidden = true;
      resolve(key);
    };
  });
}

export function ask(text) {
  const dialog = $('ask');
  $('ask-text').textContent = text;
  // Esc closes the dialog with the value it has: no answer is a no.
  dialog.returnValue = 'no';
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === 'yes');
  });
}
