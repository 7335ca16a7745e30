// The rows of the table. A row lives as long as its computer is listed, so a refresh moves no focus.

import type { Computer } from './api';

export interface RowEvents {
  open(computer: Computer): Promise<void>;
  start(computer: Computer): Promise<void>;
  stop(computer: Computer): Promise<void>;
}

type Tone = 'good' | 'busy' | 'bad' | 'off';

/** How a wire status looks. One this page does not know is shown as it is. */
function toneOf(status: string): Tone {
  switch (status) {
    case 'running':
      return 'good';
    case 'creating':
    case 'provisioning':
    case 'starting':
    case 'stopping':
    case 'destroying':
      return 'busy';
    case 'error':
      return 'bad';
    default:
      return 'off';
  }
}

/** Whether the computer is on its way to another status. */
export function isChanging(computer: Computer): boolean {
  return toneOf(computer.status) === 'busy';
}

interface Row {
  element: HTMLTableRowElement;
  update(computer: Computer): void;
}

export class Rows {
  readonly #body: HTMLTableSectionElement;
  readonly #events: RowEvents;
  readonly #rows = new Map<string, Row>();

  constructor(body: HTMLTableSectionElement, events: RowEvents) {
    this.#body = body;
    this.#events = events;
  }

  show(computers: readonly Computer[]): void {
    const gone = new Set(this.#rows.keys());
    computers.forEach((computer, position) => {
      gone.delete(computer.id);
      let row = this.#rows.get(computer.id);
      if (row === undefined) {
        row = makeRow(this.#events);
        this.#rows.set(computer.id, row);
      }
      row.update(computer);
      if (this.#body.children[position] !== row.element) {
        this.#body.insertBefore(row.element, this.#body.children[position] ?? null);
      }
    });
    for (const id of gone) {
      this.#rows.get(id)?.element.remove();
      this.#rows.delete(id);
    }
  }
}

function makeRow(events: RowEvents): Row {
  const element = document.createElement('tr');
  const name = document.createElement('th');
  name.scope = 'row';
  const status = document.createElement('span');
  status.className = 'status';
  const dot = document.createElement('span');
  dot.className = 'dot';
  dot.ariaHidden = 'true';
  const statusText = document.createElement('span');
  status.append(dot, statusText);
  const size = cell('size');
  const actions = document.createElement('div');
  element.append(name, cell('', status), size, cell('actions', actions));

  let current: Computer | null = null;
  let acting = false;
  const button = (label: string, action: (computer: Computer) => Promise<void>): HTMLButtonElement => {
    const made = document.createElement('button');
    made.type = 'button';
    made.textContent = label;
    made.addEventListener('click', () => {
      if (current === null || acting) {
        return;
      }
      acting = true;
      refresh(current);
      void action(current).finally(() => {
        acting = false;
        if (current !== null) {
          refresh(current);
        }
      });
    });
    return made;
  };
  const open = button('Open desktop', (computer) => events.open(computer));
  const start = button('Start', (computer) => events.start(computer));
  const stop = button('Stop', (computer) => events.stop(computer));
  open.className = 'primary';
  actions.append(open, start, stop);

  function refresh(computer: Computer): void {
    const startable = computer.status === 'stopped' || computer.status === 'paused' || computer.status === 'error';
    open.hidden = computer.status !== 'running';
    stop.hidden = computer.status !== 'running';
    start.hidden = !startable;
    for (const each of [open, start, stop]) {
      each.disabled = acting;
      each.setAttribute('aria-label', `${each.textContent}: ${computer.name}`);
    }
  }

  return {
    element,
    update(computer) {
      current = computer;
      name.textContent = computer.name;
      status.dataset['tone'] = toneOf(computer.status);
      statusText.textContent = computer.status;
      size.textContent = computer.size;
      refresh(computer);
    },
  };
}

function cell(className: string, ...children: Node[]): HTMLTableCellElement {
  const made = document.createElement('td');
  made.className = className;
  made.append(...children);
  return made;
}
