// A payer and a payee made of other people's software: ilp-protocol-stream, ilp-protocol-spsp (which brings an older
// ilp-protocol-stream of its own) and @interledger/pay. The test drives it as it drives peer.js, over the same links:
//
//   node stream.js btp-client btp+ws://user:token@host:port/path
//   node stream.js btp-server PORT SECRET
//   node stream.js http PORT URL INCOMING_TOKEN OUTGOING_TOKEN
//
// Before anything else all three packages ask the node which account this is, with IL-DCP (RFC 31).

const http = require('http')
const ilp = require('ilp-packet')
const pay = require('@interledger/pay')
const ildcp = require('ilp-protocol-ildcp')
const spsp = require('ilp-protocol-spsp')
const stream = require('ilp-protocol-stream')
const { makePlugin, serve } = require('./peer')

// Both releases of ilp-protocol-stream set `closed` on their streams; in Node.js 18 and later a stream has only a getter
// for it. This gives their streams a property of their own again.
const olderStream = require(require.resolve('ilp-protocol-stream', { paths: [require.resolve('ilp-protocol-spsp')] }))
for (const { DataAndMoneyStream } of [stream, olderStream]) {
  Object.defineProperty(DataAndMoneyStream.prototype, 'closed', { value: false, writable: true })
}

// Longer than any payment here takes, shorter than the test waits.
const TIMEOUT_MS = 20000

// What the plugin sent to the node and what came back, by type of packet and code; without IL-DCP.
const counted = { prepares: 0, fulfills: 0, rejects: {} }

function watch (plugin) {
  // They end the link with their connection; here it is the account's, for the next payment too.
  plugin.disconnect = async () => {}
  const send = plugin.sendData.bind(plugin)
  plugin.sendData = async (packet) => {
    if (ilp.deserializeIlpPrepare(packet).destination === 'peer.config') return send(packet)
    counted.prepares++
    const reply = await send(packet)
    if (reply[0] === ilp.Type.TYPE_ILP_FULFILL) {
      counted.fulfills++
    } else {
      const { code } = ilp.deserializeIlpReject(reply)
      counted.rejects[code] = (counted.rejects[code] || 0) + 1
    }
    return reply
  }
}

async function connect (plugin, url, options) {
  const answer = await spsp.query(url)
  return stream.createConnection({
    plugin,
    destinationAccount: answer.destination_account,
    sharedSecret: Buffer.from(answer.shared_secret, 'base64'),
    ...options
  })
}

const received = []
let spspServer = null

const commands = {
  // What the node says that this account is.
  async account (plugin) {
    return ildcp.fetch(plugin.sendData.bind(plugin))
  },
  // One stream per amount, all of one connection; `text` is written to the first beside its money.
  async pay (plugin, { url, amounts, text, options = {} }) {
    const connection = await connect(plugin, url, options)
    const streams = amounts.map(() => connection.createStream())
    if (text) streams[0].write(text)
    await Promise.all(streams.map((stream, at) => stream.sendTotal(amounts[at], { timeout: TIMEOUT_MS })))
    const result = {
      sent: connection.totalSent,
      delivered: connection.totalDelivered,
      asset: [connection.destinationAssetCode, connection.destinationAssetScale],
      ...counted
    }
    // A graceful end would wait for the text to be taken.
    await (text ? connection.destroy() : connection.end())
    return result
  },
  async paySpsp (plugin, { url, amount }) {
    const { totalSent } = await spsp.pay(plugin, { receiver: url, sourceAmount: amount })
    return { sent: String(totalSent), ...counted }
  },
  // `amount` with a decimal point, as this package wants it; `prices` by asset code.
  async payInterledger (plugin, { url, amount, prices }) {
    const answer = await spsp.query(url)
    const quoted = await pay.quote({
      plugin,
      destinationAddress: answer.destination_account,
      sharedSecret: Buffer.from(answer.shared_secret, 'base64'),
      amountToSend: amount,
      prices
    })
    const receipt = await quoted.pay()
    return {
      failure: receipt.error || null,
      sent: receipt.amountSent.toString(),
      delivered: receipt.amountDelivered.toString(),
      asset: [receipt.destinationAccount.assetCode, receipt.destinationAccount.assetScale],
      ...counted
    }
  },
  // Takes up to `receiveMax` per stream from now on, or all if that is null; answers with the URL to ask for an address and a secret.
  async listen (plugin, { receiveMax }) {
    const server = await stream.createServer({ plugin })
    server.on('connection', (connection) => {
      const entry = { money: [], closed: false }
      received.push(entry)
      connection.on('stream', (stream) => {
        stream.setReceiveMax(receiveMax === null ? Infinity : receiveMax)
        stream.on('money', (amount) => entry.money.push(amount))
      })
      connection.on('close', () => { entry.closed = true })
      connection.on('end', () => { entry.closed = true })
    })
    spspServer = http.createServer((_, response) => {
      const { destinationAccount, sharedSecret } = server.generateAddressAndSecret()
      response.setHeader('content-type', 'application/spsp4+json')
      response.end(JSON.stringify({
        destination_account: destinationAccount, shared_secret: sharedSecret.toString('base64')
      }))
    })
    await new Promise((resolve) => spspServer.listen(0, '127.0.0.1', resolve))
    return { url: `http://127.0.0.1:${spspServer.address().port}/bob` }
  },
  async received () {
    return { received }
  }
}

async function main () {
  const [role, ...args] = process.argv.slice(2)
  const plugin = makePlugin(role, args)
  watch(plugin)
  const connected = plugin.connect()
  if (role !== 'btp-server') await connected
  await serve(plugin, commands)
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
