// What the terminal socket says, checked before it is believed.

import { asObject } from '../shared/json';

export type Frame =
  | { kind: 'session'; id: string; columns: number; rows: number }
  | { kind: 'output'; data: string }
  | { kind: 'resize'; columns: number; rows: number }
  | { kind: 'exit'; code: number }
  /** Of a newer server, or broken: of no use. */
  | { kind: 'unknown' };

export function readFrame(text: unknown): Frame {
  const frame = typeof text === 'string' ? parsed(text) : null;
  const { type, session_id: id, cols: columns, rows, data, code } = frame ?? {};
  switch (type) {
    case 'session':
      return typeof id === 'string' && isCount(columns) && isCount(rows)
        ? { kind: 'session', id, columns, rows }
        : { kind: 'unknown' };
    case 'output':
      return typeof data === 'string' ? { kind: 'output', data } : { kind: 'unknown' };
    case 'resize':
      return isCount(columns) && isCount(rows) ? { kind: 'resize', columns, rows } : { kind: 'unknown' };
    case 'exit':
      return { kind: 'exit', code: typeof code === 'number' ? code : 0 };
    default:
      return { kind: 'unknown' };
  }
}

function parsed(text: string): Record<string, unknown> | null {
  try {
    return asObject(JSON.parse(text));
  } catch {
    return null;
  }
}

function isCount(value: unknown): value is number {
  return Number.isInteger(value) && (value as number) > 0 && (value as number) <= 1000;
}
