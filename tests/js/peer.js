// A peer of the node made of other people's software: ilp-packet for the packets, ilp-protocol-ccp for routes,
// ilp-plugin-btp and ilp-plugin-http for the links. The test drives it over standard input and output, one JSON object per line each way.
//
//   node peer.js btp-client btp+ws://user:token@host:port/path    connects to the node
//   node peer.js btp-server PORT SECRET                           is dialled by the node
//   node peer.js http PORT URL INCOMING_TOKEN OUTGOING_TOKEN      serves the node's posts and posts to URL
//   node peer.js codec                                            only writes and reads packets
//
// It fulfills every Prepare with the first 32 bytes of its data; one with the amount 13 it rejects. What it is told of
// routes, and asked for, it keeps.

const crypto = require('crypto')
const readline = require('readline')
const ccp = require('ilp-protocol-ccp')
const ilp = require('ilp-packet')
const BtpPlugin = require('ilp-plugin-btp')
const HttpPlugin = require('ilp-plugin-http')

const sha256 = (bytes) => crypto.createHash('sha256').update(bytes).digest()
const received = []
const routing = { controls: [], updates: [] }

// Packets as JSON: bytes in hexadecimal, times as ISO 8601, amounts as text.
const toJson = (fields) => Object.fromEntries(Object.entries(fields).map(([name, value]) => {
  if (Buffer.isBuffer(value)) return [name, value.toString('hex')]
  return [name, value instanceof Date ? value.toISOString() : value]
}))
const fromJson = (fields) => {
  const packet = { ...fields }
  for (const name of ['executionCondition', 'fulfillment', 'data']) {
    if (name in packet) packet[name] = Buffer.from(packet[name], 'hex')
  }
  if (packet.expiresAt) packet.expiresAt = new Date(packet.expiresAt)
  return packet
}

function makePlugin (role, args) {
  switch (role) {
    case 'btp-client': return new BtpPlugin({ server: args[0], responseTimeout: 5000 })
    case 'btp-server': return new BtpPlugin({ listener: { port: Number(args[0]), secret: args[1] } })
    case 'http': return new HttpPlugin({
      incoming: { port: Number(args[0]), staticToken: args[2] },
      outgoing: { url: args[1], staticToken: args[3] }
    })
    case 'codec': return null
    default: throw new Error('unknown role ' + role)
  }
}

async function handlePrepare (bytes) {
  const prepare = ilp.deserializeIlpPrepare(bytes)
  if (prepare.destination === ccp.CCP_CONTROL_DESTINATION) {
    routing.controls.push(ccp.deserializeCcpRouteControlRequest(bytes))
    return ccp.serializeCcpResponse()
  }
  if (prepare.destination === ccp.CCP_UPDATE_DESTINATION) {
    routing.updates.push(ccp.deserializeCcpRouteUpdateRequest(bytes))
    return ccp.serializeCcpResponse()
  }
  received.push(toJson(prepare))
  if (prepare.amount === '13') {
    return ilp.serializeIlpReject({
      code: 'F99', triggeredBy: 'test.javascript', message: 'thirteen', data: Buffer.from('from javascript')
    })
  }
  return ilp.serializeIlpFulfill({ fulfillment: prepare.data.slice(0, 32), data: Buffer.from('paid in javascript') })
}

const commands = {
  // Sends one Prepare with a fresh preimage; answers with the reply's fields and whether it pays. What was sent over a
  // connection that ended at that moment has no reply.
  async send (plugin, { destination, amount, dataBytes = 32, expiresInMs = 20000 }) {
    const data = Buffer.concat([crypto.randomBytes(32), Buffer.alloc(dataBytes - 32, 7)])
    const executionCondition = sha256(data.slice(0, 32))
    const expiresAt = new Date(Date.now() + expiresInMs)
    const prepare = { amount, executionCondition, expiresAt, destination, data }
    const sent = plugin.sendData(ilp.serializeIlpPrepare(prepare)).catch((error) => {
      if (/timed out$/.test(error.message)) return null
      throw error
    })
    const bytes = await sent
    if (bytes === null) return { paid: false, prepare: toJson(prepare), reply: null }
    const reply = ilp.deserializeIlpReply(bytes)
    const paid = ilp.isFulfill(reply) && sha256(reply.fulfillment).equals(executionCondition)
    return { paid, prepare: toJson(prepare), reply: toJson(reply) }
  },
  // Many at once; answers with how many were paid.
  async sendMany (plugin, { destination, amount, count }) {
    const all = Array.from({ length: count }, () => commands.send(plugin, { destination, amount }))
    return { paid: (await Promise.all(all)).filter((result) => result.paid).length }
  },
  async received () {
    return { received }
  },
  // Tells routes: an object with the fields of an update, `auth` left out.
  async tell (plugin, { update }) {
    const newRoutes = update.newRoutes.map((route) => ({ ...route, auth: Buffer.alloc(32), props: [] }))
    ccp.deserializeCcpResponse(await plugin.sendData(ccp.serializeCcpRouteUpdateRequest({ ...update, newRoutes })))
    return { told: true }
  },
  // Asks for routes, from an epoch of a table on.
  async askForRoutes (plugin, { lastKnownRoutingTableId, lastKnownEpoch }) {
    const request = { mode: ccp.Mode.MODE_SYNC, lastKnownRoutingTableId, lastKnownEpoch, features: [] }
    ccp.deserializeCcpResponse(await plugin.sendData(ccp.serializeCcpRouteControlRequest(request)))
    return { asked: true }
  },
  // What it was asked and told.
  async routing () {
    return routing
  },
  async isConnected (plugin) {
    return { connected: plugin.isConnected() }
  },
  // Reads packets, and writes them again.
  async read (_, { packets }) {
    return {
      packets: packets.map((hex) => {
        const packet = ilp.deserializeIlpPacket(Buffer.from(hex, 'hex'))
        return { type: packet.type, fields: toJson(packet.data), again: ilp.serializeIlpPacket(packet).toString('hex') }
      })
    }
  },
  async write (_, { packets }) {
    return {
      packets: packets.map(({ type, fields }) =>
        ilp.serializeIlpPacket({ type, data: fromJson(fields) }).toString('hex'))
    }
  }
}

// Answers commands until the test ends: one JSON object per line each way.
async function serve (plugin, commands) {
  const say = (object) => process.stdout.write(JSON.stringify(object) + '\n')
  say({ ready: true })
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { command, ...parameters } = JSON.parse(line)
    try {
      say(await commands[command](plugin, parameters))
    } catch (error) {
      say({ error: String(error && (error.stack || error)) })
    }
  }
  process.exit(0)
}

async function main () {
  const [role, ...args] = process.argv.slice(2)
  const plugin = makePlugin(role, args)
  if (plugin) {
    plugin.registerDataHandler(handlePrepare)
    const connected = plugin.connect()
    // A BTP server is connected when the node is; the test has to tell the node about it first.
    if (role !== 'btp-server') await connected
  }
  await serve(plugin, commands)
}

module.exports = { makePlugin, serve }

if (require.main === module) {
  main().catch((error) => {
    console.error(error)
    process.exit(1)
  })
}
