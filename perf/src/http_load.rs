//! Load over ILP-over-HTTP (RFC 35, synchronous): senders on keep-alive connections with one request
//! in flight each, and the receiver behind whatever stands in the middle.
//! Owns both ends on one thread. Always: a connection has at most one request in flight, and the
//! answer that arrives on it is hashed against the condition of that request.

use std::net::{SocketAddr, TcpListener, TcpStream};

use serde_json::Value;

use crate::http;
use crate::meter::Meter;
use crate::packet::{self, FULFILL_BYTES, HASH_BYTES, Packet, Prepares};
use crate::stream::{Readiness, Stream, accept, listen};

/// Input of one connection: a head and the longest packet a load sees.
const INPUT_BYTES: usize = 16 * 1024;
/// Connections the receiver takes at once; the middle's pool is far smaller.
const RECEIVER_CONNECTIONS_MAX: usize = 8_192;

/// Where the senders send, and where the middle finds the receiver.
pub struct Ends {
    pub target: SocketAddr,
    pub path: String,
    pub token: String,
    pub receiver: SocketAddr,
    pub connections: usize,
}

/// The request of a sender that waits for its answer.
struct InFlight {
    due: u64,
    condition: [u8; HASH_BYTES],
}

struct Sender {
    stream: Stream,
    in_flight: Option<InFlight>,
}

struct Load {
    readiness: Readiness,
    meter: Meter,
    prepares: Prepares,
    request_head: Vec<u8>,
    /// Tokens `0..senders.len()`. `None`: lost, with the reason counted.
    senders: Vec<Option<Sender>>,
    idle: Vec<usize>,
    /// Token `senders.len()`.
    listener: TcpListener,
    /// Tokens above that.
    receivers: Vec<Option<Stream>>,
    vacant: Vec<usize>,
}

/// Runs one measurement and returns its figures. Errors are about the set-up or about a run in which
/// no sender is left; what becomes of single packets is in the figures.
pub fn run(ends: &Ends, prepares: Prepares, meter: Meter) -> Result<Value, String> {
    let listener = listen(ends.receiver).map_err(|error| format!("receiver on {}: {error}", ends.receiver))?;
    let readiness = Readiness::new().map_err(|error| error.to_string())?;
    let mut load = Load {
        request_head: format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
            ends.path,
            ends.target,
            ends.token,
            prepares.len()
        )
        .into_bytes(),
        readiness,
        meter,
        prepares,
        senders: Vec::new(),
        idle: (0..ends.connections).collect(),
        listener,
        receivers: Vec::new(),
        vacant: Vec::new(),
    };
    load.open(ends)
        .map_err(|error| format!("connecting to {}: {error}", ends.target))?;
    load.turn_until_over()?;
    Ok(load.meter.finish())
}

impl Load {
    fn open(&mut self, ends: &Ends) -> std::io::Result<()> {
        for token in 0..ends.connections {
            let mut stream = Stream::new(TcpStream::connect(ends.target)?, INPUT_BYTES)?;
            stream.go_nonblocking()?;
            self.readiness.watch(&stream, token)?;
            self.senders.push(Some(Sender {
                stream,
                in_flight: None,
            }));
        }
        self.readiness.watch(&self.listener, self.senders.len())
    }

    fn turn_until_over(&mut self) -> Result<(), String> {
        let mut ready = Vec::new();
        while self.meter.goes_on()? {
            if let Some(unix_ms) = self.meter.refresh_at() {
                self.prepares.refresh(unix_ms);
            }
            self.send_what_is_due();
            if self.senders.iter().all(Option::is_none) {
                return Err(format!("no connection is left: {}", self.meter.errors()));
            }
            ready.clear();
            self.readiness
                .wait(self.meter.sleep_ms(), &mut ready)
                .map_err(|error| error.to_string())?;
            for &token in &ready {
                match token.checked_sub(self.senders.len()) {
                    None => self.handle_sender(token),
                    Some(0) => self.take_connections()?,
                    Some(token) => self.handle_receiver(token - 1),
                }
            }
        }
        Ok(())
    }

    fn send_what_is_due(&mut self) {
        while let Some(token) = self.idle.pop() {
            let Some(sender) = &mut self.senders[token] else {
                continue;
            };
            let Some(due) = self.meter.due() else {
                self.idle.push(token);
                return;
            };
            let (prepare, condition) = self.prepares.next();
            let output = sender.stream.output();
            output.extend_from_slice(&self.request_head);
            output.extend_from_slice(prepare);
            sender.in_flight = Some(InFlight { due, condition });
            if sender.stream.flush().is_err() {
                self.lose(token, "connection closed");
            }
        }
    }

    fn handle_sender(&mut self, token: usize) {
        let Some(sender) = &mut self.senders[token] else {
            return;
        };
        let filled = sender.stream.flush().and_then(|()| sender.stream.fill());
        if filled.is_err() {
            return self.lose(token, "connection closed");
        }
        self.meter.tick();
        let message = match http::whole(sender.stream.input()) {
            Ok(None) => return,
            Ok(Some(message)) => message,
            Err(name) => return self.lose(token, name),
        };
        let Some(in_flight) = sender.in_flight.take() else {
            return self.lose(token, "an answer to nothing");
        };
        let body = &sender.stream.input()[message.body_start..message.end];
        match (message.status, packet::parse(body)) {
            (200, Some(Packet::Fulfill { fulfillment }))
                if packet::condition_of(fulfillment) == in_flight.condition =>
            {
                self.meter.fulfilled(in_flight.due);
            }
            (200, packet) => self.meter.failed(&name_of_failure(packet)),
            (status, _) => self.meter.failed(&format!("HTTP status {status}")),
        }
        sender.stream.consume(message.end);
        if message.close || !sender.stream.input().is_empty() {
            return self.lose(token, "connection closed");
        }
        self.idle.push(token);
        self.send_what_is_due();
    }

