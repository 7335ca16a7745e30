// The desktop page: reads the link, keeps the desktop connected, and wires the parts to each other.

import { element } from '../shared/dom';
import { forget, recall, remember } from '../shared/remember';
import { Card } from './card';
import { ClipboardPanel } from './clipboard';
import { Connection, type View } from './connection';
import { computerIn, directoryOf, readPasted, tokenIn, withoutToken } from './link';
import { openWithPassword } from './password';
import { Toolbar } from './toolbar';

/** A read-only view of the page for tests and automation. `roost:state` fires on window at each change. */
interface RoostHook {
  readonly state: 'connecting' | 'connected' | 'disconnected';
  /** The exact view: why there is no desktop, for example. */
  readonly view: View;
  /** Bytes of the desktop received since the page was opened. */
  readonly received: number;
}

declare global {
  interface Window {
    readonly roost: RoostHook;
  }
}

const page = new URL(location.href);
/** One computer per directory and host; several may share a host in the path form. */
const tokenKey = `roost.stream:${directoryOf(page)}`;

let name = 'the desktop';
let handle = computerIn(page) ?? 'NAME';

const lastFrame = element('last-frame', HTMLCanvasElement);

const toolbar = new Toolbar({
  press: (keys) => connection.press(keys),
  focusDesktop: () => connection.focus(),
});
const clipboard = new ClipboardPanel((text) => connection.pasteIntoGuest(text));
const card = new Card({ pasted, unlock, retry: () => connection.retryNow() }, 'desktop');
const connection = new Connection(page, element('screen', HTMLElement), {
  view: showView,
  session(session) {
    name = session.name;
    handle = session.slug;
    document.title = session.name;
    toolbar.setName(session.viewOnly ? `${session.name} (watching)` : session.name);
    document.body.toggleAttribute('data-view-only', session.viewOnly);
  },
  clipboard: (text) => clipboard.receive(text),
  ending(canvas) {
    lastFrame.width = canvas.width;
    lastFrame.height = canvas.height;
    if (canvas.width > 0 && canvas.height > 0) {
      lastFrame.getContext('2d')?.drawImage(canvas, 0, 0);
    }
  },
});

Object.defineProperty(window, 'roost', {
  value: Object.freeze({
    get state() {
      return stateOf(connection.view);
    },
    get view() {
      return connection.view;
    },
    get received() {
      return connection.received;
    },
  } satisfies RoostHook),
});

// A laptop that wakes up or a network that returns should not sit out the rest of a delay.
window.addEventListener('online', () => connection.retryNow());
document.addEventListener('visibilitychange', () => {
  if (document.visibilityState === 'visible') {
    connection.retryNow();
  }
});
// Opening a fresh link in a tab that already shows this page changes only the fragment.
window.addEventListener('hashchange', openAddress);

openAddress();

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
  toolbar.showFor(view.kind === 'connected');
  if (view.kind === 'connected') {
    prepareCanvas();
    connection.focus();
  }
  window.dispatchEvent(new CustomEvent('roost:state', { detail: stateOf(view) }));
}

/** noVNC's canvas is nameless and out of the tab order. */
function prepareCanvas(): void {
  const canvas = element('screen', HTMLElement).querySelector('canvas');
  if (canvas !== null) {
    canvas.tabIndex = 0;
    canvas.setAttribute('role', 'application');
    canvas.setAttribute('aria-label', `Desktop of ${name}. Control Alt Shift moves to the toolbar.`);
  }
}

function stateOf(view: View): RoostHook['state'] {
  switch (view.kind) {
    case 'connected':
      return 'connected';
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
