// A settlement engine made of other people's software: ilp-settlement-core serves the engine's API, keeps accounts and
// idempotency keys in Redis and tells the connector what has arrived. The ledger that money moves on is our own: a list
// of transfers in the same Redis, shared by all engines of a test. The test drives it as it drives peer.js:
//
//   node engine.js NAME PORT CONNECTOR_URL REDIS_PORT REDIS_DATABASE
//
// Database 0 has the ledger, each engine has one of its own. An account's address on the ledger is NAME/ACCOUNT; the
// peer's is asked for with a message between the engines, unless the test has said it ("link").
//
// A kill at any instant loses nothing and moves nothing twice. For this some steps of the framework's store are
// replaced: it takes a queued amount out of Redis before the engine has moved it, and an arrived one before the
// connector has it, so what a kill interrupts is gone; an amount that was not credited comes again under another key;
// and its deletion of accounts fails in every Redis of today (there is no table.unpack in Lua 5.1).

const crypto = require('crypto')
const http = require('http')
const core = require('ilp-settlement-core')
const { serve } = require('./peer')

// The very ones that the framework uses.
const ofCore = (name) => require(require.resolve(name, { paths: [require.resolve('ilp-settlement-core')] }))
const { BigNumber } = ofCore('bignumber.js')
const Redis = ofCore('ioredis')

const [name, port, connectorUrl, redisPort, database] = process.argv.slice(2)
const redis = new Redis({ host: '127.0.0.1', port: Number(redisPort), db: Number(database) })
const ledger = new Redis({ host: '127.0.0.1', port: Number(redisPort), db: 0 })

// How long the ledger and the queues are left alone, and what has just failed.
const LOOK_AGAIN_MS = 20
const AGAIN_MS = 200

const queueOf = (account) => `accounts:${account}:queued-settlements`
const unannounced = `unannounced:${name}`
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

// Moves all that is queued for an account: out of the queue, into the ledger, to be announced, all in one step.
redis.defineCommand('move', {
  numberOfKeys: 0,
  lua: `local database, queue, from, to, receiver, id = unpack(ARGV)
    redis.call('SELECT', database)
    local amounts = redis.call('LRANGE', queue, 0, -1)
    redis.call('DEL', queue)
    redis.call('SELECT', '0')
    for at, amount in ipairs(amounts) do
      local transfer = cjson.encode({ id = id .. '-' .. at, from = from, to = to, amount = amount })
      redis.call('RPUSH', 'ledger', transfer)
      redis.call('HSET', 'unannounced:' .. receiver, id .. '-' .. at, transfer)
    end
    return #amounts`
})

// The same on a ledger that knows no fractions of some unit: the first amounts of the queue become one transfer of whole
// units, and what they leave stays in the queue, if nobody has moved them meanwhile.
redis.defineCommand('moveWhole', {
  numberOfKeys: 0,
  lua: `local database, queue, from, to, receiver, id, amount, rest = unpack(ARGV)
    redis.call('SELECT', database)
    local found = redis.call('LRANGE', queue, 0, #ARGV - 9)
    for at = 9, #ARGV do
      if found[at - 8] ~= ARGV[at] then return 0 end
    end
    redis.call('LTRIM', queue, #ARGV - 8, -1)
    if rest ~= '0' then redis.call('LPUSH', queue, rest) end
    redis.call('SELECT', '0')
    local transfer = cjson.encode({ id = id, from = from, to = to, amount = amount })
    redis.call('RPUSH', 'ledger', transfer)
    redis.call('HSET', 'unannounced:' .. receiver, id, transfer)
    return 1`
})

// A transfer that no settlement has asked for.
redis.defineCommand('give', {
  numberOfKeys: 0,
  lua: `local receiver, id, transfer = unpack(ARGV)
    redis.call('SELECT', '0')
    redis.call('RPUSH', 'ledger', transfer)
    redis.call('HSET', 'unannounced:' .. receiver, id, transfer)`
})

