// The start page: is the server well, which computers are there, open one.

import { element } from '../shared/dom';
import { forget, recall, remember } from '../shared/remember';
import { Api, ApiError, fetchVersion, type Computer } from './api';
import { desktopPage } from './desktop-link';
import { Rows, isChanging } from './rows';

const KEY = 'roost.key';
/** How soon to look again while a computer is on its way to another status. */
const CHANGING_POLL_MS = 1_500;

const signIn = element('sign-in', HTMLElement);
const signInProblem = element('sign-in-problem', HTMLElement);
const keyField = element('key', HTMLInputElement);
const section = element('computers', HTMLElement);
const problem = element('problem', HTMLElement);
const loading = element('loading', HTMLElement);
const empty = element('empty', HTMLElement);
const table = element('table', HTMLTableElement);
const more = element('more', HTMLElement);
const dialog = element('create', HTMLDialogElement);
const createName = element('create-name', HTMLInputElement);
const createSize = element('create-size', HTMLSelectElement);
const createProblem = element('create-problem', HTMLElement);
const createSubmit = element('create-submit', HTMLButtonElement);

/** Null while nobody is signed in. */
let api: Api | null = null;
let timer: ReturnType<typeof setTimeout> | undefined;
/** Calls that change a computer and have not answered yet. */
let pending = 0;
/** Counts refreshes, so that a slow answer cannot overwrite a newer one. */
let latest = 0;

const rows = new Rows(element('rows', HTMLTableSectionElement), { open, start, stop });

void showHealth();
const storedKey = recall(KEY);
if (storedKey === null) {
  showSignIn('');
} else {
  void enter(storedKey);
}

element('sign-in-form', HTMLFormElement).addEventListener('submit', (event) => {
  event.preventDefault();
  const key = keyField.value.trim();
  if (key === '') {
    signInProblem.textContent = 'Paste a key first.';
    return;
  }
  keyField.value = '';
  signInProblem.textContent = '';
  void enter(key);
});
element('sign-out', HTMLButtonElement).addEventListener('click', () => showSignIn(''));
element('new', HTMLButtonElement).addEventListener('click', () => {
  createProblem.textContent = '';
  dialog.showModal();
});
element('create-cancel', HTMLButtonElement).addEventListener('click', () => dialog.close());
element('create-form', HTMLFormElement).addEventListener('submit', (event) => {
  event.preventDefault();
  void create();
});
document.addEventListener('visibilitychange', () => {
  if (document.visibilityState === 'visible') {
    void refresh();
  }
});

async function showHealth(): Promise<void> {
  const version = await fetchVersion();
  element('health', HTMLElement).dataset['health'] = version === null ? 'bad' : 'good';
  element('health-text', HTMLElement).textContent =
    version === null ? 'The server is not well: run “roost doctor”' : `Version ${version}`;
}

async function enter(key: string): Promise<void> {
  api = new Api(key);
  remember(KEY, key);
  signIn.hidden = true;
  section.hidden = false;
  loading.hidden = false;
  await refresh();
}

function showSignIn(why: string): void {
  api = null;
  latest += 1;
  clearTimeout(timer);
  forget(KEY);
  dialog.close();
  rows.show([]);
  problem.hidden = true;
  section.hidden = true;
  signIn.hidden = false;
  signInProblem.textContent = why;
  keyField.focus();
}

async function refresh(): Promise<void> {
  if (api === null) {
    return;
  }
  clearTimeout(timer);
  const mine = ++latest;
  try {
    const { computers, total } = await api.list();
    if (mine !== latest) {
      return;
    }
    problem.hidden = true;
    loading.hidden = true;
    rows.show(computers);
    empty.hidden = computers.length > 0;
    table.hidden = computers.length === 0;
    more.hidden = total <= computers.length;
    more.textContent = `The newest ${computers.length} of ${total}. See all with “roost list”.`;
    if (pending > 0 || computers.some(isChanging)) {
      timer = setTimeout(() => void refresh(), CHANGING_POLL_MS);
    }
  } catch (error) {
    if (mine === latest) {
      loading.hidden = true;
      fail(error);
    }
  }
}

/** A refused key leads back to the beginning; anything else is said above the list. */
function fail(error: unknown): void {
  if (error instanceof ApiError && error.status === 401) {
    showSignIn('The server does not know this key.');
    return;
  }
  problem.textContent = messageOf(error);
  problem.hidden = false;
}

function messageOf(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error);
  return message.charAt(0).toUpperCase() + message.slice(1);
}

async function create(): Promise<void> {
  const name = createName.value.trim();
  if (api === null || name === '') {
    createProblem.textContent = 'Give it a name.';
    createName.focus();
    return;
  }
  createSubmit.disabled = true;
  try {
    await api.create(name, createSize.value);
    createName.value = '';
    dialog.close();
    await refresh();
  } catch (error) {
    createProblem.textContent = messageOf(error);
  } finally {
    createSubmit.disabled = false;
  }
}

async function start(computer: Computer): Promise<void> {
  await act((to) => to.start(computer.id));
}

async function stop(computer: Computer): Promise<void> {
  await act((to) => to.stop(computer.id));
}

async function act(action: (api: Api) => Promise<Computer>): Promise<void> {
  if (api === null) {
    return;
  }
  pending += 1;
  let failure: { error: unknown } | null = null;
  try {
    const changed = action(api);
    // The call answers when the change is done; the list shows the way there.
    void refresh();
    await changed;
  } catch (error) {
    failure = { error };
  }
  pending -= 1;
  await refresh();
  if (failure !== null) {
    fail(failure.error);
  }
}

async function open(computer: Computer): Promise<void> {
  if (api === null) {
    return;
  }
  // The tab opens with the click, before the token is there: a later one would count as a pop-up.
  const tab = window.open('about:blank', '_blank');
  try {
    const token = await api.streamToken(computer.id);
    const address = `${desktopPage(computer, new URL(location.href))}#auth=${encodeURIComponent(token)}`;
    if (tab === null) {
      location.assign(address);
    } else {
      tab.opener = null;
      tab.location.replace(address);
    }
  } catch (error) {
    tab?.close();
    fail(error);
  }
}
