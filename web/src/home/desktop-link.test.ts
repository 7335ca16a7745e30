import { expect, it } from 'vitest';

import { desktopPage } from './desktop-link';

const ON_HOST = 'http://blue.computer.localhost:8080/desktop/index.html';

it.each([
  ['the server’s own machine', ON_HOST, 'http://127.0.0.1:8080/', ON_HOST],
  ['localhost by name', ON_HOST, 'http://localhost:8080/', ON_HOST],
  ['a forwarded port', ON_HOST, 'http://localhost:9000/', 'http://localhost:9000/desktop/7/index.html'],
  ['a bare address', ON_HOST, 'http://192.168.1.5:8080/', 'http://192.168.1.5:8080/desktop/7/index.html'],
  [
    'a real domain',
    'https://blue.computer.example.org/desktop/index.html',
    'https://example.org/',
    'https://blue.computer.example.org/desktop/index.html',
  ],
  ['no address', '', 'http://127.0.0.1:8080/', 'http://127.0.0.1:8080/desktop/7/index.html'],
])('%s', (_, desktopUrl, here, expected) => {
  expect(desktopPage({ id: '7', desktopUrl }, new URL(here))).toBe(expected);
});
