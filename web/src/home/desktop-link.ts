// Which of a desktop's two addresses this browser can reach.

/**
 * The page that shows a computer's desktop, without its token.
 *
 * `desktopUrl` names a host of its own, which resolves only where that name is known: `*.localhost` in a
 * browser on the server's machine, a real domain everywhere. Through a port forward or a bare address it
 * leads nowhere, so there the path form on this very origin is used.
 */
export function desktopPage(computer: { id: string; desktopUrl: string }, here: URL): string {
  const byPath = new URL(`/desktop/${computer.id}/index.html`, here).href;
  if (!URL.canParse(computer.desktopUrl)) {
    return byPath;
  }
  const url = new URL(computer.desktopUrl);
  const sameServer = url.port === here.port && url.protocol === here.protocol;
  const resolves = url.hostname.endsWith('.localhost')
    ? isLoopback(here.hostname)
    : url.hostname.endsWith(`.${here.hostname}`);
  return sameServer && resolves ? url.href : byPath;
}

function isLoopback(hostname: string): boolean {
  return hostname === 'localhost' || hostname.endsWith('.localhost') || hostname.startsWith('127.') || hostname === '[::1]';
}
