//! The way of news from the shards to the one cold thread that deals with neighbours.
//!
//! Owns what waits on that way. Requests have a queue with a limit, because a neighbour can make as many as it likes; of
//! a link only the newest state is kept, so that none is lost and there are no more of them than accounts.
//!
//! Always: a shard never waits here, and a lock that somebody else has just now it tries again in its next turn; what
//! waits when the cold half ends is dropped then, and so answered.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Instant;

use crossbeam::channel::{self, Receiver, Sender, bounded, unbounded};

use crate::ledger::AccountId;

use super::control::{NeighbourEvent, PeerRequest, Seat};

/// Requests of neighbours that may wait to be looked at: 16 MiB of them at their longest.
const REQUESTS_WAITING_MAX: usize = 512;

/// The newest state of each link that has not been taken.
type Links = Mutex<BTreeMap<AccountId, bool>>;

/// Both ends of the way.
pub fn neighbour_events() -> (NeighbourNews, NeighbourEvents) {
    // Seats bound it. A bounded channel would keep what waits in it when its receiver goes, until its last sender goes.
    let (requests, requests_taken) = unbounded();
    let (links_told, links_to_take) = bounded(1);
    let (waker, woken) = bounded(1);
    let links = Arc::<Links>::default();
    let news = NeighbourNews {
        requests,
        waiting: Arc::default(),
        links: Arc::clone(&links),
        links_told,
    };
    let events = NeighbourEvents {
        requests: requests_taken,
        links,
        links_told: links_to_take,
        woken,
        waker: NeighbourWaker(waker),
    };
    (news, events)
}

/// The end that shards have.
#[derive(Clone)]
pub struct NeighbourNews {
    requests: Sender<(PeerRequest, Seat)>,
    /// How many there are in it.
    waiting: Arc<AtomicUsize>,
    links: Arc<Links>,
    /// Says that there is something in `links`.
    links_told: Sender<()>,
}

impl NeighbourNews {
    /// Hands a request over. It comes back if too many wait, or nobody serves requests any more.
    pub fn request(&self, request: PeerRequest) -> Result<(), PeerRequest> {
        let Some(seat) = Seat::take(&self.waiting, REQUESTS_WAITING_MAX) else {
            return Err(request);
        };
        self.requests.send((request, seat)).map_err(|refused| refused.0.0)
    }

    /// Tells how links stand now. False: not now, try again soon.
    #[must_use = "what was not told is to be told again"]
    pub fn links(&self, states: impl IntoIterator<Item = (AccountId, bool)>) -> bool {
        let mut links = match self.links.try_lock() {
            Ok(links) => links,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        links.extend(states);
        drop(links);
        // Full: that is said already.
        let _ = self.links_told.try_send(());
        true
    }
}

/// The end that the cold half has.
pub struct NeighbourEvents {
    requests: Receiver<(PeerRequest, Seat)>,
    links: Arc<Links>,
    links_told: Receiver<()>,
    woken: Receiver<()>,
    waker: NeighbourWaker,
}

impl NeighbourEvents {
    /// Waits for the next event, until then at most. `None`: it is time, or [`NeighbourWaker::wake`] was called since the
    /// last `None`.
    ///
    /// What is there comes in this order: how links stand, that it was woken, requests, that it is time. So nobody who
    /// asks much keeps the thread from its other work.
    pub fn next(&self, until: Option<Instant>) -> Option<NeighbourEvent> {
        let time = until.map_or_else(channel::never, channel::at);
        let (no_requests, no_links) = (channel::never(), channel::never());
        let (mut requests, mut links_told) = (&self.requests, &self.links_told);
        loop {
            let link = self.links.lock().unwrap_or_else(PoisonError::into_inner).pop_first();
            if let Some((account, up)) = link {
                return Some(NeighbourEvent::Link { account, up });
            }
            if self.woken.try_recv().is_ok() {
                return None;
            }
            if let Ok((request, _)) = requests.try_recv() {
                return Some(NeighbourEvent::Request(request));
            }
            // An error: all shards have ended. Who waits is still woken, and is in time.
            crossbeam::select! {
                recv(requests) -> request => match request {
                    Ok((request, _)) => return Some(NeighbourEvent::Request(request)),
                    Err(_) => requests = &no_requests,
                },
                recv(links_told) -> told => if told.is_err() {
                    links_told = &no_links;
                },
                recv(self.woken) -> _ => return None,
                recv(time) -> _ => return None,
            }
        }
    }

