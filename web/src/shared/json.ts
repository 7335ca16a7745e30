// Reading JSON whose shape is only hoped for: everything from the network enters as `unknown`.

/** A JSON object, or null for anything else (arrays included). */
export function asObject(value: unknown): Record<string, unknown> | null {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
    ? (value as Record<string, unknown>)
    : null;
}

/** The text under `key`, or null when it is absent, empty or not text. */
export function textAt(object: Record<string, unknown> | null, key: string): string | null {
  const value = object?.[key];
  return typeof value === 'string' && value !== '' ? value : null;
}

/** The body of a response as an object; null when it is not JSON, or JSON of another kind. */
export async function objectBody(response: Response): Promise<Record<string, unknown> | null> {
  try {
    return asObject(await response.json());
  } catch {
    return null;
  }
}
