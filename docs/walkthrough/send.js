// Alice: posts a packet to the node over HTTP, and takes one back on an endpoint of her own. Ends by herself.
//   node send.js [node's URL] [bob's address] [alice's address] [port of alice's endpoint]
const { createHash, randomBytes } = require('crypto')
const { createServer } = require('http')
const ilp = require('ilp-packet')
const [node = 'http://127.0.0.1:7770', to = 'local.host.bob', from = 'local.host.alice', port = '7780'] =
  process.argv.slice(2)
let paid

createServer(async (request, response) => {
  const prepare = ilp.deserializeIlpPrepare(Buffer.concat(await request.toArray()))
  await paid // bob pays back as soon as he is paid, perhaps before we hear of it
  console.log(`alice received ${prepare.amount} back`)
  response.on('finish', () => process.exit(0))
  response.end(ilp.serializeIlpFulfill({ fulfillment: prepare.data.subarray(0, 32), data: Buffer.alloc(0) }))
}).listen(Number(port), '127.0.0.1', () => { paid = pay() })

async function pay () {
  const preimage = randomBytes(32)
  const body = ilp.serializeIlpPrepare({
    amount: '1000',
    executionCondition: createHash('sha256').update(preimage).digest(),
    expiresAt: new Date(Date.now() + 20000),
    destination: to,
    data: Buffer.concat([preimage, Buffer.from(from)]) // for bob: the preimage, and where to pay back
  })
  const headers = { Authorization: 'Bearer alice-pw', 'Content-Type': 'application/octet-stream' }
  const answer = await fetch(`${node}/accounts/alice/ilp`, { method: 'POST', headers, body })
  const reply = ilp.deserializeIlpReply(Buffer.from(await answer.arrayBuffer()))
  console.log(ilp.isFulfill(reply) ? `alice paid 1000 to ${to}` : reply)
  if (!ilp.isFulfill(reply)) process.exit(1)
}
