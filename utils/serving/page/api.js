// Calls to the server: the key, the lease of a session, and failures in words.

const KEY = 'sam-med3d:key';
const LEASE = 'sam-med3d:lease';

export class Failure extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

function keyOfAddress() {
  const key = new URLSearchParams(location.hash.slice(1)).get('key');
  if (key) {
    sessionStorage.setItem(KEY, key);
    history.replaceState(null, '', location.pathname + location.search);
  }
  return sessionStorage.getItem(KEY);
}

const ascii = (value) =>
  JSON.stringify(value).replace(/[\u007f-\uffff]/g, (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, '0')}`);

export const metaOf = (response) => JSON.parse(response.headers.get('X-Meta'));

export class Api {
  // askKey(text) resolves to a key; reopen() claims a session and opens the scan of the page in it.
  constructor(askKey, reopen) {
    this.askKey = askKey;
    this.reopen = reopen;
    this.key = keyOfAddress();
    this.lease = JSON.parse(sessionStorage.getItem(LEASE));
  }

  async send(path, { method = 'POST', json, meta, body } = {}) {
    for (;;) {
      const key = (this.key ??= await this.sharedKey('The page needs the key of the server.'));
      const headers = { Authorization: `Bearer ${key}` };
      if (this.lease) headers['X-Lease-Token'] = this.lease.lease_token;
      if (meta) headers['X-Meta'] = ascii(meta);
      if (json) headers['Content-Type'] = 'application/json';
      let response;
      try {
        response = await fetch(path, { method, headers, body: json ? JSON.stringify(json) : body });
      } catch {
        throw new Failure(0, 'The server does not answer. Nothing is lost.');
      }
      if (response.ok) return response;
      const detail = await response.json().then((answer) => answer.detail, () => `The server answered ${response.status}.`);
      if (response.status !== 401) throw new Failure(response.status, detail);
      // Another call may have brought a new key meanwhile.
      if (this.key === key) this.key = null;
      this.key ??= await this.sharedKey(detail);
    }
  }

  async sharedKey(text) {
    this.asking ??= this.askKey(text).finally(() => (this.asking = null));
    const key = await this.asking;
    sessionStorage.setItem(KEY, key);
    return key;
  }

  async claim() {
    const response = await this.send('/page/claim', { json: {} });
    this.lease = await response.json();
    sessionStorage.setItem(LEASE, JSON.stringify(this.lease));
  }

  // Runs an action that needs a session but no opened scan.
  async leased(action) {
    if (!this.lease) await this.claim();
    try {
      return await action();
    } catch (failure) {
      if (failure.status !== 410) throw failure;
      await this.claim();
      return action();
    }
  }

  // A call about the opened scan.
  async call(path, request) {
    try {
      return await this.send(path, request);
    } catch (failure) {
      if (failure.status !== 410) throw failure;
      this.reopening ??= this.reopen().finally(() => (this.reopening = null));
      await this.reopening;
      return this.send(path, request);
    }
  }
}