// All that there is to see, at one instant: what is moved between two looks would be seen twice, or not at all.
redis.defineCommand('look', {
  numberOfKeys: 0,
  lua: `local database, unannounced = unpack(ARGV)
    redis.call('SELECT', database)
    local queued = {}
    for _, account in ipairs(redis.call('SMEMBERS', 'accounts')) do
      local queue = 'accounts:' .. account .. ':queued-settlements'
      for _, amount in ipairs(redis.call('LRANGE', queue, 0, -1)) do
        queued[#queued + 1] = amount
      end
    end
    redis.call('SELECT', '0')
    return { redis.call('LRANGE', 'ledger', 0, -1), queued, redis.call('HLEN', unannounced) }`
})

// What the test has stopped.
const paused = { settling: false, announcing: false }
// The smallest unit of the ledger is 10^-ledgerScale; null: there is none.
let ledgerScale = null
// What is wrong with the engine's API, if anything: kind, only, ms, status, times.
let fault = null
let requests = 0

// Stands before the framework's server.
function front (handler) {
  return async (request, response) => {
    requests++
    const now = fault && request.url.includes(fault.only || '') ? fault : null
    if (!now) return handler(request, response)
    if (now.times && --now.times === 0) fault = null
    switch (now.kind) {
      case 'slow':
        await sleep(now.ms)
        return handler(request, response)
      case 'status':
        request.resume()
        response.statusCode = now.status
        return response.end('out of order')
      case 'hang':
        return request.resume()
      // From here on the work is done.
      case 'silent':
        response.end = () => response
        return handler(request, response)
      case 'lose':
        response.end = () => { request.socket.destroy(); return response }
        return handler(request, response)
      case 'garbage':
        response.end = () => { request.socket.end('garbage\r\n\r\n'); return response }
        return handler(request, response)
    }
  }
}

let server = null
const createServer = http.createServer
http.createServer = (handler) => {
  server = createServer(front(handler))
  const listen = server.listen.bind(server)
  server.listen = (port, ...rest) => listen(port, '127.0.0.1', ...rest)
  return server
}

// What the connector has not taken of an account's settlement that is being credited.
const leftovers = new Map()

async function makeStore () {
  return {
    ...await core.connectRedis({ client: redis }),
    async deleteAccount (account) {
      const keys = await redis.keys(`accounts:${account}:*`)
      const forget = redis.multi().srem('accounts', account).hdel('peers', account)
      await (keys.length > 0 ? forget.del(...keys) : forget).exec()
    },
    // Looks, and leaves it there: `move` takes it.
    async loadAmountToSettle (account) {
      return BigNumber.sum(0, ...await redis.lrange(queueOf(account), 0, -1))
    },
    async saveAmountToSettle () {},
    // Every transfer is credited by itself, under its own key, until the connector has taken it.
    async loadAmountToCredit () {
      return new BigNumber(0)
    },
    async saveAmountToCredit (account, amount) {
      leftovers.set(account, amount)
    }
  }
}

let services = null
const asking = new Map()

// Where the peer behind an account is on the ledger.
async function addressOfPeer (account) {
  const known = await redis.hget('peers', account)
  if (known) return known
  if (!asking.has(account)) {
    const ask = async () => {
      const { address } = await services.sendMessage(account, { ask: 'address' })
      if (typeof address !== 'string') throw new Error('the peer has no address')
      await redis.hset('peers', account, address)
      return address
    }
    asking.set(account, ask().finally(() => asking.delete(account)))
  }
  return asking.get(account)
}

const engine = {
  async settle (account, amount) {
    if (paused.settling) return new BigNumber(0)
    const to = await addressOfPeer(account)
    const [receiver] = to.split('/')
    if (paused.settling) return new BigNumber(0)
    const from = `${name}/${account}`
    if (ledgerScale === null) {
      await redis.move(database, queueOf(account), from, to, receiver, crypto.randomUUID())
      return amount
    }
    const queued = await redis.lrange(queueOf(account), 0, -1)
    const sum = BigNumber.sum(0, ...queued)
    const whole = sum.decimalPlaces(ledgerScale, BigNumber.ROUND_DOWN)
    if (whole.isZero()) return whole
    const [settled, rest] = [whole.toFixed(), sum.minus(whole).toFixed()]
    await redis.moveWhole(database, queueOf(account), from, to, receiver, crypto.randomUUID(), settled, rest, ...queued)
    return BigNumber.min(whole, amount)
  },
  async handleMessage (account, message) {
    return message.ask === 'address' ? { address: `${name}/${account}` } : { [name]: message }
  }
}

