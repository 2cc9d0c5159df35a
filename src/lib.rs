//! Clearway: a thread-per-core Interledger connector.
pub mod api;
pub mod config;
pub mod connector;
pub mod control;
pub mod keys;
pub mod ledger;
pub mod link;
pub mod net;
pub mod pipeline;
pub mod routing;
pub mod shard;
pub mod store;
pub mod wire;
