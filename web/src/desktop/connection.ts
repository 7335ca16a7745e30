// Keeps one desktop connected.
//
//   needs-link --token--> connecting --> connected
//                          ^   |  ^         |
//                          |   |  +-- lost <+   socket ends: ask the server why, then try again
//                          |   +----> waiting   the computer is not running: ask again until it is
//                          +--------- needs-link (token refused), gone (computer deleted)
//
// A browser hides the HTTP status of a refused WebSocket, so before every socket the page asks
// `./session`: that answer, not the socket's, decides between "try again" and "get a new link".
// Exactly one attempt is alive; results of an older one are dropped by comparing attempt numbers.

import RFB from '@novnc/novnc';

import { backoffMs } from './backoff';
import type { Key } from './keys';
import { fetchSession, type Session } from './session';

/** An attempt that has not shown a desktop by then is given up. Emulated guests can be slow to answer. */
const CONNECT_TIMEOUT_MS = 20_000;
/** A connection that lived this long counts as good: the next loss starts with short delays again. */
const STABLE_MS = 2_000;
/** How often a page that waits for a stopped computer asks again. */
const WAITING_POLL_MS = 3_000;

export type View =
  | { kind: 'needs-link'; why: 'missing' | 'refused' }
  | { kind: 'gone' }
  | { kind: 'connecting' }
  | { kind: 'connected' }
  | { kind: 'waiting'; status: string }
  /** `retryAt` is a `Date.now()` value; null while a new attempt is under way. */
  | { kind: 'lost'; reason: string; retryAt: number | null };

export interface ConnectionEvents {
  view(view: View): void;
  session(session: Session): void;
  /** Text copied in the guest. */
  clipboard(text: string): void;
  /** The connection is about to end; the canvas still holds its last picture. */
  ending(canvas: HTMLCanvasElement): void;
}

export class Connection {
  readonly #page: URL;
  readonly #screen: HTMLElement;
  readonly #events: ConnectionEvents;
  #token: string | null = null;
  #view: View = { kind: 'connecting' };
  #received = 0;
  /** Failures since the last good connection. */
  #tries = 0;
  /** The attempt in charge; everything an older one reports is stale. */
  #attempt = 0;
  #cancel = new AbortController();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #rfb: RFB | null = null;

  constructor(page: URL, screen: HTMLElement, events: ConnectionEvents) {
    this.#page = page;
    this.#screen = screen;
    this.#events = events;
  }

  get view(): View {
    return this.#view;
  }

  /** Bytes of the desktop received since the page was opened. */
  get received(): number {
    return this.#received;
  }

  /** Connects with this token; null asks the person for a link. */
  useToken(token: string | null): void {
    this.#token = token;
    this.#tries = 0;
    this.#begin();
  }

  /** Tries at once when the page is only waiting for its next try. */
  retryNow(): void {
    const { kind } = this.#view;
    if (kind === 'waiting' || (kind === 'lost' && this.#view.retryAt !== null)) {
      this.#begin();
    }
  }

  focus(): void {
    this.#rfb?.focus({ preventScroll: true });
  }

  pasteIntoGuest(text: string): void {
    this.#rfb?.clipboardPasteFrom(text);
  }

  /** Presses the keys in order and releases them in reverse. */
  press(keys: readonly Key[]): void {
    for (const key of keys) {
      this.#rfb?.sendKey(key.keysym, key.code, true);
    }
    for (const key of [...keys].reverse()) {
      this.#rfb?.sendKey(key.keysym, key.code, false);
    }
  }

  #show(view: View): void {
    this.#view = view;
    this.#events.view(view);
  }