    /// Gives a sender up. The others go on; its packet, if any, counts as failed.
    fn lose(&mut self, token: usize, name: &str) {
        let Some(sender) = self.senders[token].take() else {
            return;
        };
        if sender.in_flight.is_some() {
            self.meter.failed(name);
        } else {
            self.meter.note(name, 1);
        }
    }

    fn take_connections(&mut self) -> Result<(), String> {
        while let Some(stream) = accept(&self.listener, INPUT_BYTES).map_err(|error| format!("receiver: {error}"))? {
            let slot = match self.vacant.pop() {
                Some(slot) => slot,
                None if self.receivers.len() < RECEIVER_CONNECTIONS_MAX => {
                    self.receivers.push(None);
                    self.receivers.len() - 1
                }
                None => {
                    self.meter.note("receiver full", 1);
                    continue; // dropped: closed
                }
            };
            self.readiness
                .watch(&stream, self.senders.len() + 1 + slot)
                .map_err(|error| error.to_string())?;
            self.receivers[slot] = Some(stream);
        }
        Ok(())
    }

    fn handle_receiver(&mut self, slot: usize) {
        let Some(stream) = self.receivers.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        if let Err(error) = serve(stream) {
            // The middle may close what it does not need; anything else is worth a line.
            if error.kind() != std::io::ErrorKind::UnexpectedEof {
                self.meter.note(&format!("receiver: {error}"), 1);
            }
            self.receivers[slot] = None;
            self.vacant.push(slot);
        }
    }
}

/// Answers every request that has arrived, in order.
fn serve(stream: &mut Stream) -> std::io::Result<()> {
    const _: () = assert!(FULFILL_BYTES == 35, "the head below says so");
    const ANSWER_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n\
                                 Content-Length: 35\r\n\r\n";
    stream.flush()?;
    while !stream.is_clogged() {
        let more = stream.fill()?;
        loop {
            let (input, output) = stream.both();
            let Some(message) = http::whole(input).map_err(std::io::Error::other)? else {
                break;
            };
            match packet::parse(&input[message.body_start..message.end]) {
                Some(Packet::Prepare { data }) if data.len() == HASH_BYTES => {
                    output.extend_from_slice(ANSWER_HEAD);
                    packet::push_fulfill(output, data);
                }
                _ => return Err(std::io::Error::other("not a Prepare of this load")),
            }
            stream.consume(message.end);
        }
        stream.flush()?;
        if !more {
            break;
        }
    }
    Ok(())
}

/// What to call an answer that is not the Fulfill asked for.
pub fn name_of_failure(packet: Option<Packet<'_>>) -> String {
    match packet {
        Some(Packet::Fulfill { .. }) => "wrong fulfillment".to_owned(),
        Some(Packet::Reject { code, message }) => format!(
            "Reject {} {}",
            code.escape_ascii(),
            message[..message.len().min(60)].escape_ascii()
        ),
        Some(Packet::Prepare { .. }) => "a Prepare as an answer".to_owned(),
        None => "an unreadable answer".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::meter::Plan;

    fn free_address() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .unwrap()
    }

    fn run_against(target: SocketAddr, receiver: SocketAddr) -> Result<Value, String> {
        let ends = Ends {
            target,
            path: "/ilp".into(),
            token: "pw".into(),
            receiver,
            connections: 5,
        };
        let meter = Meter::start(Plan {
            warmup: Duration::ZERO,
            window: Duration::from_millis(100),
            rate: None,
            pids: Vec::new(),
            spin: false,
        });
        run(&ends, Prepares::new("test.hub.bob", 0)?, meter?)
    }

    #[test]
    fn every_packet_comes_back() {
        let address = free_address();
        let figures = run_against(address, address).unwrap();
        assert!(figures["packets"].as_u64().unwrap() > 5);
        assert_eq!(figures["errors"], serde_json::json!({}));
    }

    #[test]
    fn a_fulfillment_of_another_packet_does_not_count() {
        use std::io::{Read, Write};
        let middle = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = middle.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            // The same well-formed Fulfill to everybody.
            let mut answer = b"HTTP/1.1 200 OK\r\nContent-Length: 35\r\n\r\n".to_vec();
            packet::push_fulfill(&mut answer, &[7; HASH_BYTES]);
            let serve = |mut socket: TcpStream| {
                while socket.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {
                    socket.write_all(&answer).unwrap();
                }
            };
            let sockets: Vec<_> = (0..5).map(|_| middle.accept().unwrap().0).collect();
            std::thread::scope(|scope| {
                for socket in sockets {
                    scope.spawn(move || serve(socket));
                }
            });
        });
        let figures = run_against(target, free_address()).unwrap();
        server.join().unwrap();
        assert_eq!(figures["packets"], 0);
        assert!(figures["errors"]["wrong fulfillment"].as_u64().unwrap() > 5);
    }
}
