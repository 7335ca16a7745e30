import { describe, expect, it } from 'vitest';

import { readOutcome } from './password';

describe('readOutcome', () => {
  it('takes the token', () => {
    expect(readOutcome(200, { token: 'rst_x' })).toEqual({ kind: 'token', token: 'rst_x' });
  });
  it.each([
    ['a wrong password', 401, { code: 'wrong_password' }, /not the viewer password/],
    ['too many attempts', 429, { code: 'rate_limited' }, /Wait/],
    ['a stopped computer', 409, { code: 'computer_not_running' }, /not running/],
    ['an answer without a token', 200, {}, /200/],
    ['no JSON', 502, null, /502/],
  ])('says what is wrong with %s', (_, status, body, why) => {
    const outcome = readOutcome(status, body);
    expect(outcome.kind === 'refused' && outcome.why).toMatch(why);
  });
});
