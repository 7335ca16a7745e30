/** The element with this id. A missing one is a bug in the page, not a state to handle. */
export function element<T extends Element>(id: string, kind: abstract new () => T): T {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) {
    throw new Error(`the page has no ${kind.name} with id "${id}"`);
  }
  return found;
}

/** Copies `text` and says so on `button` for a moment. Browsers refuse without a user gesture or on plain HTTP. */
export async function copyWithFeedback(text: string, button: HTMLButtonElement): Promise<void> {
  const label = button.textContent;
  let outcome = 'Copied';
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    outcome = 'Press Ctrl+C';
  }
  button.textContent = outcome;
  setTimeout(() => {
    button.textContent = label;
  }, 1500);
}
