//! Clearway: a thread-per-core Interledger connector.
pub mod wire;
pub mod ledger;
pub mod routing;
pub mod pipeline;
pub mod link;
pub mod store;
pub mod net;
pub mod shard;
pub mod control;
pub mod api;
pub mod config;
pub mod keys;
pub mod connector;
