// Secrets live in this tab only: sessionStorage survives a reload and ends with the tab. A browser
// that forbids storage still works, it just asks again after a reload.

export function remember(key: string, value: string): void {
  try {
    sessionStorage.setItem(key, value);
  } catch {
    // Storage is off or full; the caller keeps the value in memory.
  }
}

export function recall(key: string): string | null {
  try {
    return sessionStorage.getItem(key);
  } catch {
    return null;
  }
}

export function forget(key: string): void {
  try {
    sessionStorage.removeItem(key);
  } catch {
    // Nothing was stored.
  }
}
