// Loaded before the suite's client, when the node codes every response. The suite compares fields with those of its server; here the
// fields that belong to a coding are undone, as a client does that decodes content: the mark in ETag, Accept-Encoding in Vary, and the
// length. A range is asked for without a coding, as browsers do (https://fetch.spec.whatwg.org/#http-network-or-cache-fetch).
'use strict'
const http = require('node:http')

const { request } = http
http.request = function (options, ...rest) {
  const names = Object.keys(options.headers ?? {})
  if (names.some(name => name.toLowerCase() === 'range')) {
    for (const name of names.filter(name => name.toLowerCase() === 'accept-encoding')) delete options.headers[name]
    options.headers['Accept-Encoding'] = ['identity']
  }
  return request.call(this, options, ...rest)
}

const { emit } = http.ClientRequest.prototype
http.ClientRequest.prototype.emit = function (event, response) {
  if (event === 'response') uncode(response.headers)
  return emit.apply(this, arguments)
}

function uncode (headers) {
  if (headers.etag) headers.etag = headers.etag.replace(/~gzip(\.[0-9a-f]+)?"$/, '"')
  if (headers.vary) {
    headers.vary = headers.vary.replace(/(^|, )Accept-Encoding$/, '')
    if (!headers.vary) delete headers.vary
  }
}
