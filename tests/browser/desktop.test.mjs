// The desktop page against a real computer: what a person with a browser sees and does.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import {
  call,
  computerRoute,
  desktopLink,
  guest,
  launchBrowser,
  openPage,
  pathForm,
  ROOST_COMPUTER_ID,
  ROOST_URL,
  saveScreenshot,
  streamToken,
  upgrade,
  waitConnected,
  waitForColour,
  waitForPicture,
} from './support.mjs';

const WRONG_TOKEN = 'not-a-token-of-this-server';
const OTHER_COMPUTER = '00000000-0000-4000-8000-000000000000';

/** The shortest life a stream token may have. Minted first and used last, so that the wait costs little. */
const SHORTEST_TTL_SECONDS = 60;

let browser;
let shortLived;
before(async () => {
  shortLived = await streamToken({ ttl_seconds: SHORTEST_TTL_SECONDS });
  browser = await launchBrowser();
});
after(() => browser?.close());

function socket(computer, auth) {
  const url = new URL(`/ws/vnc/${computer}`, ROOST_URL);
  if (auth !== null) {
    url.searchParams.set('auth', auth);
  }
  return url;
}

/** Runs `body` with a fresh page and then asserts that the page kept to the rules. */
async function withPage(body) {
  const { page, faults, close } = await openPage(browser);
  try {
    await body(page);
    assert.deepEqual(faults, []);
  } catch (error) {
    await saveScreenshot(page, 'failure');
    throw error;
  } finally {
    await close();
  }
}

test('the printed link shows the desktop, and a reload keeps it', async () => {
  await withPage(async (page) => {
    await page.goto(await desktopLink());
    await waitConnected(page);
    const picture = await waitForPicture(page);
    assert.equal(picture.width, 1280);
    assert.equal(new URL(page.url()).hash, '', 'the token must leave the address bar');
    const { name } = await call('GET', computerRoute);
    assert.equal(await page.title(), name);
    await saveScreenshot(page, 'desktop');

    await page.reload();
    await waitConnected(page);
    await waitForPicture(page);
  });
});

test('pointer and keys reach the guest', async () => {
  await withPage(async (page) => {
    await page.goto(await desktopLink());
    await waitConnected(page);
    await waitForPicture(page);

    // A full-screen terminal, in a colour that nothing else has, whose shell says when it runs and hands over
    // one line. Named pipes make both ends wait for each other, so nobody guesses how long a window takes.
    const colour = '#96146e';
    const directory = (
      await guest(`
        set -e
        directory=$(mktemp -d)
        mkfifo "$directory/ready" "$directory/typed"
        cat > "$directory/run" <<EOF
#!/bin/sh
printf '\\033]11;${colour}\\007'
printf ready > "$directory/ready"
IFS= read -r line
printf %s "\\$line" > "$directory/typed"
EOF
        chmod +x "$directory/run"
        setsid -f xfce4-terminal --disable-server --fullscreen -x "$directory/run" \
          < /dev/null > "$directory/log" 2>&1
        echo "$directory"`)
    ).trim();
    assert.equal(await guest(`timeout 60 cat '${directory}/ready' || cat '${directory}/log'`, 65), 'ready');
    await waitForColour(page, Number.parseInt(colour.slice(1), 16));

    const canvas = page.locator('#screen canvas');
    await canvas.click();
    const text = 'Roost: 42 birds, "quoted" & done!';
    await page.keyboard.type(text);
    await page.keyboard.press('Enter');
    assert.equal(await guest(`timeout 30 cat '${directory}/typed'`, 35), text);
    await saveScreenshot(page, 'typed');

    // The click came before the keys on the same connection, so the pointer is there already.
    const { width, height } = await call('GET', `${computerRoute}/desktop/screen-size`);
    const cursor = await call('GET', `${computerRoute}/desktop/cursor`);
    assert.ok(
      Math.abs(cursor.x - width / 2) <= 2 && Math.abs(cursor.y - height / 2) <= 2,
      `the click on the middle of ${width}x${height} arrived at ${cursor.x},${cursor.y}`,
    );
    await guest(`rm -r '${directory}'`);
  });
});

