//! Our own BTP connections to peers: looked up, connected, upgraded, authenticated, and again when they are lost, for
//! ever. Also where a peer's URL becomes an endpoint.

use std::cmp::Ordering;
use std::net::SocketAddr;

use url::{Host, Url};

use crate::ledger::{Account, AccountId};
use crate::link::btp::BtpLink;
use crate::net::dial::Backoff;
use crate::net::{SocketId, dial};
use crate::wire::http::percent::percent_decode;
use crate::wire::websocket::{ClientHandshake, CloseCode};

use super::Shard;
use super::btp_sessions::AUTHENTICATION_MS_MAX;
use super::connections::{BtpPhase, BtpSession, Connection, Link};
use super::mesh::{Cold, Message};

/// Where a peer listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    pub host: Host<String>,
    pub port: u16,
    /// Path and query, beginning with `/`.
    pub path: String,
}

/// Why a URL that the API accepted is not used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnusableUrl {
    #[error("the URL is not valid")]
    Invalid,
    #[error("TLS to peers is not supported yet: put a proxy in front, or use http or ws")]
    Tls,
}

impl Endpoint {
    /// Of an `http` URL.
    pub fn from_http_url(url: &str) -> Result<Self, UnusableUrl> {
        let url = Url::parse(url).map_err(|_| UnusableUrl::Invalid)?;
        match url.scheme() {
            "http" => Self::from_url(&url),
            "https" => Err(UnusableUrl::Tls),
            _ => Err(UnusableUrl::Invalid),
        }
    }

    /// Of any spelling of a BTP URL: `btp+ws`, `ws` and `http` mean the same, and so do those with an s.
    pub fn from_btp_url(url: &str) -> Result<(Self, Url), UnusableUrl> {
        let plain = url.strip_prefix("btp+").unwrap_or(url);
        // Parsed as http, so that the path and the default port are understood.
        let plain = match plain.split_once("://") {
            Some(("ws" | "http", rest)) => format!("http://{rest}"),
            Some(("wss" | "https", _)) => return Err(UnusableUrl::Tls),
            _ => return Err(UnusableUrl::Invalid),
        };
        let url = Url::parse(&plain).map_err(|_| UnusableUrl::Invalid)?;
        Ok((Self::from_url(&url)?, url))
    }

    fn from_url(url: &Url) -> Result<Self, UnusableUrl> {
        let host = url.host().ok_or(UnusableUrl::Invalid)?.to_owned();
        let port = url.port_or_known_default().ok_or(UnusableUrl::Invalid)?;
        let mut path = url.path().to_owned();
        if let Some(query) = url.query() {
            path.push('?');
            path.push_str(query);
        }
        Ok(Self { host, port, path })
    }

    /// The address, if no name has to be looked up.
    pub fn literal_address(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ipv4(ip) => Some((ip, self.port).into()),
            Host::Ipv6(ip) => Some((ip, self.port).into()),
            Host::Domain(_) => None,
        }
    }

    /// For the Host header: without the port where it is http's own (RFC 9110, section 7.2).
    pub fn host_header(&self) -> String {
        if self.port == 80 {
            self.host.to_string()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// A name to be resolved, off the shard: it may block.
pub struct Lookup {
    pub host: String,
    pub port: u16,
    /// Takes the first address, or none.
    pub respond: Box<dyn FnOnce(Option<SocketAddr>) + Send>,
}

/// What came of a lookup.
pub struct Resolved {
    pub account: AccountId,
    pub endpoint: Endpoint,
    pub for_btp: bool,
    pub address: Option<SocketAddr>,
}

/// Our side of a BTP link to one account.
pub struct Dialer {
    endpoint: Endpoint,
    username: Option<Box<str>>,
    token: Box<str>,
    backoff: Backoff,
    state: DialState,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum DialState {
    /// The next attempt is due then, monotonic milliseconds.
    Waiting {
        at_ms: u64,
    },
    Resolving,
    /// Connecting, upgrading or authenticating.
    Trying {
        socket: SocketId,
    },
    Up {
        socket: SocketId,
        since_ms: u64,
    },
}

/// The next attempt to reach an account. The earliest is the greatest, as the heap wants it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    at_ms: u64,
    account: AccountId,
}

impl Attempt {
    pub fn at_ms(&self) -> u64 {
        self.at_ms
    }
}

impl Ord for Attempt {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at_ms, other.account).cmp(&(self.at_ms, self.account))
    }
}

impl PartialOrd for Attempt {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Shard {
    /// Starts, replaces or ends our own link to an account after a change of its settings.
    pub(super) fn redial(&mut self, account: &Account) {
        let id = account.id;
        let wanted = account
            .links
            .btp_url()
            .and_then(|url| match Endpoint::from_btp_url(url) {
                Ok((endpoint, url)) => Some(new_dialer(endpoint, &url, account)),
                Err(error) => {
                    tracing::warn!(target: "btp", account = %id, %error, "the URL is not used");
                    None
                }
            });
        let current = self.peers.get(id).and_then(|peer| peer.dialer.as_deref());
        let unchanged = match (current, &wanted) {
            (Some(old), Some(new)) => {
                (&old.endpoint, &old.username, &old.token) == (&new.endpoint, &new.username, &new.token)
            }
            (None, None) => true,
            _ => false,
        };
        if unchanged {
            return;
        }
        let old = std::mem::replace(&mut self.peers.entry(id).dialer, wanted.map(Box::new));
        if let Some(DialState::Trying { socket } | DialState::Up { socket, .. }) = old.map(|dialer| dialer.state) {
            self.close_session(socket, CloseCode::Normal);
        }
        self.schedule(id);
    }

