//! Plain counters of one shard. No atomics: the shard adds, and hands out a copy when asked.

/// What has happened on a shard since it started. All count packets.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stats {
    /// Prepares that came in, valid or not.
    pub prepares: u64,
    /// Prepares handed to a link.
    pub forwarded: u64,
    /// Fulfills that were verified and handed to the ledger.
    pub fulfilled: u64,
    /// Rejects made here, on the way in or out.
    pub rejected_here: u64,
    /// Rejects passed through from a next hop.
    pub rejected_there: u64,
    /// Prepares that no response came for in time.
    pub timed_out: u64,
    /// Responses that matched no Prepare in flight: late, repeated or invented. Not paid.
    pub late_or_unknown: u64,
}
