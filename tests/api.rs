//! The HTTP API over a real node and real sockets: what operators, account holders, strangers and careless programs
//! send, and what must come back.
//!
//! Most of it is tables, a line per call ([`caller`] says how they are read). Rules of single functions are tested
//! beside them; here the whole way is: sockets, shards, threads of the API, disk, and back.

mod support;

#[path = "api/bad_fields.rs"]
mod bad_fields;
#[path = "api/caller.rs"]
mod caller;
#[path = "api/changes.rs"]
mod changes;
#[path = "api/clients.rs"]
mod clients;
#[path = "api/second_half.rs"]
mod second_half;
#[path = "api/settlements.rs"]
mod settlements;
#[path = "api/tables.rs"]
mod tables;
#[path = "api/transport.rs"]
mod transport;
