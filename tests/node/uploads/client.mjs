// One upload by tus-js-client, for the tests: client.mjs MODULE ENDPOINT FILE KEY PARALLEL PROTOCOL
// Prints "url ADDRESS" for every address it asks, "head ADDRESS OFFSET" for every offset it was told, then "done".
import { createRequire } from 'node:module'
import { readFileSync } from 'node:fs'

const [module, endpoint, file, key, parallel, protocol] = process.argv.slice(2)
const tus = createRequire(module + '/')('tus-js-client')
const seen = new Set()

const upload = new tus.Upload(readFileSync(file), {
  endpoint,
  protocol,
  parallelUploads: Number(parallel),
  // Without an end: it is the test that decides when it has had enough.
  retryDelays: Array(5000).fill(40),
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
    console.error(String(error))
    process.exit(1)
  },
  onSuccess() {
    console.log('done')
  },
})
upload.start()
