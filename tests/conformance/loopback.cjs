// Loaded before the suite's server: a listener that names no address gets a loopback one.
'use strict'
const { Server } = require('node:net')
const { listen } = Server.prototype
Server.prototype.listen = function (port, ...rest) {
  const named = typeof port === 'object' || typeof rest[0] === 'string'
  return named ? listen.call(this, port, ...rest) : listen.call(this, port, '127.0.0.1', ...rest)
}
