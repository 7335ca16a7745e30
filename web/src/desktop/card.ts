// The card in the middle of the page: says in words what is going on whenever there is no live desktop.

import { copyWithFeedback, element } from '../shared/dom';
import type { View } from './connection';

/** What the card shows; a part that is absent is hidden. */
interface Content {
  title: string;
  text: string;
  spinner?: true;
  /** A command to run in a terminal. */
  command?: string;
  /** The fields for the viewer password and for a fresh link. */
  form?: true;
  /** Label of the button. */
  action?: string;
}

/** What the page shows when nothing is in the way. */
export type Thing = 'desktop' | 'terminal';

export interface CardEvents {
  /** The person pasted something; the answer is a complaint, or null when it was good. */
  pasted(text: string): string | null;
  /** The person entered the viewer password; the answer is a complaint, or null when it was right. */
  unlock(password: string): Promise<string | null>;
  retry(): void;
}

export class Card {
  readonly #card = element('card', HTMLElement);
  readonly #title = element('card-title', HTMLElement);
  readonly #text = element('card-text', HTMLElement);
  readonly #spinner = element('card-spinner', HTMLElement);
  readonly #command = element('card-command', HTMLElement);
  readonly #unlock = element('card-unlock', HTMLFormElement);
  readonly #password = element('card-password', HTMLInputElement);
  readonly #unlockProblem = element('card-unlock-problem', HTMLElement);
  readonly #form = element('card-form', HTMLFormElement);
  readonly #link = element('card-link', HTMLInputElement);
  readonly #problem = element('card-problem', HTMLElement);
  readonly #action = element('card-action', HTMLButtonElement);
  readonly #announce = element('announce', HTMLElement);
  readonly #thing: Thing;
  #ticker: ReturnType<typeof setInterval> | undefined;

  constructor(events: CardEvents, thing: Thing) {
    this.#thing = thing;
    this.#form.addEventListener('submit', (event) => {
      event.preventDefault();
      const problem = events.pasted(this.#link.value);
      this.#problem.textContent = problem ?? '';
      if (problem === null) {
        this.#link.value = '';
      }
    });
    this.#unlock.addEventListener('submit', (event) => {
      event.preventDefault();
      void this.#tryPassword(events);
    });
    this.#action.addEventListener('click', () => events.retry());
    const copy = this.#command.querySelector('button');
    copy?.addEventListener('click', () => {
      void copyWithFeedback(this.#command.querySelector('code')?.textContent ?? '', copy);
    });
  }

  async #tryPassword(events: CardEvents): Promise<void> {
    const button = this.#unlock.querySelector('button');
    if (button === null || button.disabled) {
      return;
    }
    button.disabled = true;
    const problem = await events.unlock(this.#password.value).finally(() => {
      button.disabled = false;
    });
    this.#unlockProblem.textContent = problem ?? '';
    if (problem === null) {
      this.#password.value = '';
    } else {
      this.#password.select();
    }
  }

  /** `name` is for the reader, `handle` is what commands call the computer. */
  show(view: View, name: string, handle: string): void {
    clearInterval(this.#ticker);
    const content = contentFor(view, name, handle, this.#thing);
    this.#card.hidden = content === null;
    this.#announce.textContent = content === null ? 'Connected' : `${content.title} ${content.text}`;
    if (content === null) {
      return;
    }
    this.#title.textContent = content.title;
    this.#text.textContent = content.text;
    this.#spinner.hidden = content.spinner === undefined;
    this.#command.hidden = content.command === undefined;
    const code = this.#command.querySelector('code');
    if (code !== null) {
      code.textContent = content.command ?? '';
    }
    this.#unlock.hidden = content.form === undefined;
    this.#unlockProblem.textContent = '';
    this.#form.hidden = content.form === undefined;
    this.#problem.textContent = '';
    this.#action.hidden = content.action === undefined;
    this.#action.textContent = content.action ?? '';
    if (content.form !== undefined) {
      this.#password.focus();
    }
    if (view.kind === 'lost' && view.retryAt !== null) {
      this.#countDown(content.text, view.retryAt);
    }
  }

  /** Seconds tick in the visible text only: a screen reader that hears each one hears nothing else. */
  #countDown(reason: string, retryAt: number): void {
    const tick = (): void => {
      const seconds = Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
      this.#text.textContent = `${reason} Trying again in ${seconds} s.`;
    };
    tick();
    this.#ticker = setInterval(tick, 250);
  }
}

function contentFor(view: View, name: string, handle: string, thing: Thing): Content | null {
  switch (view.kind) {
    case 'connected':
      return null;
    case 'connecting':
      return { title: `Connecting to ${name}`, text: `The ${thing} appears in a moment.`, spinner: true };
    case 'lost':
      return view.retryAt === null
        ? { title: 'Connection lost', text: `${view.reason} Connecting again…`, spinner: true }
        : { title: 'Connection lost', text: view.reason, action: 'Try now' };
    case 'waiting':
      return waitingContent(view.status, name, handle, thing);
    case 'gone':
      return { title: 'This computer does not exist', text: 'It was deleted, or the address has a mistake in it.' };
    case 'needs-link':
      return {
        title: view.why === 'missing' ? `This ${thing} is protected` : 'This link does not work any more',
        text:
          view.why === 'missing'
            ? 'It opens with its viewer password, or with a link made for it.'
            : 'Links expire, and each is good for one computer.',
        command: `roost open ${thing === 'terminal' ? '--terminal ' : ''}${handle}`,
        form: true,
      };
    default:
      return view satisfies never;
  }
}

/** The card of a computer that does not run. The page connects by itself once the computer runs. */
function waitingContent(status: string, name: string, handle: string, thing: Thing): Content {
  switch (status) {
    case 'creating':
    case 'provisioning':
    case 'starting':
      return { title: `${name} is starting`, text: `The ${thing} appears here when it is ready.`, spinner: true };
    case 'stopping':
      return { title: `${name} is stopping`, text: 'Its files are kept.', spinner: true };
    case 'stopped':
    case 'paused':
      return {
        title: `${name} is ${status}`,
        text: `The ${thing} appears here as soon as it runs. Start it with:`,
        command: `roost start ${handle}`,
      };
    case 'error':
      return {
        title: `${name} has failed`,
        text: 'See why with “roost show”. Starting it again often helps:',
        command: `roost start ${handle}`,
      };
    default:
      return { title: `${name} is not running`, text: `Its status is “${status}”.` };
  }
}
