// The terminal page: reads the link, keeps a session connected, and gives its output to xterm.js.

import { FitAddon } from '@xterm/addon-fit';
import { Terminal } from '@xterm/xterm';

import { Card } from '../desktop/card';
import type { View } from '../desktop/connection';
import { computerIn, directoryOf, readPasted, tokenIn, withoutToken } from '../desktop/link';
import { openWithPassword } from '../desktop/password';
import { element } from '../shared/dom';
import { forget, recall, remember } from '../shared/remember';
import { TerminalConnection, type Size } from './connection';

/** A read-only view of the page for tests and automation. `roost:state` fires on window at each change. */
interface TerminalHook {
  readonly state: 'connecting' | 'connected' | 'disconnected';
  readonly view: View;
  /** The session shown, once there is one. */
  readonly session: string | null;
  /** The lines on the screen, without the scrollback. */
  readonly lines: readonly string[];
}

const page = new URL(location.href);
const tokenKey = `roost.stream:${directoryOf(page)}`;
const sessionKey = `roost.terminal:${directoryOf(page)}`;

let name = 'the terminal';
let handle = computerIn(page) ?? 'NAME';
let hasEnded = false;
/** A size that came from the server is not sent back to it. */
let isFollowing = false;

const screen = element('screen', HTMLElement);
const state = element('state', HTMLElement);
const terminal = new Terminal({
  fontFamily: "'DejaVu Sans Mono', 'Liberation Mono', Menlo, Consolas, monospace",
  fontSize: 14,
  scrollback: 5000,
  cursorBlink: true,
  theme: { background: '#0d0f13', foreground: '#e7eaf0', cursor: '#f2b84b', selectionBackground: '#f2b84b55' },
});
const fit = new FitAddon();
terminal.loadAddon(fit);
terminal.open(screen);
fit.fit();

const memory = {
  recall: () => recall(sessionKey),
  remember: (id: string) => remember(sessionKey, id),
  forget: () => forget(sessionKey),
};
const card = new Card({ pasted, unlock, retry: () => connection.retryNow() }, 'terminal');
const connection = new TerminalConnection(page, memory, {
  view: showView,
  session(session) {
    name = session.name;
    handle = session.slug;
    document.title = `${session.name}: terminal`;
    element('name', HTMLElement).textContent = session.name;
  },
  frame(frame) {
    switch (frame.kind) {
      case 'session':
        hasEnded = false;
        terminal.reset();
        follow(frame);
        return;
      case 'output':
        terminal.write(frame.data);
        return;
      case 'resize':
        follow(frame);
        return;
      case 'exit':
        hasEnded = true;
        terminal.write(`\r\n\x1b[m\x1b[2m[ended with code ${frame.code}; Enter opens another session]\x1b[m\r\n`);
        showView(connection.view);
        return;
      default:
        frame satisfies never;
    }
  },
  size,
});

Object.defineProperty(window, 'roost', {
  value: Object.freeze({
    get state() {
      return stateOf(connection.view);
    },
    get view() {
      return connection.view;
    },
    get session() {
      return memory.recall();
    },
    get lines() {
      const { active } = terminal.buffer;
      return Array.from(
        { length: terminal.rows },
        (_, row) => active.getLine(active.baseY + row)?.translateToString(true) ?? '',
      );
    },
  } satisfies TerminalHook),
});

terminal.onData(press);
terminal.onBinary(press);
terminal.onResize(({ cols, rows }) => {
  if (!isFollowing) {
    connection.resize({ columns: cols, rows });
  }
});
new ResizeObserver(() => fit.fit()).observe(screen);
element('fresh', HTMLButtonElement).addEventListener('click', () => {
  connection.openAnother();
  terminal.focus();
});
window.addEventListener('online', () => connection.retryNow());
document.addEventListener('visibilitychange', () => {
  if (document.visibilityState === 'visible') {
    connection.retryNow();
  }
});
// Opening a fresh link in a tab that already shows this page changes only the fragment.
window.addEventListener('hashchange', openAddress);

openAddress();

function press(data: string): void {
  if (!hasEnded) {
    connection.press(data);
  } else if (data.includes('\r')) {
    connection.openAnother();
  }
}

function size(): Size {
  return { columns: terminal.cols, rows: terminal.rows };
}

/** Another viewer has another size; the last one to change it decides. */
function follow({ columns, rows }: Size): void {
  isFollowing = true;
  terminal.resize(columns, rows);
  isFollowing = false;
}

/** Takes the token out of the address bar, where it would be copied and remembered, and connects with it. */
function openAddress(): void {
  const address = new URL(location.href);
  const fresh = tokenIn(address);
  if (fresh !== null) {
    remember(tokenKey, fresh);
    history.replaceState(history.state, '', withoutToken(address));
  }
  const token = fresh ?? recall(tokenKey);
  if (fresh !== null || connection.view.kind !== 'connected') {
    connection.useToken(token);
  }
}

function pasted(text: string): string | null {
  const link = readPasted(text, page);
  switch (link.kind) {
    case 'unusable':
      return link.why;
    case 'elsewhere':
      location.assign(link.url);
      return null;
    case 'token':
      remember(tokenKey, link.token);
      connection.useToken(link.token);
      return null;
    default:
      return link satisfies never;
  }
}

async function unlock(password: string): Promise<string | null> {
  const outcome = await openWithPassword(page, password);
  if (outcome.kind === 'refused') {
    return outcome.why;
  }
  remember(tokenKey, outcome.token);
  connection.useToken(outcome.token);
  return null;
}

function showView(view: View): void {
  if (view.kind === 'needs-link' && view.why === 'refused') {
    forget(tokenKey);
  }
  document.body.dataset['view'] = view.kind;
  card.show(view, name, handle);
  state.textContent = wordsFor(view);
  if (view.kind === 'connected') {
    terminal.focus();
  }
  window.dispatchEvent(new CustomEvent('roost:state', { detail: stateOf(view) }));
}

function wordsFor(view: View): string {
  switch (view.kind) {
    case 'connected':
      return hasEnded ? 'Ended' : 'Connected';
    case 'connecting':
      return 'Connecting…';
    case 'lost':
      return 'Connection lost';
    case 'waiting':
      return `The computer is ${view.status}`;
    case 'gone':
    case 'needs-link':
      return '';
    default:
      return view satisfies never;
  }
}

function stateOf(view: View): TerminalHook['state'] {
  switch (view.kind) {
    case 'connected':
      return hasEnded ? 'disconnected' : 'connected';
    case 'connecting':
      return 'connecting';
    case 'lost':
      return view.retryAt === null ? 'connecting' : 'disconnected';
    case 'waiting':
    case 'gone':
    case 'needs-link':
      return 'disconnected';
    default:
      return view satisfies never;
  }
}
