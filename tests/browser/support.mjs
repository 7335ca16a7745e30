// What the browser tests share: the server under test, a browser, and a view of what is on the canvas.

import assert from 'node:assert/strict';
import http from 'node:http';
import path from 'node:path';

import { chromium } from 'playwright-core';

/** Made by the caller: a server, a key for it, and a computer that runs. */
export const { ROOST_URL, ROOST_API_KEY, ROOST_COMPUTER_ID } = process.env;
for (const [name, value] of Object.entries({ ROOST_URL, ROOST_API_KEY, ROOST_COMPUTER_ID })) {
  assert.ok(value, `set ${name}: these tests drive a running server and a running computer`);
}

/** Long enough for an emulated guest on a busy machine. */
export const PATIENCE_MS = 60_000;

/** Calls the API as a user does. */
export async function call(method, route, body) {
  const response = await fetch(new URL(`/api/v1${route}`, ROOST_URL), {
    method,
    headers: {
      authorization: `Bearer ${ROOST_API_KEY}`,
      ...(body === undefined ? {} : { 'content-type': 'application/json' }),
    },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const text = await response.text();
  assert.ok(response.ok, `${method} ${route} answered ${response.status}: ${text}`);
  return JSON.parse(text);
}

export const computerRoute = `/computers/${ROOST_COMPUTER_ID}`;

/** Runs a command in the guest and gives back what it printed. */
export async function guest(command, timeout = 60) {
  const result = await call('POST', `${computerRoute}/exec`, { command, timeout });
  assert.equal(result.exit_code, 0, `in the guest: ${command}\n${result.output}`);
  return result.output;
}

export async function streamToken(options) {
  const answer = await call('POST', `${computerRoute}/stream-token`, options);
  assert.equal(typeof answer.token, 'string');
  assert.ok(answer.expires_at > Date.now() / 1000, 'a fresh token must not have expired');
  return answer;
}

/** The link a person gets: the desktop's address with a token in the fragment. */
export async function desktopLink() {
  const { desktop_url: url } = await call('GET', computerRoute);
  const { token } = await streamToken();
  return `${url}#auth=${encodeURIComponent(token)}`;
}

/** The same desktop for tools that cannot use host names. */
export function pathForm() {
  return new URL(`/desktop/${ROOST_COMPUTER_ID}/index.html`, ROOST_URL).href;
}

export function launchBrowser() {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: [
      '--headless',
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
    ],
  });
}

/**
 * A page that collects what a page of ours must never do: throw, break its content security policy, or
 * talk to another machine.
 */
export async function openPage(browser) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 } });
  context.setDefaultTimeout(PATIENCE_MS);
  await context.addInitScript(installSampler);
  const page = await context.newPage();
  const faults = [];
  const port = new URL(ROOST_URL).port;
  page.on('pageerror', (error) => faults.push(`uncaught: ${error.message}`));
  page.on('console', (message) => {
    if (/content security policy/i.test(message.text())) {
      faults.push(message.text());
    }
  });
  const checkOrigin = (address) => {
    const url = new URL(address);
    const local = url.protocol === 'data:' || url.protocol === 'about:' || url.port === port;
    if (!local) {
      faults.push(`request to ${url.href}`);
    }
  };
  page.on('request', (request) => checkOrigin(request.url()));
  page.on('websocket', (socket) => checkOrigin(socket.url()));
  return { page, faults, close: () => context.close() };
}

export async function saveScreenshot(page, name) {
  const directory = process.env.ROOST_ARTIFACTS;
  if (directory) {
    await page.screenshot({ path: path.join(directory, `${name}.png`) });
  }
}

export async function waitConnected(page) {
  await page.waitForFunction(() => window.roost?.state === 'connected');
}

/** Reading the canvas in every frame would take the processor from the guest. */
const POLLING = { polling: 200 };

/** Runs in the page, before its own scripts: a coarse grid of the desktop's colours, empty without a picture. */
function installSampler() {
  window.samplePixels = () => {
    const canvas = document.querySelector('#screen canvas');
    if (canvas === null || canvas.width === 0) {
      return [];
    }
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    const colours = [];
    for (let y = 4; y < canvas.height; y += 8) {
      for (let x = 4; x < canvas.width; x += 8) {
        const at = 4 * (y * canvas.width + x);
        colours.push((data[at] << 16) | (data[at + 1] << 8) | data[at + 2]);
      }
    }
    return colours;
  };
}

/** Waits until the canvas shows a picture: many colours, and none that fills nearly everything. */
export async function waitForPicture(page) {
  const picture = await page.waitForFunction(() => {
    const colours = window.samplePixels();
    const counts = new Map();
    for (const colour of colours) {
      counts.set(colour, (counts.get(colour) ?? 0) + 1);
    }
    const most = Math.max(0, ...counts.values());
    return counts.size >= 16 && most < 0.97 * colours.length
      ? { colours: counts.size, width: document.querySelector('#screen canvas').width }
      : null;
  }, undefined, POLLING);
  return picture.jsonValue();
}

/** Waits until more than half of the screen has this colour (`0xrrggbb`), give or take what JPEG does to it. */
export async function waitForColour(page, wanted) {
  await page.waitForFunction((wanted) => {
    const isNear = (colour) =>
      [16, 8, 0].every((shift) => Math.abs(((colour >> shift) & 0xff) - ((wanted >> shift) & 0xff)) <= 8);
    const now = window.samplePixels();
    return now.filter(isNear).length > now.length / 2;
  }, wanted, POLLING);
}

/** Asks for a WebSocket without a browser, to see the answer a browser hides. */
export function upgrade(address) {
  return new Promise((resolve, reject) => {
    const request = http.request(new URL(address), {
      headers: {
        connection: 'Upgrade',
        upgrade: 'websocket',
        'sec-websocket-version': '13',
        'sec-websocket-key': 'cm9vc3QgYnJvd3NlciB0ZQ==',
        'sec-websocket-protocol': 'binary',
      },
    });
    request.setTimeout(PATIENCE_MS, () => request.destroy(new Error('no answer to the upgrade')));
    request.on('error', reject);
    request.on('response', (response) => {
      response.resume();
      resolve({ status: response.statusCode, requestId: response.headers['x-request-id'] });
    });
    request.on('upgrade', (response, socket) => {
      socket.destroy();
      resolve({ status: response.statusCode, protocol: response.headers['sec-websocket-protocol'] });
    });
    request.end();
  });
}