    /// Ends our own link to an account that goes.
    pub(super) fn stop_dialing(&mut self, account: AccountId) {
        let dialer = self.peers.get_mut(account).and_then(|peer| peer.dialer.take());
        if let Some(DialState::Trying { socket } | DialState::Up { socket, .. }) = dialer.map(|dialer| dialer.state) {
            self.close_session(socket, CloseCode::Normal);
        }
    }

    /// Sets the time of the next attempt.
    fn schedule(&mut self, account: AccountId) {
        if self.stopping {
            return;
        }
        let random = self.random.next();
        let now_ms = self.now.monotonic_ms;
        if let Some(dialer) = self.dialer(account) {
            let at_ms = now_ms + dialer.backoff.next_pause_ms(random);
            dialer.state = DialState::Waiting { at_ms };
            self.attempts.push(Attempt { at_ms, account });
        }
    }

    /// Makes the attempts whose time has come.
    pub(super) fn attempt_due(&mut self) {
        while let Some(attempt) = self.attempts.peek().copied()
            && attempt.at_ms <= self.now.monotonic_ms
        {
            self.attempts.pop();
            let due = DialState::Waiting { at_ms: attempt.at_ms };
            // An attempt that was overtaken by a change of settings is not made.
            if self.dialer(attempt.account).is_some_and(|dialer| dialer.state == due) {
                self.dial(attempt.account);
            }
        }
    }

    fn dial(&mut self, account: AccountId) {
        let Some(dialer) = self.dialer(account) else { return };
        let endpoint = dialer.endpoint.clone();
        match endpoint.literal_address() {
            Some(address) => self.dial_address(account, address),
            None => {
                dialer.state = DialState::Resolving;
                if !self.look_up(account, &endpoint, true) {
                    self.schedule(account);
                }
            }
        }
    }

    /// Asks for the address of an endpoint's name. False: too many questions are open.
    pub(super) fn look_up(&mut self, account: AccountId, endpoint: &Endpoint, for_btp: bool) -> bool {
        let mailboxes = self.mesh.mailboxes().clone();
        let me = usize::from(self.id);
        let endpoint = endpoint.clone();
        let (host, port) = (endpoint.host.to_string(), endpoint.port);
        let respond = Box::new(move |address| {
            let resolved = Box::new(Resolved {
                account,
                endpoint,
                for_btp,
                address,
            });
            mailboxes[me].send(Message::Cold(Cold::Resolved(resolved)));
        });
        self.lookups.try_send(Lookup { host, port, respond }).is_ok()
    }

    pub(super) fn resolved(&mut self, resolved: Resolved) {
        let Resolved {
            account,
            endpoint,
            for_btp,
            address,
        } = resolved;
        if !for_btp {
            self.http_resolved(account, &endpoint, address);
            return;
        }
        let Some(dialer) = self.dialer(account) else { return };
        if dialer.state != DialState::Resolving || dialer.endpoint != endpoint {
            return;
        }
        match address {
            Some(address) => self.dial_address(account, address),
            None => {
                tracing::info!(target: "btp", %account, host = %endpoint.host, "the peer's name cannot be resolved");
                self.schedule(account);
            }
        }
    }

    fn dial_address(&mut self, account: AccountId, address: SocketAddr) {
        let socket = match dial::socket_for(address) {
            Ok(socket) => self.ring.connect(socket, address),
            Err(error) => {
                tracing::warn!(target: "btp", %account, %error, "no socket for a connection");
                self.schedule(account);
                return;
            }
        };
        let mut random = [0; 16];
        random[..8].copy_from_slice(&self.random.next().to_le_bytes());
        random[8..].copy_from_slice(&self.random.next().to_le_bytes());
        let handshake = Box::new(ClientHandshake::new(random));
        self.connect_to(
            socket,
            Box::new(Connection::new(Link::BtpHandshake { account, handshake })),
        );
        self.connections
            .set_deadline(socket, self.now.monotonic_ms + AUTHENTICATION_MS_MAX);
        if let Some(dialer) = self.dialer(account) {
            dialer.state = DialState::Trying { socket };
        }
    }

    /// An outgoing connection of either kind is up.
    pub(super) fn connected(&mut self, socket: SocketId) {
        let Some(connection) = self.connections.get(socket) else {
            return;
        };
        let Link::BtpHandshake { account, handshake } = &connection.link else {
            self.http_connected(socket);
            return;
        };
        let Some(dialer) = self.peers.get(*account).and_then(|peer| peer.dialer.as_ref()) else {
            return;
        };
        let Some(out) = self.ring.output(socket) else { return };
        handshake.write_request(out, &dialer.endpoint.host_header(), &dialer.endpoint.path);
    }

