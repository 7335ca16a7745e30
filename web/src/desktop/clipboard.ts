// The clipboard panel. The guest's clipboard arrives by itself; sending and copying wait for a click,
// because a page that moves text between two machines unasked leaks passwords.

import { copyWithFeedback, element } from '../shared/dom';

export class ClipboardPanel {
  readonly #text = element('clipboard-text', HTMLTextAreaElement);
  readonly #outcome = element('clipboard-outcome', HTMLElement);

  constructor(send: (text: string) => void) {
    const panel = element('clipboard', HTMLFormElement);
    panel.addEventListener('submit', (event) => {
      event.preventDefault();
      send(this.#text.value);
      this.#outcome.textContent = 'Sent. Paste it in the desktop with Ctrl+V.';
    });
    panel.addEventListener('toggle', () => {
      this.#outcome.textContent = '';
    });
    const copy = element('clipboard-copy', HTMLButtonElement);
    copy.addEventListener('click', () => {
      this.#text.select();
      void copyWithFeedback(this.#text.value, copy);
    });
  }

  /** Text copied in the guest. */
  receive(text: string): void {
    this.#text.value = text;
  }
}
