import { describe, expect, it } from 'vitest';

import { readSession } from './session';

const PAGE = new URL('https://blue.computer.example.org/desktop/index.html');
const BODY = { computer_id: '1', name: 'Blue', slug: 'blue', status: 'running', ws_path: '/ws/vnc/1', expires_at: 1 };

describe('readSession', () => {
  it('builds the socket address on the page’s host', () => {
    expect(readSession(BODY, PAGE, 'a+b')).toEqual({
      kind: 'ok',
      session: {
        name: 'Blue',
        slug: 'blue',
        status: 'running',
        viewOnly: false,
        socketUrl: 'wss://blue.computer.example.org/ws/vnc/1?auth=a%2Bb',
      },
    });
  });
  it.each([
    ['no object', null],
    ['a missing name', { ...BODY, name: undefined }],
    ['a status of another type', { ...BODY, status: 3 }],
    ['a socket on another host', { ...BODY, ws_path: '//evil.example/ws' }],
    ['a whole address of another host', { ...BODY, ws_path: 'wss://evil.example/ws' }],
  ])('fails on %s', (_, body) => {
    expect(readSession(body, PAGE, 't').kind).toBe('failed');
  });
});