  /** Ends whatever the previous attempt holds and starts the next one. */
  #begin(): void {
    const attempt = this.#retire();
    if (this.#token === null) {
      this.#show({ kind: 'needs-link', why: 'missing' });
      return;
    }
    // A page that already explains itself keeps its words until there is something new to say.
    if (this.#view.kind === 'lost') {
      this.#show({ ...this.#view, retryAt: null });
    } else if (this.#view.kind !== 'waiting') {
      this.#show({ kind: 'connecting' });
    }
    void this.#run(attempt, this.#token);
  }

  #retire(): number {
    clearTimeout(this.#timer);
    this.#cancel.abort();
    this.#cancel = new AbortController();
    const rfb = this.#rfb;
    this.#rfb = null;
    this.#attempt += 1;
    rfb?.disconnect();
    return this.#attempt;
  }

  async #run(attempt: number, token: string): Promise<void> {
    const giveUp = AbortSignal.any([this.#cancel.signal, AbortSignal.timeout(CONNECT_TIMEOUT_MS)]);
    const outcome = await fetchSession(this.#page, token, giveUp);
    if (attempt !== this.#attempt) {
      return;
    }
    switch (outcome.kind) {
      case 'refused':
        this.#token = null;
        this.#show({ kind: 'needs-link', why: 'refused' });
        return;
      case 'gone':
        this.#show({ kind: 'gone' });
        return;
      case 'failed':
        this.#lose(outcome.reason);
        return;
      case 'ok':
        this.#events.session(outcome.session);
        if (outcome.session.status === 'running') {
          this.#open(attempt, outcome.session);
        } else {
          this.#show({ kind: 'waiting', status: outcome.session.status });
          this.#timer = setTimeout(() => this.#begin(), WAITING_POLL_MS);
        }
        return;
      default:
        outcome satisfies never;
    }
  }

  #open(attempt: number, session: Session): void {
    if (this.#view.kind === 'waiting') {
      this.#show({ kind: 'connecting' });
    }
    const socket = new WebSocket(session.socketUrl, ['binary']);
    let reason = 'The desktop cannot be reached.';
    let connectedAt: number | null = null;

    // These listeners come before noVNC's own, so the reason and the picture are there when it reports the end.
    socket.addEventListener('message', (event: MessageEvent<ArrayBuffer>) => {
      this.#received += event.data.byteLength;
    });
    socket.addEventListener('close', (event) => {
      if (event.reason !== '') {
        reason = event.reason;
      }
      const canvas = this.#screen.querySelector('canvas');
      if (attempt === this.#attempt && connectedAt !== null && canvas !== null) {
        this.#events.ending(canvas);
      }
    });

    const rfb = new RFB(this.#screen, socket);
    rfb.scaleViewport = true;
    rfb.viewOnly = session.viewOnly;
    rfb.background = 'transparent';
    this.#rfb = rfb;

    rfb.addEventListener('connect', () => {
      if (attempt !== this.#attempt) {
        return;
      }
      clearTimeout(this.#timer);
      connectedAt = performance.now();
      reason = 'The connection ended.';
      this.#show({ kind: 'connected' });
    });
    rfb.addEventListener('clipboard', (event) => {
      if (attempt === this.#attempt) {
        this.#events.clipboard(event.detail.text);
      }
    });
    rfb.addEventListener('credentialsrequired', () => {
      reason = 'The desktop asks for a password, which no Roost desktop has.';
      rfb.disconnect();
    });
    rfb.addEventListener('securityfailure', (event) => {
      reason = `The desktop refused the connection${event.detail.reason === undefined ? '' : `: ${event.detail.reason}`}.`;
    });
    rfb.addEventListener('disconnect', () => {
      if (attempt !== this.#attempt) {
        return;
      }
      // It is over already; there is nothing left for retire() to disconnect.
      this.#rfb = null;
      if (connectedAt !== null && performance.now() - connectedAt >= STABLE_MS) {
        this.#tries = 0;
      }
      this.#lose(reason);
    });
    this.#timer = setTimeout(() => {
      reason = 'The desktop did not answer in time.';
      rfb.disconnect();
    }, CONNECT_TIMEOUT_MS);
  }

  #lose(reason: string): void {
    this.#retire();
    this.#tries += 1;
    const delay = backoffMs(this.#tries);
    this.#show({ kind: 'lost', reason, retryAt: Date.now() + delay });
    this.#timer = setTimeout(() => this.#begin(), delay);
  }
}
