// Asks the server what this page shows: `GET ./session` with the stream token.

import { objectBody, textAt } from '../shared/json';

/** The computer behind the page. */
export interface Session {
  name: string;
  slug: string;
  /** A wire status of the Computers API; only `running` has a desktop. */
  status: string;
  /** The server drops every input, so the page offers none. */
  viewOnly: boolean;
  /** Address of the RFB WebSocket, token included. Always on the page's own host. */
  socketUrl: string;
}

export type SessionOutcome =
  | { kind: 'ok'; session: Session }
  /** The token is unknown, expired, or for another computer. */
  | { kind: 'refused' }
  | { kind: 'gone' }
  /** Worth another try: no answer, or one the server should not have given. */
  | { kind: 'failed'; reason: string };

export async function fetchSession(page: URL, token: string, signal: AbortSignal): Promise<SessionOutcome> {
  let response: Response;
  try {
    response = await fetch(new URL('session', page), {
      headers: { authorization: `Bearer ${token}`, accept: 'application/json' },
      cache: 'no-store',
      signal,
    });
  } catch {
    return { kind: 'failed', reason: 'The server does not answer.' };
  }
  const body = await objectBody(response);
  switch (response.status) {
    case 200:
      return readSession(body, page, token);
    case 401:
    case 403:
      return { kind: 'refused' };
    case 404:
      return { kind: 'gone' };
    default: {
      const said = textAt(body, 'message');
      return { kind: 'failed', reason: `The server answered ${response.status}${said === null ? '' : `: ${said}`}.` };
    }
  }
}

/** Trusts no field: an answer that is not a session, or a socket on another host, is a failure. */
export function readSession(body: Record<string, unknown> | null, page: URL, token: string): SessionOutcome {
  const name = textAt(body, 'name');
  const slug = textAt(body, 'slug');
  const status = textAt(body, 'status');
  const path = textAt(body, 'ws_path');
  if (name === null || slug === null || status === null || path === null || !URL.canParse(path, page.origin)) {
    return { kind: 'failed', reason: 'The server’s answer about this computer cannot be read.' };
  }
  const socket = new URL(path, page.origin);
  if (socket.host !== page.host) {
    return { kind: 'failed', reason: 'The server named another host for the desktop.' };
  }
  socket.protocol = page.protocol === 'https:' ? 'wss:' : 'ws:';
  socket.searchParams.set('auth', token);
  return { kind: 'ok', session: { name, slug, status, viewOnly: body?.['view_only'] === true, socketUrl: socket.href } };
}
