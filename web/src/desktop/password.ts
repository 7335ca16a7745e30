// Opens the desktop for a person who has its viewer password: `POST ./viewer-session` beside the page.

import { objectBody, textAt } from '../shared/json';

export type PasswordOutcome =
  | { kind: 'token'; token: string }
  /** For the person, as a sentence. */
  | { kind: 'refused'; why: string };

export async function openWithPassword(page: URL, password: string): Promise<PasswordOutcome> {
  if (password === '') {
    return { kind: 'refused', why: 'Enter the viewer password.' };
  }
  let response: Response;
  try {
    response = await fetch(new URL('viewer-session', page), {
      method: 'POST',
      headers: { accept: 'application/json', 'content-type': 'application/json' },
      body: JSON.stringify({ password }),
      cache: 'no-store',
    });
  } catch {
    return { kind: 'refused', why: 'The server does not answer.' };
  }
  return readOutcome(response.status, await objectBody(response));
}

export function readOutcome(status: number, body: Record<string, unknown> | null): PasswordOutcome {
  const token = textAt(body, 'token');
  if (status === 200 && token !== null) {
    return { kind: 'token', token };
  }
  switch (textAt(body, 'code')) {
    case 'wrong_password':
      return { kind: 'refused', why: 'That is not the viewer password of this computer.' };
    case 'rate_limited':
      return { kind: 'refused', why: 'Too many attempts. Wait a minute.' };
    case 'computer_not_running':
      return { kind: 'refused', why: 'The password is right, but the computer is not running.' };
    default:
      return { kind: 'refused', why: `The server answered ${status}.` };
  }
}
