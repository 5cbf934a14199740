// A conversation held in Open WebUI, in a headless browser. See open_webui.sh.
//
//   node open_webui.mjs WEBUI_URL CHROMIUM SCREENSHOT

import { chromium } from 'playwright-core';

const [url, executablePath, screenshot] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath,
  args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
const page = await browser.newPage({ viewport: { width: 1200, height: 1000 } });
await page.goto(url, { waitUntil: 'domcontentloaded' });

// The notes of a new release lie over a fresh installation.
const later = page.getByRole('button', { name: /okay|let's go/i });
await later.click({ timeout: 15000 }).catch(() => {});

const replies = page.locator('.chat-assistant');
async function say(text, count) {
  const input = page.locator('#chat-input');
  await input.waitFor({ timeout: 60000 });
  await input.click();
  await page.keyboard.type(text);
  await page.keyboard.press('Enter');
  await page.waitForFunction((count) => document.querySelectorAll('.chat-assistant').length >= count, count, { timeout: 60000 });
  // The answer is whole when it has text and has not grown for three seconds.
  let before = '';
  for (let same = 0; same < 3; ) {
    await page.waitForTimeout(1000);
    const now = (await replies.nth(count - 1).innerText()).trim();
    same = now !== '' && now === before ? same + 1 : 0;
    before = now;
  }
  console.log(`you: ${text}\nmodel: ${before}\n`);
  if (/error|failed|connection/i.test(before) && before.length < 200) throw new Error(`an error as an answer: ${before}`);
}

try {
  await say('What is the capital of France?', 1);
  await say('And of Italy?', 2);
} finally {
  await page.screenshot({ path: screenshot });
  await browser.close();
}
