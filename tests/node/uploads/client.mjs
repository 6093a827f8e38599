// One upload by tus-js-client, for the tests: client.mjs MODULE ENDPOINT FILE KEY PARALLEL PROTOCOL
// Prints "url ADDRESS" for every address it asks, "head ADDRESS OFFSET" for every offset it was told, then "done".
import { createRequire } from 'node:module'
import { readFileSync } from 'node:fs'

const [module, endpoint, file, key, parallel, protocol] = process.argv.slice(2)
const tus = createRequire(module + '/')('tus-js-client')
const seen = new Set()
let restarts = 100

const upload = new tus.Upload(readFileSync(file), {
  endpoint,
  protocol,
  parallelUploads: Number(parallel),
  // Enough for the test's patience, and not for ever: what progress there is begins the count anew.
  retryDelays: Array(600).fill(40),
  metadata: { key, filetype: 'video/mp4' },
  chunkSize: protocol === 'tus-v1' ? Infinity : 700_001,
  uploadDataDuringCreation: key.includes('during'),
  storeFingerprintForResuming: false,
  onBeforeRequest(request) {
    const url = request.getURL()
    if (!seen.has(url)) console.log('url', url)
    seen.add(url)
  },
  onAfterResponse(request, response) {
    if (request.getMethod() === 'HEAD' && response.getStatus() < 300) {
      console.log('head', request.getURL(), response.getHeader('Upload-Offset'))
    }
  },
  onError(error) {
    // The request that joins parts is not repeated by itself when its connection breaks (a plain error, without the
    // request): an application starts the upload again, which goes on with the parts there are.
    if (!error.originalRequest && restarts-- > 0) {
      setTimeout(() => upload.start(), 40)
      return
    }
    console.error(String(error))
    process.exit(1)
  },
  onSuccess() {
    console.log('done')
  },
})
upload.start()
