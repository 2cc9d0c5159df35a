// The settlement engines of two nodes, A and B, in one process, with the ledger that both are on. Ends with Ctrl-C. For a
// machine that others cannot reach: ilp-settlement-core listens on all addresses, and asks nobody who he is.
//   node engine.js [port of A's engine] [A's settlement API] [port of B's engine] [B's settlement API]
const { createMemoryStore, startServer } = require('ilp-settlement-core')
const [portA = '3001', nodeA = 'http://127.0.0.1:7771', portB = '3002', nodeB = 'http://127.0.0.1:7781'] =
  process.argv.slice(2)
const SCALE = 9 // of the ledger: it has no fraction of 0.000000001 ABC
const nodes = {}

start('A', portA, nodeA)
start('B', portB, nodeB)

async function start (name, port, connectorUrl) {
  const connectEngine = async (node) => {
    nodes[name] = node
    return {
      // The node wants so many ABC paid to the peer behind the account. What we do not say that we paid is kept, and
      // comes again with the next.
      async settle (account, amount) {
        const paid = amount.decimalPlaces(SCALE, 1) // rounded down
        try {
          transfer(name, await node.sendMessage(account, 'Where are you on the ledger?'), paid)
          return paid
        } catch (error) {
          console.log(`engine of ${name} cannot ask its peer: ${error.message}`)
          setTimeout(node.trySettlement, 1000, account)
          return paid.minus(paid)
        }
      },
      // The peer's engine asks, by way of both nodes.
      async handleMessage (account, question) {
        return { name, account }
      }
    }
  }
  // Accounts and keys are in memory and end with the process, so whatever account the node names is taken for one. An
  // engine that moves real money keeps them, with connectRedis(): without its keys it would pay again what it has paid.
  const store = createMemoryStore()
  const isExistingAccount = async (account) => (await store.createAccount(account)) || true
  await startServer(connectEngine, { ...store, isExistingAccount }, { port, connectorUrl })
  console.log(`engine of ${name} on port ${port}`)
}

// The ledger. It takes its time, and then the money is there.
async function transfer (from, to, amount) {
  await new Promise((resolve) => setTimeout(resolve, 1000))
  console.log(`engine of ${from} paid ${amount.shiftedBy(SCALE)} at scale ${SCALE} to ${to.name}`)
  await nodes[to.name].creditSettlement(to.account, amount)
  console.log(`engine of ${to.name} told its node`)
}
