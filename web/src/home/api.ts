// The few calls of the Computers API that the start page makes.

import { asObject, objectBody, textAt } from '../shared/json';

export interface Computer {
  id: string;
  name: string;
  status: string;
  size: string;
  desktopUrl: string;
}

export interface ComputerList {
  computers: Computer[];
  /** All computers that exist; the list may hold fewer. */
  total: number;
}

/** An answer that is not a success, in words for the person at the page. */
export class ApiError extends Error {
  /** HTTP status; 0 when there was no answer at all. */
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.name = 'ApiError';
    this.status = status;
  }
}

/** One page of the list. Who has more computers than this finds them with the command line. */
const LIST_LIMIT = 100;

export class Api {
  readonly #key: string;

  constructor(key: string) {
    this.#key = key;
  }

  async list(): Promise<ComputerList> {
    const body = await this.#call('GET', `/computers?limit=${LIST_LIMIT}`);
    const rows = body?.['computers'];
    if (!Array.isArray(rows)) {
      throw new ApiError(200, 'The server’s list of computers cannot be read.');
    }
    const computers = rows.map((row: unknown) => readComputer(asObject(row)));
    const total = body?.['total'];
    return { computers, total: typeof total === 'number' ? total : computers.length };
  }

  async create(name: string, size: string): Promise<Computer> {
    return readComputer(await this.#call('POST', '/computers', { name, size, template_type: 'miosa-desktop' }));
  }

  async start(id: string): Promise<Computer> {
    return readComputer(await this.#call('POST', `/computers/${id}/start`));
  }

  async stop(id: string): Promise<Computer> {
    return readComputer(await this.#call('POST', `/computers/${id}/stop`));
  }

  async streamToken(id: string): Promise<string> {
    const token = textAt(await this.#call('POST', `/computers/${id}/stream-token`), 'token');
    if (token === null) {
      throw new ApiError(200, 'The server sent no token for the desktop.');
    }
    return token;
  }

  async #call(method: string, path: string, body?: unknown): Promise<Record<string, unknown> | null> {
    const headers: Record<string, string> = { authorization: `Bearer ${this.#key}`, accept: 'application/json' };
    const request: RequestInit = { method, headers, cache: 'no-store' };
    if (body !== undefined) {
      headers['content-type'] = 'application/json';
      request.body = JSON.stringify(body);
    }
    let response: Response;
    try {
      response = await fetch(`/api/v1${path}`, request);
    } catch {
      throw new ApiError(0, 'The server does not answer.');
    }
    const answer = await objectBody(response);
    if (!response.ok) {
      throw new ApiError(response.status, textAt(answer, 'message') ?? `The server answered ${response.status}.`);
    }
    return answer;
  }
}

/** The server's version; null when it is not healthy. */
export async function fetchVersion(): Promise<string | null> {
  try {
    const response = await fetch('/health', { cache: 'no-store' });
    return response.ok ? (textAt(await objectBody(response), 'version') ?? '') : null;
  } catch {
    return null;
  }
}

function readComputer(row: Record<string, unknown> | null): Computer {
  const id = textAt(row, 'id');
  const name = textAt(row, 'name');
  const status = textAt(row, 'status');
  if (id === null || name === null || status === null) {
    throw new ApiError(200, 'The server’s answer about a computer cannot be read.');
  }
  return { id, name, status, size: textAt(row, 'size') ?? '', desktopUrl: textAt(row, 'desktop_url') ?? '' };
}
