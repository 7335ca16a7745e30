// Links to a desktop: where the stream token hides in a URL, and what a person may paste instead.

/** The longest token worth sending; more is certainly not one of ours. */
const MAX_TOKEN_LENGTH = 4096;

/** The token in `#auth=` or `?auth=`. The fragment wins: it never reaches a server's log. */
export function tokenIn(url: URL): string | null {
  const token = new URLSearchParams(url.hash.slice(1)).get('auth') ?? url.searchParams.get('auth');
  return token !== null && isToken(token) ? token : null;
}

/** The same address without the token, for the address bar and the history. */
export function withoutToken(url: URL): string {
  const clean = new URL(url);
  clean.searchParams.delete('auth');
  const fragment = new URLSearchParams(clean.hash.slice(1));
  if (fragment.has('auth')) {
    fragment.delete('auth');
    clean.hash = fragment.toString();
  }
  return `${clean.pathname}${clean.search}${clean.hash}`;
}

export type Pasted =
  | { kind: 'token'; token: string }
  /** A link to another page: the browser should go there. */
  | { kind: 'elsewhere'; url: string }
  | { kind: 'unusable'; why: string };

/** Reads what a person pasted on the page at `here`: a whole link, or the bare token. */
export function readPasted(text: string, here: URL): Pasted {
  const trimmed = text.trim();
  if (trimmed === '') {
    return { kind: 'unusable', why: 'Paste the link that “roost open” printed.' };
  }
  if (/^(https?|wss?):/i.test(trimmed)) {
    return readPastedLink(trimmed, here);
  }
  return isToken(trimmed)
    ? { kind: 'token', token: trimmed }
    : { kind: 'unusable', why: 'That is neither a link nor a token.' };
}

function readPastedLink(text: string, here: URL): Pasted {
  if (!URL.canParse(text)) {
    return { kind: 'unusable', why: 'That link is not complete.' };
  }
  const url = new URL(text);
  const token = tokenIn(url);
  if (token === null) {
    return { kind: 'unusable', why: 'That link carries no token. Get a fresh one with “roost open”.' };
  }
  const isPage = url.protocol.startsWith('http');
  const isThisPage = url.origin === here.origin && directoryOf(url) === directoryOf(here);
  return isPage && !isThisPage ? { kind: 'elsewhere', url: url.href } : { kind: 'token', token };
}

/** The directory of a page, `/desktop/` for `/desktop/index.html`: one computer per directory and host. */
export function directoryOf(url: URL): string {
  return url.pathname.slice(0, url.pathname.lastIndexOf('/') + 1);
}

/** Which computer a page belongs to before the server was asked: its slug or its id, as in the address. */
export function computerIn(url: URL): string | null {
  const fromPath = /^\/(?:desktop|terminal)\/([\w-]+)\//.exec(url.pathname)?.[1];
  if (fromPath !== undefined) {
    return fromPath;
  }
  return /^([\w-]+)\.computer\./.exec(url.hostname)?.[1] ?? null;
}

function isToken(text: string): boolean {
  return text.length <= MAX_TOKEN_LENGTH && /^[\x21-\x7e]+$/.test(text);
}
