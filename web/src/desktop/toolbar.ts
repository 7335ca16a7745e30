// The toolbar at the top edge: when it shows, full screen, special keys and typing for touch screens.

import { element } from '../shared/dom';
import { CHORDS, keyFor, type Key } from './keys';

/** After the first connection the toolbar shows itself for this long, so that people know it is there. */
const INTRODUCTION_MS = 2_500;

/** Chromium only: in full screen, Escape, Alt+Tab and the like can go to the guest. */
interface KeyboardLock {
  keyboard?: { lock?(codes: string[]): Promise<void>; unlock?(): void };
}

export interface ToolbarEvents {
  press(keys: readonly Key[]): void;
  /** Give the keyboard back to the desktop. */
  focusDesktop(): void;
}

export class Toolbar {
  readonly #events: ToolbarEvents;
  readonly #bar = element('bar', HTMLElement);
  readonly #handle = element('bar-handle', HTMLButtonElement);
  readonly #name = element('bar-name', HTMLElement);
  readonly #keys = element('keys', HTMLElement);
  readonly #fullscreen = element('fullscreen', HTMLButtonElement);
  #introduced = false;

  constructor(events: ToolbarEvents) {
    this.#events = events;
    this.#handle.addEventListener('click', () => this.#setOpen(!this.#isOpen()));
    element('screen', HTMLElement).addEventListener('pointerdown', () => this.#setOpen(false));
    // noVNC takes every key the canvas gets, Tab included, so leaving it needs a chord caught before.
    window.addEventListener(
      'keydown',
      (event) => {
        if (event.ctrlKey && event.altKey && event.shiftKey && isModifier(event) && !this.#bar.hidden) {
          event.preventDefault();
          event.stopPropagation();
          this.#setOpen(true);
          this.#bar.querySelector('button')?.focus({ focusVisible: true } as FocusOptions);
        }
      },
      { capture: true },
    );
    this.#bar.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') {
        this.#setOpen(false);
        this.#events.focusDesktop();
      }
    });
    for (const panel of document.querySelectorAll<HTMLElement>('.panel')) {
      panel.addEventListener('toggle', (event) => {
        // A closed panel leaves the focus on its button, or nowhere; typing should go on in the guest.
        if ((event as ToggleEvent).newState === 'closed' && !this.#bar.matches(':has(:focus-visible)')) {
          this.#events.focusDesktop();
        }
      });
    }
    this.#wireFullscreen();
    this.#wireKeys();
  }

  /** Shows or hides the toolbar as a whole; without a desktop there is nothing to do with it. */
  showFor(connected: boolean): void {
    this.#bar.hidden = !connected;
    if (!connected) {
      for (const panel of document.querySelectorAll<HTMLElement>('.panel:popover-open')) {
        panel.hidePopover();
      }
    } else if (!this.#introduced) {
      this.#introduced = true;
      this.#setOpen(true);
      setTimeout(() => this.#setOpen(false), INTRODUCTION_MS);
    }
  }

  setName(name: string): void {
    this.#name.textContent = name;
  }

  #isOpen(): boolean {
    return this.#bar.dataset['open'] !== undefined;
  }

  #setOpen(open: boolean): void {
    this.#bar.toggleAttribute('data-open', open);
    this.#handle.setAttribute('aria-expanded', String(open));
  }

  #wireFullscreen(): void {
    this.#fullscreen.hidden = !document.fullscreenEnabled;
    this.#fullscreen.addEventListener('click', () => {
      void toggleFullscreen().finally(() => this.#events.focusDesktop());
    });
    document.addEventListener('fullscreenchange', () => {
      const on = document.fullscreenElement !== null;
      this.#fullscreen.setAttribute('aria-pressed', String(on));
      const label = this.#fullscreen.querySelector('span');
      if (label !== null) {
        label.textContent = on ? 'Leave full screen' : 'Full screen';
      }
    });
  }

  #wireKeys(): void {
    const chords = element('chords', HTMLElement);
    for (const { label, keys } of CHORDS) {
      const button = document.createElement('button');
      button.type = 'button';
      button.textContent = label;
      button.addEventListener('click', () => {
        this.#keys.hidePopover();
        this.#events.focusDesktop();
        this.#events.press(keys);
      });
      chords.append(button);
    }
    const text = element('type-text', HTMLInputElement);
    element('type-form', HTMLFormElement).addEventListener('submit', (event) => {
      event.preventDefault();
      for (const character of text.value === '' ? '\n' : text.value) {
        this.#events.press([keyFor(character)]);
      }
      text.value = '';
    });
  }
}

function isModifier(event: KeyboardEvent): boolean {
  return event.key === 'Control' || event.key === 'Alt' || event.key === 'Shift' || event.key === 'Meta';
}

async function toggleFullscreen(): Promise<void> {
  if (document.fullscreenElement !== null) {
    await document.exitFullscreen();
    return;
  }
  try {
    await document.documentElement.requestFullscreen({ navigationUI: 'hide' });
    await (navigator as KeyboardLock).keyboard?.lock?.([]);
  } catch {
    // The browser said no (an iframe without permission, say); the page works as it did.
  }
}
