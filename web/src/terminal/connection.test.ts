import { describe, expect, it } from 'vitest';

import { socketUrl } from './connection';

describe('socketUrl', () => {
  const base = 'wss://blue.computer.example.org/ws/terminal/1?auth=a%2Bb';

  it('opens a session of the page’s size', () => {
    const url = new URL(socketUrl(base, null, { columns: 120, rows: 40 }));
    expect(Object.fromEntries(url.searchParams)).toEqual({ auth: 'a+b', cols: '120', rows: '40' });
  });
  it('continues a session, or opens one where it has ended', () => {
    const url = new URL(socketUrl(base, 's-1', { columns: 80, rows: 24 }));
    expect(url.searchParams.get('session_id')).toBe('s-1');
    expect(url.searchParams.get('or_new')).toBe('true');
  });
});
