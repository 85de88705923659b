// The npm package `ws` against a server behind the edge. Arguments: the folder that has it, and
// the server's URL without a path.
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { createRequire } from 'node:module'

const [folder, base] = process.argv.slice(2)
const WebSocket = createRequire(`${folder}/`)('ws')
const open = async (path, protocols = []) => {
  const socket = new WebSocket(base + path, protocols, { rejectUnauthorized: false })
  // Before the first await: a message may come with the handshake's end.
  socket.messages = []
  socket.on('message', (data, binary) => {
    socket.messages.push(binary ? data : data.toString())
    socket.emit('stored')
  })
  await once(socket, 'open')
  return socket
}
const next = async (socket) => {
  if (!socket.messages.length) await once(socket, 'stored')
  return socket.messages.shift()
}

const echo = await open('/echo', ['chat'])
assert.equal(echo.protocol, 'chat')
echo.send('hello')
assert.equal(await next(echo), 'hello')
for (const [piece, fin] of [['in ', false], ['three ', false], ['fragments', true]]) {
  echo.send(piece, { fin })
}
assert.equal(await next(echo), 'in three fragments')
const large = randomBytes(10_000_000)
echo.send(large)
assert.ok(large.equals(await next(echo)))
echo.ping('are you there')
const [pong] = await once(echo, 'pong')
assert.equal(pong.toString(), 'are you there')
echo.close(1000, 'done')
assert.equal((await once(echo, 'close'))[0], 1000)

const closing = await open('/close')
const [code, reason] = await once(closing, 'close')
assert.deepEqual([code, reason.toString()], [4001, 'enough'])

// A server that will not: the client sees its status.
const refused = new WebSocket(`${base}/refused`, { rejectUnauthorized: false })
const [, response] = await once(refused, 'unexpected-response')
assert.equal(response.statusCode, 426)
assert.equal(response.headers.upgrade, 'websocket')
response.destroy()
console.log('ok')
