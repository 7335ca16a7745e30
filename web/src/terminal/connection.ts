// Keeps one terminal session connected. The states are those of the desktop page (../desktop/connection.ts): the page
// asks `./session` before every socket, because a browser hides why one was refused.
//
// The session outlives the connection: its id is kept for the tab, and the server first sends what the screen looks
// like. A session that has ended meanwhile is replaced by a new one.

import { backoffMs } from '../desktop/backoff';
import type { View } from '../desktop/connection';
import { fetchSession, type Session } from '../desktop/session';
import { readFrame, type Frame } from './frames';

/** An attempt that has not shown a terminal by then is given up. Emulated guests can be slow to answer. */
const CONNECT_TIMEOUT_MS = 20_000;
/** A connection that lived this long counts as good: the next loss starts with short delays again. */
const STABLE_MS = 2_000;
/** How often a page that waits for a stopped computer asks again. */
const WAITING_POLL_MS = 3_000;

export interface Size {
  columns: number;
  rows: number;
}

export interface TerminalEvents {
  view(view: View): void;
  session(session: Session): void;
  frame(frame: Exclude<Frame, { kind: 'unknown' }>): void;
  /** How large the page's terminal is now. */
  size(): Size;
}

/** Where the id of the session is kept. */
export interface Memory {
  recall(): string | null;
  remember(id: string): void;
  forget(): void;
}

export class TerminalConnection {
  readonly #page: URL;
  readonly #events: TerminalEvents;
  readonly #memory: Memory;
  #token: string | null = null;
  #view: View = { kind: 'connecting' };
  #tries = 0;
  /** The attempt in charge; everything an older one reports is stale. */
  #attempt = 0;
  #cancel = new AbortController();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #socket: WebSocket | null = null;

  constructor(page: URL, memory: Memory, events: TerminalEvents) {
    this.#page = page;
    this.#memory = memory;
    this.#events = events;
  }

  get view(): View {
    return this.#view;
  }

  /** Connects with this token; null asks the person for a link. */
  useToken(token: string | null): void {
    this.#token = token;
    this.#tries = 0;
    this.#begin();
  }

  /** Leaves the session as it is and opens another. */
  openAnother(): void {
    this.#memory.forget();
    this.#begin();
  }

  /** Tries at once when the page is only waiting for its next try. */
  retryNow(): void {
    const { kind } = this.#view;
    if (kind === 'waiting' || (kind === 'lost' && this.#view.retryAt !== null)) {
      this.#begin();
    }
  }

  press(data: string): void {
    this.#send({ type: 'input', data });
  }

  resize({ columns, rows }: Size): void {
    this.#send({ type: 'resize', cols: columns, rows });
  }

  #send(frame: Record<string, unknown>): void {
    if (this.#view.kind === 'connected') {
      this.#socket?.send(JSON.stringify(frame));
    }
  }

  #show(view: View): void {
    this.#view = view;
    this.#events.view(view);
  }

  #begin(): void {
    const attempt = this.#retire();
    if (this.#token === null) {
      this.#show({ kind: 'needs-link', why: 'missing' });
      return;
    }
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
    const socket = this.#socket;
    this.#socket = null;
    this.#attempt += 1;
    socket?.close();
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
        if (outcome.session.viewOnly) {
          // Whoever may only watch gets no terminal.
          this.#token = null;
          this.#show({ kind: 'needs-link', why: 'refused' });
        } else if (outcome.session.status === 'running') {
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
    const socket = new WebSocket(socketUrl(session.socketUrl, this.#memory.recall(), this.#events.size()));
    this.#socket = socket;
    let connectedAt: number | null = null;
    let hasEnded = false;
    let reason = 'The terminal cannot be reached.';

    socket.addEventListener('message', (event: MessageEvent<unknown>) => {
      const frame = readFrame(event.data);
      if (attempt !== this.#attempt || frame.kind === 'unknown') {
        return;
      }
      if (frame.kind === 'session') {
        clearTimeout(this.#timer);
        connectedAt = performance.now();
        reason = 'The connection ended.';
        this.#memory.remember(frame.id);
        this.#show({ kind: 'connected' });
      } else if (frame.kind === 'exit') {
        hasEnded = true;
        this.#memory.forget();
      }
      this.#events.frame(frame);
    });
    socket.addEventListener('close', (event) => {
      if (attempt !== this.#attempt) {
        return;
      }
      this.#socket = null;
      if (connectedAt !== null && performance.now() - connectedAt >= STABLE_MS) {
        this.#tries = 0;
      }
      // An ended session stays on the screen until the person wants another.
      if (!hasEnded) {
        this.#lose(event.reason === '' ? reason : event.reason);
      }
    });
    this.#timer = setTimeout(() => {
      reason = 'The terminal did not answer in time.';
      socket.close();
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

/** The address that continues `sessionId`, or opens a session where that is null or has ended. */
export function socketUrl(base: string, sessionId: string | null, { columns, rows }: Size): string {
  const url = new URL(base);
  url.searchParams.set('cols', String(columns));
  url.searchParams.set('rows', String(rows));
  if (sessionId !== null) {
    url.searchParams.set('session_id', sessionId);
    url.searchParams.set('or_new', 'true');
  }
  return url.href;
}