    /// The server's answer to our upgrade; what follows it is BTP.
    pub(super) fn consume_btp_handshake(&mut self, socket: SocketId, bytes: &mut [u8]) -> usize {
        let mask_seed = self.random.next();
        let Some(connection) = self.connections.get_mut(socket) else {
            return bytes.len();
        };
        let Link::BtpHandshake { account, handshake } = &mut connection.link else {
            return bytes.len();
        };
        let account = *account;
        let used = match handshake.check_response(bytes) {
            Ok(None) => return 0,
            Ok(Some(used)) => used,
            Err(refused) => {
                tracing::info!(target: "btp", %account, %refused, "no BTP session");
                self.ring.close(socket);
                return bytes.len();
            }
        };
        let mut link = BtpLink::client(mask_seed);
        let dialer = self.peers.get(account).and_then(|peer| peer.dialer.as_ref());
        if let (Some(dialer), Some(out)) = (dialer, self.ring.output(socket)) {
            link.send_auth(dialer.username.as_deref(), &dialer.token, out);
        }
        let now_ms = self.now.monotonic_ms;
        let phase = BtpPhase::Authenticating { account };
        connection.link = Link::Btp(BtpSession::new(link, phase, now_ms));
        used + self.consume_btp(socket, &mut bytes[used..])
    }

    pub(super) fn dial_succeeded(&mut self, account: AccountId, socket: SocketId) {
        let since_ms = self.now.monotonic_ms;
        if let Some(dialer) = self.dialer(account)
            && dialer.state == (DialState::Trying { socket })
        {
            dialer.state = DialState::Up { socket, since_ms };
        }
    }

    /// A connection that never became a session is gone.
    pub(super) fn dial_failed(&mut self, account: AccountId, socket: SocketId, error: Option<std::io::Error>) {
        if self
            .dialer(account)
            .is_some_and(|dialer| dialer.state == (DialState::Trying { socket }))
        {
            let reason = error.map_or_else(|| "refused or no answer".to_owned(), |error| error.to_string());
            tracing::info!(target: "btp", %account, reason, "the peer cannot be reached; trying again");
            self.schedule(account);
        }
    }

    /// A session is gone. If it was one that we dialled, dial again.
    pub(super) fn dialed_connection_ended(&mut self, account: AccountId, socket: SocketId) {
        let now_ms = self.now.monotonic_ms;
        let Some(dialer) = self.dialer(account) else { return };
        if let DialState::Up { socket: ours, since_ms } = dialer.state
            && ours == socket
        {
            dialer.backoff.worked(now_ms - since_ms);
            self.schedule(account);
        }
    }

    fn dialer(&mut self, account: AccountId) -> Option<&mut Dialer> {
        self.peers.get_mut(account)?.dialer.as_deref_mut()
    }
}

fn new_dialer(endpoint: Endpoint, url: &Url, account: &Account) -> Dialer {
    let decode = |text: &str| percent_decode(text).map_or_else(|| text.into(), |text| Box::<str>::from(&*text));
    let username = (!url.username().is_empty()).then(|| decode(url.username()));
    let token = match account.links.btp_outgoing_token() {
        Some(token) => token.into(),
        None => url.password().map(decode).unwrap_or_default(),
    };
    Dialer {
        endpoint,
        username,
        token,
        backoff: Backoff::default(),
        state: DialState::Waiting { at_ms: 0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_btp_url() {
        for (url, host, path) in [
            (
                "btp+ws://127.0.0.1:7768/accounts/a/ilp/btp",
                "127.0.0.1:7768",
                "/accounts/a/ilp/btp",
            ),
            ("ws://peer.example/ilp/btp?x=1", "peer.example", "/ilp/btp?x=1"),
            ("http://[::1]:9000", "[::1]:9000", "/"),
            ("btp+ws://:token@peer.example:7768", "peer.example:7768", "/"),
            ("btp+http://peer.example:80/", "peer.example", "/"),
        ] {
            let (endpoint, _) = Endpoint::from_btp_url(url).unwrap();
            assert_eq!(
                (endpoint.host_header().as_str(), endpoint.path.as_str()),
                (host, path),
                "{url}"
            );
        }
        for (url, error) in [
            ("btp+wss://peer.example", UnusableUrl::Tls),
            ("https://peer.example", UnusableUrl::Tls),
            ("ftp://peer.example", UnusableUrl::Invalid),
            ("peer.example", UnusableUrl::Invalid),
            ("ws://", UnusableUrl::Invalid),
        ] {
            assert_eq!(Endpoint::from_btp_url(url).err(), Some(error), "{url}");
        }
    }

    #[test]
    fn the_earliest_attempt_comes_first() {
        let mut heap = std::collections::BinaryHeap::new();
        for at_ms in [5, 1, 9, 3] {
            heap.push(Attempt {
                at_ms,
                account: AccountId::new(at_ms as u32),
            });
        }
        let order: Vec<u64> = std::iter::from_fn(|| heap.pop()).map(|attempt| attempt.at_ms).collect();
        assert_eq!(order, [1, 3, 5, 9]);
    }
}
