// Visits every view of the dashboard in Chromium, wide and narrow, light and dark, and prints what it found as JSON.
// Arguments: the folder that has the npm package `ws`, the dashboard's URL, and a folder for screenshots (or none).
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'

const [folder, base, pictures] = process.argv.slice(2)
const WebSocket = createRequire(`${folder}/`)('ws')
const VIEWS = ['overview', 'sites', 'origins', 'certificates', 'purges', 'fleet', 'explain']

const profile = mkdtempSync('/tmp/dashboard-')
const flags = ['--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--remote-debugging-port=0', `--user-data-dir=${profile}`]
const browser = spawn('chromium', [...flags, 'about:blank'], { stdio: ['ignore', 'ignore', 'pipe'] })
const end = async (code) => {
  const ended = once(browser, 'exit')
  browser.kill('SIGKILL')
  await ended
  // Its children may still be writing.
  try { rmSync(profile, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 }) } catch { /* in /tmp */ }
  process.exit(code)
}
process.on('uncaughtException', (error) => { console.error(error); end(1) })
setTimeout(() => { console.error('no end within four minutes'); end(1) }, 240_000).unref()

let debugging
for await (const line of createInterface({ input: browser.stderr })) {
  debugging = line.match(/ws:\/\/\S+/)?.[0]
  if (debugging) break
}
const socket = new WebSocket(debugging)
await once(socket, 'open')
let last = 0, session
const answers = new Map(), listeners = []
socket.on('message', (data) => {
  const message = JSON.parse(data)
  if (message.id) answers.get(message.id)(message)
  else listeners.forEach((listener) => listener(message.method, message.params))
})
const send = (method, params = {}) => new Promise((resolve, reject) => {
  answers.set(++last, ({ result, error }) => (error ? reject(new Error(`${method}: ${error.message}`)) : resolve(result)))
  socket.send(JSON.stringify({ id: last, method, params, sessionId: session }))
})
const { targetId } = await send('Target.createTarget', { url: 'about:blank' })
session = (await send('Target.attachToTarget', { targetId, flatten: true })).sessionId
const run = async (expression) => {
  const { result, exceptionDetails } = await send('Runtime.evaluate', { expression, awaitPromise: true, returnByValue: true })
  if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text)
  return result.value
}
const until = async (what, expression) => {
  for (let i = 0; i < 1200; i++) {
    if (await run(expression)) return
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  throw new Error(`not within a minute: ${what}`)
}

const found = { errors: [], others: [], overflow: [], inaccessible: [], texts: {}, bytes: 0, first_paint_ms: [] }
const lengths = new Map()
listeners.push((method, params) => {
  if (method === 'Runtime.exceptionThrown') found.errors.push(params.exceptionDetails.exception?.description ?? params.exceptionDetails.text)
  if (method === 'Log.entryAdded' && params.entry.level === 'error') found.errors.push(`${params.entry.text} ${params.entry.url ?? ''}`)
  if (method === 'Runtime.consoleAPICalled' && ['error', 'warning', 'assert'].includes(params.type)) found.errors.push(JSON.stringify(params.args))
  if (method === 'Network.requestWillBeSent' && !params.request.url.startsWith(base)) found.others.push(params.request.url)
  if (method === 'Network.loadingFinished') lengths.set(params.requestId, params.encodedDataLength)
})
for (const domain of ['Page', 'Runtime', 'Log', 'Network']) await send(`${domain}.enable`)
await send('Network.setCacheDisabled', { cacheDisabled: true })

const FIRST_PAINT = `performance.getEntriesByName('first-contentful-paint')[0]`
const isShown = `document.querySelector('#state').classList.contains('good') || document.querySelector('#state').classList.contains('bad')`
for (const [width, height] of [[1400, 1000], [390, 844]]) {
  for (const theme of ['light', 'dark']) {
    await send('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: 1, mobile: width < 500 })
    await send('Emulation.setEmulatedMedia', { features: [{ name: 'prefers-color-scheme', value: theme }] })
    lengths.clear()
    await send('Page.navigate', { url: 'about:blank' })
    await send('Page.navigate', { url: base })
    await until('the first answer is shown', `document.readyState === 'complete' && !!document.querySelector('#tiles .tile') && (${isShown})`)
    if (!found.bytes) found.bytes = [...lengths.values()].reduce((sum, length) => sum + length, 0)
    await until('the first paint is noted', `${FIRST_PAINT} !== undefined`)
    found.first_paint_ms.push(await run(`${FIRST_PAINT}.startTime`))
    for (const view of VIEWS) {
      await run(`location.hash = '${view}'`)
      await until(`${view} is shown`, `!document.querySelector('#${view}').hidden && (['overview', 'explain'].includes('${view}') || document.querySelector('#${view}').innerText.length > 30 && !!document.querySelector('#${view} td, #${view} .card') )`)
      if (view === 'explain') {
        await run(`document.querySelector('#url').value = 'http://edge.test/0'; document.querySelector('#ask').requestSubmit()`)
        await until('the explanation is shown', `!!document.querySelector('#answer .verdict, #answer .bad')`)
      }
      await new Promise((resolve) => setTimeout(resolve, 250))
      if (await run(`document.documentElement.scrollWidth > innerWidth`)) found.overflow.push(`${view} at ${width}`)
      // For screen readers and keyboards: each column has a name, and each box that scrolls can be reached.
      const isNameless = `[...document.querySelectorAll('th')].some((th) => !th.textContent) || [...document.querySelectorAll('.scroll')].some((box) => box.tabIndex < 0)`
      if (await run(isNameless)) found.inaccessible.push(`${view} at ${width}`)
      found.texts[view] = await run(`document.querySelector('main').innerText`)
      if (pictures) {
        const { cssContentSize } = await send('Page.getLayoutMetrics')
        const clip = { x: 0, y: 0, width, height: Math.min(cssContentSize.height, 4000), scale: 1 }
        const { data } = await send('Page.captureScreenshot', { clip, captureBeyondViewport: true })
        writeFileSync(`${pictures}/${view}-${width}-${theme}.png`, Buffer.from(data, 'base64'))
      }
    }
  }
}
found.alarms = await run(`document.querySelector('#alarms').innerText`)
console.log(JSON.stringify(found))
await end(0)
