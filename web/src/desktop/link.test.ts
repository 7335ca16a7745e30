import { describe, expect, it } from 'vitest';

import { computerIn, readPasted, tokenIn, withoutToken } from './link';

const HERE = new URL('http://blue.computer.localhost:8080/desktop/index.html');

describe('tokenIn', () => {
  it.each([
    ['http://h/desktop/index.html#auth=abc.def-1', 'abc.def-1'],
    ['http://h/desktop/index.html?auth=abc', 'abc'],
    ['http://h/desktop/index.html?auth=old#auth=new', 'new'],
    ['http://h/desktop/index.html?x=1&auth=a%2Bb', 'a+b'],
    ['http://h/desktop/index.html', null],
    ['http://h/desktop/index.html#auth=', null],
    ['http://h/desktop/index.html#auth=two%20words', null],
    [`http://h/desktop/index.html#auth=${'x'.repeat(5000)}`, null],
  ])('%s', (url, token) => {
    expect(tokenIn(new URL(url))).toBe(token);
  });
});

describe('withoutToken', () => {
  it.each([
    ['http://h/desktop/index.html#auth=a', '/desktop/index.html'],
    ['http://h/desktop/index.html?auth=a&zoom=2#auth=b', '/desktop/index.html?zoom=2'],
    ['http://h/desktop/index.html?zoom=2#part', '/desktop/index.html?zoom=2#part'],
  ])('%s', (url, clean) => {
    expect(withoutToken(new URL(url))).toBe(clean);
  });
});

describe('readPasted', () => {
  it('takes a bare token', () => {
    expect(readPasted('  tok_1.sig\n', HERE)).toEqual({ kind: 'token', token: 'tok_1.sig' });
  });
  it('takes the token of a link to this page', () => {
    expect(readPasted('http://blue.computer.localhost:8080/desktop/index.html#auth=t', HERE)).toEqual({
      kind: 'token',
      token: 't',
    });
  });
  it('takes the token of a WebSocket address', () => {
    expect(readPasted('ws://blue.computer.localhost:8080/ws/vnc/1?auth=t', HERE)).toEqual({ kind: 'token', token: 't' });
  });
  it('goes to the page of another computer', () => {
    const other = 'http://red.computer.localhost:8080/desktop/index.html#auth=t';
    expect(readPasted(other, HERE)).toEqual({ kind: 'elsewhere', url: other });
  });
  it('tells computers on one host apart by their directory', () => {
    const other = 'http://127.0.0.1:8080/desktop/b/index.html#auth=t';
    expect(readPasted(other, new URL('http://127.0.0.1:8080/desktop/a/index.html')).kind).toBe('elsewhere');
  });
  it.each(['', '   ', 'http://', 'http://blue.computer.localhost:8080/desktop/index.html', 'some words'])(
    'refuses %j',
    (text) => {
      expect(readPasted(text, HERE).kind).toBe('unusable');
    },
  );
  it('never runs a script address', () => {
    expect(readPasted('javascript:alert(1)#auth=t', HERE).kind).not.toBe('elsewhere');
  });
});

describe('computerIn', () => {
  it.each([
    ['http://blue.computer.localhost:8080/desktop/index.html', 'blue'],
    ['http://127.0.0.1:8080/desktop/1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed/index.html', '1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed'],
    ['http://127.0.0.1:8080/desktop/index.html', null],
  ])('%s', (url, computer) => {
    expect(computerIn(new URL(url))).toBe(computer);
  });
});
