// Actions that take time or fail: the page is locked while a scan changes, says what happens, and offers to try again.

import { Failure } from './api.js';
import { hideError, setStatus, showError } from './panel.js';

const NO_RETRY = new Set([400, 403, 413]);
const SAID_FOR = 5000;

export class Actions {
  // changed() is called when there is something else to say.
  constructor({ model, changed }) {
    Object.assign(this, { model, changed });
    this.loading = true;
    this.said = '';
  }

  // Says something in the place of "Ready", for a while.
  say(text) {
    this.said = text;
    this.changed();
    setTimeout(() => {
      if (this.said !== text) return;
      this.said = '';
      this.changed();
    }, SAID_FOR);
  }

  report(failure, again) {
    console.error(failure);
    const retry = failure instanceof Failure && !NO_RETRY.has(failure.status);
    showError(failure.message, retry ? { label: 'Try again', run: again } : failure.action);
    this.changed();
  }

  // Runs an action that talks to the server; where it fails, says so and offers to try again.
  async attempt(action) {
    hideError();
    try {
      await action();
    } catch (failure) {
      this.report(failure, () => this.attempt(action));
    }
    this.changed();
  }

  setLoading(loading) {
    this.loading = loading;
    for (const part of document.querySelectorAll('nav, #planes, aside')) part.inert = loading || !this.model.scan;
  }

  async whileLoading(text, action) {
    this.setLoading(true);
    setStatus('loading', text);
    try {
      await action();
    } finally {
      this.setLoading(false);
    }
  }
}
