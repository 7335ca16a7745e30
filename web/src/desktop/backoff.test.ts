import { expect, it } from 'vitest';

import { backoffMs } from './backoff';

it('doubles up to a ceiling', () => {
  const middle = (tries: number) => backoffMs(tries, () => 0.5);
  expect([1, 2, 3, 4, 5, 6, 7, 1000].map(middle)).toEqual([500, 1000, 2000, 4000, 8000, 15000, 15000, 15000]);
});

it('spreads by a fifth each way', () => {
  expect(backoffMs(1, () => 0)).toBe(400);
  expect(backoffMs(1, () => 0.999999)).toBe(600);
});