    /// For other threads.
    pub fn waker(&self) -> NeighbourWaker {
        self.waker.clone()
    }
}

/// Lets other cold threads tell the one that has the [`NeighbourEvents`] to look at what they have for it.
#[derive(Clone)]
pub struct NeighbourWaker(Sender<()>);

impl NeighbourWaker {
    /// The next wait ends with `None`, or the present one.
    pub fn wake(&self) {
        // Full: it is awake.
        let _ = self.0.try_send(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::control::PeerService;
    use std::time::Duration;

    fn request(from: u32) -> PeerRequest {
        PeerRequest {
            from: AccountId::new(from),
            service: PeerService::RouteUpdate,
            data: Vec::new(),
            respond: Box::new(|_| {}),
        }
    }

    /// What comes without waiting, as text.
    fn all_of(events: &NeighbourEvents) -> String {
        let mut all = Vec::new();
        while let Some(event) = events.next(Some(Instant::now())) {
            all.push(match event {
                NeighbourEvent::Link { account, up } => format!("{account}{}", if up { '+' } else { '-' }),
                NeighbourEvent::Request(request) => format!("?{}", request.from),
            });
        }
        all.join(" ")
    }

    #[test]
    fn of_a_link_only_the_newest_state_is_kept() {
        let (news, events) = neighbour_events();
        let link = |account, up| (AccountId::new(account), up);
        news.request(request(7)).unwrap_or_else(|_| panic!("there is room"));
        assert!(news.links([link(2, true), link(1, true), link(2, false)]));
        assert!(news.links([link(1, false), link(1, true), link(3, false)]));
        assert_eq!(all_of(&events), "1+ 2- 3- ?7", "links first");
        assert_eq!(all_of(&events), "");
        assert!(news.links([link(2, false)]));
        assert_eq!(all_of(&events), "2-", "also what was told before");
    }

    #[test]
    fn a_shard_does_not_wait_for_a_lock() {
        let (news, events) = neighbour_events();
        let taken = events.links.lock().unwrap();
        assert!(!news.links([(AccountId::new(1), true)]));
        drop(taken);
        assert_eq!(all_of(&events), "");
        assert!(news.links([(AccountId::new(1), true)]));
        assert_eq!(all_of(&events), "1+");
    }

    #[test]
    fn what_waits_goes_with_the_end_that_should_take_it() {
        let (news, events) = neighbour_events();
        let alive = Arc::new(());
        let held = Arc::clone(&alive);
        let waiting = PeerRequest {
            respond: Box::new(move |_| drop(held)),
            ..request(1)
        };
        assert!(news.request(waiting).is_ok());
        drop(events);
        assert_eq!(Arc::strong_count(&alive), 1, "dropped, although shards are still there");
        assert!(news.request(request(1)).is_err());
    }

    #[test]
    fn requests_beyond_the_limit_come_back() {
        let (news, events) = neighbour_events();
        for _ in 0..REQUESTS_WAITING_MAX {
            assert!(news.request(request(1)).is_ok());
        }
        assert_eq!(
            news.request(request(2)).err().map(|request| request.from),
            Some(AccountId::new(2))
        );
        assert!(events.next(None).is_some());
        assert!(news.request(request(2)).is_ok(), "there is room again");
        drop(events);
        assert!(news.request(request(3)).is_err(), "nobody serves any more");
    }

    #[test]
    fn who_waits_is_woken_and_is_in_time() {
        let (news, events) = neighbour_events();
        let waker = events.waker();
        waker.wake();
        waker.wake();
        assert!(news.links([(AccountId::new(1), true)]));
        assert!(events.next(None).is_some(), "the link");
        assert!(events.next(None).is_none(), "woken before it waited");
        let waiting = std::thread::spawn(move || (events.next(None).is_none(), events));
        waker.wake();
        let (woken, events) = waiting.join().unwrap();
        assert!(woken, "woken while it waited");
        // All shards have ended, and it still waits until its time.
        drop(news);
        let begun = Instant::now();
        assert!(events.next(Some(begun + Duration::from_millis(20))).is_none());
        assert!(begun.elapsed() >= Duration::from_millis(20));
        waker.wake();
        assert!(events.next(None).is_none());
    }
}