test('the address by path shows the same desktop', async () => {
  await withPage(async (page) => {
    const { token } = await streamToken();
    await page.goto(`${pathForm()}?auth=${encodeURIComponent(token)}`);
    await waitConnected(page);
    await waitForPicture(page);
    assert.equal(new URL(page.url()).search, '', 'the token must leave the address bar');
  });
});

test('a page without a good token says so and takes a fresh link', async () => {
  await withPage(async (page) => {
    const link = new URL(await desktopLink());
    const bare = `${link.origin}${link.pathname}`;
    await page.goto(bare);
    await page.getByRole('heading', { name: 'This desktop is protected' }).waitFor();
    await page.getByText('roost open').first().waitFor();

    await page.goto(`${bare}?auth=${WRONG_TOKEN}`);
    await page.getByRole('heading', { name: 'This link does not work any more' }).waitFor();
    assert.equal(await page.evaluate(() => window.roost.state), 'disconnected');
    await saveScreenshot(page, 'refused');

    await page.getByLabel('Link or token').fill(link.href);
    await page.getByRole('button', { name: 'Connect' }).click();
    await waitConnected(page);
    await waitForPicture(page);
  });
});

test('the start page lists the computer and opens its desktop', async () => {
  await withPage(async (page) => {
    const { name } = await call('GET', computerRoute);
    await page.goto(new URL('/', ROOST_URL).href);
    await page.getByText(/^Version \d/).waitFor();
    await page.getByLabel('API key').fill('msk_u_00000000000000000000000000000000');
    await page.getByRole('button', { name: 'Show computers' }).click();
    await page.getByText('The server does not know this key.').waitFor();
    await page.getByLabel('API key').fill(process.env.ROOST_API_KEY);
    await page.getByRole('button', { name: 'Show computers' }).click();
    const open = page.getByRole('button', { name: `Open desktop: ${name}`, exact: true }).first();
    await open.waitFor();
    await saveScreenshot(page, 'start');
    const [tab] = await Promise.all([page.context().waitForEvent('page'), open.click()]);
    await waitConnected(tab);
    await waitForPicture(tab);
  });
});

test('a bad token is refused before the upgrade, a good one is not', async () => {
  const { token, expires_at: expiresAt } = await streamToken();
  assert.ok(Number.isInteger(expiresAt), 'expires_at counts seconds');
  assert.deepEqual(await upgrade(socket(ROOST_COMPUTER_ID, token)), { status: 101, protocol: 'binary' });

  const middle = Math.floor(token.length / 2);
  const forged = `${token.slice(0, middle)}${token[middle] === 'A' ? 'B' : 'A'}${token.slice(middle + 1)}`;
  for (const [what, url] of [
    ['no token', socket(ROOST_COMPUTER_ID, null)],
    ['an empty token', socket(ROOST_COMPUTER_ID, '')],
    ['a wrong token', socket(ROOST_COMPUTER_ID, WRONG_TOKEN)],
    ['a forged token', socket(ROOST_COMPUTER_ID, forged)],
    ['a shortened token', socket(ROOST_COMPUTER_ID, token.slice(0, -1))],
    ['a token of another computer', socket(OTHER_COMPUTER, token)],
  ]) {
    const answer = await upgrade(url);
    assert.equal(answer.status, 401, what);
    assert.ok(answer.requestId, `${what}: no x-request-id`);
  }
});

test('an expired token is refused before the upgrade', async () => {
  const life = shortLived.expires_at - Date.now() / 1000;
  assert.ok(life <= SHORTEST_TTL_SECONDS, `asked for ${SHORTEST_TTL_SECONDS} s of life, ${life} s are left`);
  // One second more: expires_at is in whole seconds.
  await sleep(Math.max(0, (life + 1) * 1000));
  assert.equal((await upgrade(socket(ROOST_COMPUTER_ID, shortLived.token))).status, 401);
  await withPage(async (page) => {
    await page.goto(`${pathForm()}#auth=${encodeURIComponent(shortLived.token)}`);
    await page.getByRole('heading', { name: 'This link does not work any more' }).waitFor();
  });
});
