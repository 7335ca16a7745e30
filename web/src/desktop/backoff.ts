// How long to wait before the next try.

const FIRST_MS = 500;
const CEILING_MS = 15_000;
/** Share of the delay that is random, so that many pages do not return to a restarted server at once. */
const JITTER = 0.2;

/** The delay before try number `tries` + 1, after `tries` failures in a row. `random` is in [0, 1). */
export function backoffMs(tries: number, random: () => number = Math.random): number {
  const steady = Math.min(CEILING_MS, FIRST_MS * 2 ** Math.max(0, tries - 1));
  return Math.round(steady * (1 - JITTER + 2 * JITTER * random()));
}
