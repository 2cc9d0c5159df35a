//! Clearway: one binary that a peering hub runs to forward ILPv4 packets between its peers over ILP-over-HTTP and BTP,
//! and that keeps a double-entry book of who owes whom which survives a crash at any instant.
//!
//! # The house
//! Listed from the ground up: a folder imports only what stands before it (`tests/layers.rs` holds that). `*` is hot: it
//! runs for every packet or batch of packets; all else is cold.
//!
//! ```text
//! wire/          * bytes <-> messages: OER, addresses, packets, BTP, WebSocket, HTTP/1.1
//! ledger/        * accounts and their balances, holds, transfers; what waits for the disk; who is who; the audit
//! routing/         every route and the choice among them; * the table that packets are looked up in
//! pipeline/      * a packet's rules in two halves, what is in flight, limits, rates, reasons to reject,
//!                  when an account is settled
//! link/          * ILP-over-HTTP, BTP and who follows payments, as state machines over bytes
//! stream/          STREAM at both ends: a payment as a state machine, what answers one, and the secrets they share
//! ------ up to here: no sockets, no disk, no clock, no async. From here on: io_uring, glommio, RocksDB, the world ------
//! store/         * Store (a trait) and its default on RocksDB; the writer thread: group commit, double entry
//! net/           * the shard's io_uring, its buffers; listening and dialling; how a sleeping shard is woken
//! client/          what we ask of other services: SPSP, rates, settlement engines
//! shard/         * all that one core owns, and its loop: gather, handle, send, sleep
//! control/         the cold half of the node: a change is validated, made durable, then published to all shards
//! api/             the operator's HTTP API: paths, authorization, JSON, errors; on threads of its own
//! logs             which log lines are written, changed while the node runs
//! config, keys     where settings and secrets come from
//! cli/             commands that ask a node, and those beside a node: check, backup
//! connector        opens the store, starts everything, stops it in reverse
//! ```
//!
//! # A packet's way
//! `net::ring` hands over bytes; `link` makes them a Prepare; `pipeline::incoming` checks it on the shard that owns the
//! sender's account, finds the next hop, computes amount and expiry and takes a hold; `shard::mesh` carries it to the
//! shard that owns the next hop, if that is another; `pipeline::outgoing` checks that side and notes it in flight;
//! `link` and `net::ring` send it. The Fulfill comes back the same way: `pipeline::response` verifies it and makes a
//! transfer, `store::writer` folds transfers into one synced batch, `ledger::journal` lets the Fulfill go only then.
//!
//! Payments are no exception: [`shard::payments`] hands a payment's Prepares to the same pipeline, and
//! [`shard::receiving`] answers for our own accounts where otherwise a link would.
//!
//! # Threads
//! One per shard (pinned), one writer, a few for the API, for payments and for resolving names, one for what neighbours
//! and we tell each other of routes, one that polls for rates, one for signals. A shard never waits for anybody; the cold
//! threads wait for shards and disk.
//!
//! # To read first
//! `wire::packet`, `ledger::balance`, `pipeline`, `shard`, `connector`, in this order: nouns, money, rules, loop,
//! assembly.

pub mod wire;

pub mod ledger;

pub mod routing;

pub mod pipeline;

pub mod link;

pub mod stream;

pub mod store;

pub mod net;

pub mod client;

pub mod shard;

pub mod control;

pub mod api;

pub mod logs;

pub mod config;

pub mod keys;

pub mod cli;

pub mod connector;