// Credits one account's transfers in their order.
async function announce (store, account, transfers) {
  for (const { id, amount } of transfers) {
    if (paused.announcing || !await store.isExistingAccount(account)) return
    leftovers.delete(account)
    await services.creditSettlement(account, new BigNumber(amount), id)
    if (leftovers.has(account)) return sleep(AGAIN_MS)
    await ledger.hdel(unannounced, id)
  }
}

async function settleAgain (account) {
  await services.trySettlement(account)
  // The peer could not be asked for its address.
  if (await redis.llen(queueOf(account)) > 0) await sleep(AGAIN_MS)
}

// What was accepted but not moved, and what was moved but not announced: after a start, a pause, an error.
async function goOn (store) {
  const busy = new Set()
  const alone = (task, work) => {
    if (busy.has(task)) return
    busy.add(task)
    work().catch((error) => console.error(error)).finally(() => busy.delete(task))
  }
  for (;;) {
    await sleep(LOOK_AGAIN_MS)
    for (const account of await redis.smembers('accounts')) {
      if (!paused.settling && await redis.llen(queueOf(account)) > 0) {
        alone(`settle ${account}`, () => settleAgain(account))
      }
    }
    const byAccount = new Map()
    for (const transfer of Object.values(await ledger.hgetall(unannounced)).map((text) => JSON.parse(text))) {
      const account = transfer.to.split('/')[1]
      byAccount.set(account, [...byAccount.get(account) || [], transfer])
    }
    for (const [account, transfers] of byAccount) {
      alone(`announce ${account}`, () => announce(store, account, transfers))
    }
  }
}

// An amount as an integer of units of 10^-scale.
function atScale (amount, scale) {
  const units = new BigNumber(amount).shiftedBy(scale)
  if (!units.isInteger()) throw new Error(`${amount} is no integer at scale ${scale}`)
  return units.toFixed(0)
}

const commands = {
  async link (_, { account, peer }) {
    await redis.hset('peers', account, peer)
    return {}
  },
  async fault (_, { kind, ...parameters }) {
    fault = kind === 'none' ? null : { kind, ...parameters }
    return {}
  },
  async pause (_, { what, paused: is }) {
    paused[what] = is
    return {}
  },
  async ledger_scale (_, { scale }) {
    ledgerScale = scale
    return {}
  },
  // Pays the peer of an account without its connector.
  async give (_, { account, amount }) {
    const to = await addressOfPeer(account)
    const id = crypto.randomUUID()
    await redis.give(to.split('/')[0], id, JSON.stringify({ id, from: `${name}/${account}`, to, amount }))
    return {}
  },
  // Those that it knows, by the framework's own list.
  async accounts () {
    return { accounts: await redis.smembers('accounts') }
  },
  // The whole ledger, and what of this engine has not come that far or not been announced.
  async ledger (_, { scale }) {
    const [transfers, queued, hlen] = await redis.look(database, unannounced)
    return {
      transfers: transfers.map((text) => JSON.parse(text))
        .map((transfer) => ({ ...transfer, amount: atScale(transfer.amount, scale) })),
      queued: atScale(BigNumber.sum(0, ...queued), scale),
      unannounced: hlen,
      requests
    }
  }
}

async function main () {
  const store = await makeStore()
  const connect = async (given) => {
    services = given
    return engine
  }
  await core.startServer(connect, store, { connectorUrl, port })
  if (!server.listening) await new Promise((resolve) => server.once('listening', resolve))
  goOn(store).catch((error) => {
    console.error(error)
    process.exit(1)
  })
  await serve(null, commands)
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
