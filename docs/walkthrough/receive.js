// Bob: a BTP client of the node. He fulfills what arrives and pays half of it back. Ends with Ctrl-C.
//   node receive.js [btp+ws://user:token@host:port/path]
const { createHash, randomBytes } = require('crypto')
const ilp = require('ilp-packet')
const Plugin = require('ilp-plugin-btp')
const [server = 'btp+ws://bob:bob-pw@127.0.0.1:7770/accounts/bob/ilp/btp'] = process.argv.slice(2)
const plugin = new Plugin({ server })

plugin.registerDataHandler(async (bytes) => {
  const prepare = ilp.deserializeIlpPrepare(bytes)
  console.log(`bob received ${prepare.amount} for ${prepare.destination}`)
  setImmediate(payBack, String(BigInt(prepare.amount) / 2n), prepare.data.subarray(32).toString())
  // In this example the preimage of the condition travels in the data. Receivers of real payments derive it.
  return ilp.serializeIlpFulfill({ fulfillment: prepare.data.subarray(0, 32), data: Buffer.alloc(0) })
})

async function payBack (amount, destination) {
  const preimage = randomBytes(32)
  const executionCondition = createHash('sha256').update(preimage).digest()
  const expiresAt = new Date(Date.now() + 20000)
  const prepare = { amount, executionCondition, expiresAt, destination, data: preimage }
  const reply = ilp.deserializeIlpReply(await plugin.sendData(ilp.serializeIlpPrepare(prepare)))
  console.log(ilp.isFulfill(reply) ? `bob paid ${amount} back to ${destination}` : reply)
}

plugin.connect().then(() => console.log('bob is connected'))
