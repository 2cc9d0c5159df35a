//! What the bytes of a packet cost: a Prepare read and patched, against copying it; a BTP frame unmasked and read, against
//! copying it; a request head, against httparse.

use std::hint::black_box;
use std::ops::Range;

use clearway::link::http::{HttpServer, Incoming};
use clearway::wire::address::Address;
use clearway::wire::btp::{Frame, FrameKind, ilp_frame_size, write_ilp};
use clearway::wire::http::{Framing, parse_request};
use clearway::wire::packet::{Fulfill, PACKET_BYTES_MAX, Prepare, PrepareBuilder, patch_prepare};
use clearway::wire::timestamp::Timestamp;
use clearway::wire::websocket::{Opcode, parse_head, unmask, write_head};
use criterion::Criterion;

use sample::{Sample, word};
use support::{Digest, Random, Work, measure, size};

#[path = "support/sample.rs"]
mod sample;
mod support;

fn main() {
    support::main(&[packet, btp, head]);
}

fn samples(seed: u64) -> Vec<Sample> {
    let mut random = Random::from_seed(seed);
    (0..size(16, 512))
        .map(|_| {
            let destination = format!("test.hub.user-{:05}.~invoice", random.below(100));
            Sample::new(&mut random, destination)
        })
        .collect()
}

/// Messages one behind the other, as they are received, and where each lies.
#[derive(Default)]
struct Received {
    bytes: Vec<u8>,
    messages: Vec<Range<usize>>,
}

impl Received {
    fn push(&mut self, message: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(message);
        self.messages.push(start..self.bytes.len());
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.messages.iter().map(|range| &self.bytes[range.clone()])
    }
}

impl<M: AsRef<[u8]>> FromIterator<M> for Received {
    fn from_iter<I: IntoIterator<Item = M>>(messages: I) -> Self {
        let mut received = Self::default();
        messages.into_iter().for_each(|message| received.push(message.as_ref()));
        received
    }
}

/// What is put into a Prepare on its way out.
fn patched(amount: u64, expires_at: Timestamp) -> (u64, Timestamp) {
    (amount - amount / 100, expires_at.minus_ms(1_000))
}

fn packet(criterion: &mut Criterion) {
    /// Type, and a length of two bytes: where the amount begins in Prepares between 128 and 255 bytes of content.
    const AMOUNT_AT: usize = 3;
    /// The last eight digits of the expiry, behind the amount and the first nine.
    const EXPIRY_AT: usize = AMOUNT_AT + 8 + 9;

    /// One byte string behind the other through `write`, and what then stands in the places that are patched.
    fn copy(received: &Received, out: &mut Vec<u8>, write: impl Fn(&[u8], &mut Vec<u8>)) -> u64 {
        let mut digest = Digest::default();
        out.clear();
        for message in received.iter() {
            let start = out.len();
            write(message, out);
            let written = &out[start..];
            digest.add(word(&written[AMOUNT_AT..]));
            digest.add(word(&written[EXPIRY_AT..]));
        }
        black_box(out);
        digest.get()
    }

    fn forward(message: &[u8], out: &mut Vec<u8>) {
        let prepare = Prepare::parse(message).expect("a Prepare was made");
        let start = out.len();
        out.extend_from_slice(prepare.bytes());
        let (amount, expires_at) = patched(prepare.amount(), prepare.expires_at());
        patch_prepare(&mut out[start..], amount, expires_at);
    }

    fn encode(message: &[u8], out: &mut Vec<u8>) {
        let prepare = Prepare::parse(message).expect("a Prepare was made");
        let (amount, expires_at) = patched(prepare.amount(), prepare.expires_at());
        PrepareBuilder {
            amount,
            expires_at,
            execution_condition: prepare.condition(),
            destination: prepare.destination(),
            data: prepare.data(),
        }
        .encode(out);
    }

    fn expiry_digits(expires_at: Timestamp) -> u64 {
        let mut text = [0; 17];
        expires_at.write_interledger(&mut text);
        word(&text[9..])
    }

    let samples = samples(1);
    let received: Received = samples.iter().map(Sample::prepare).collect();
    let responses: Received = samples.iter().map(Sample::fulfill).collect();
    let fulfillments: Digest = samples.iter().map(|sample| word(&sample.fulfillment)).collect();
    let as_received: Digest = samples
        .iter()
        .flat_map(|sample| [sample.amount, expiry_digits(sample.expires_at)])
        .collect();
    let as_patched: Digest = samples
        .iter()
        .map(|sample| patched(sample.amount, sample.expires_at))
        .flat_map(|(amount, expires_at)| [amount, expiry_digits(expires_at)])
        .collect();
    let as_read: Digest = samples
        .iter()
        .flat_map(|sample| {
            let address = Address::parse(sample.destination.as_bytes()).expect("an address was made");
            [
                sample.amount,
                sample.expires_at.as_millis(),
                word(&sample.condition),
                address.as_str().len() as u64,
                word(&sample.data),
            ]
        })
        .collect();

    // The digests see only the places that are patched; here all bytes are compared, once.
    let (mut forwarded, mut encoded) = (Vec::new(), Vec::new());
    copy(&received, &mut forwarded, forward);
    copy(&received, &mut encoded, encode);
    let expected: Vec<u8> = samples
        .iter()
        .flat_map(|sample| {
            let (amount, expires_at) = patched(sample.amount, sample.expires_at);
            sample.prepare_with(amount, expires_at)
        })
        .collect();
    assert!(
        forwarded == expected && encoded == expected,
        "a Prepare is changed where it is patched and nowhere else"
    );

    let mut out = Vec::with_capacity(received.bytes.len());
    let works = vec![
        Work::new("memcpy", as_received.get(), || {
            copy(black_box(&received), &mut out, |message, out| {
                out.extend_from_slice(message);
            })
        }),
        Work::new("parse a Prepare", as_read.get(), || {
            let mut digest = Digest::default();
            for message in black_box(&received).iter() {
                let prepare = Prepare::parse(message).expect("a Prepare was made");
                digest.add(prepare.amount());
                digest.add(prepare.expires_at().as_millis());
                digest.add(word(prepare.condition()));
                digest.add(prepare.destination().as_str().len() as u64);
                digest.add(word(prepare.data()));
            }
            digest.get()
        }),
        Work::new("parse a Fulfill", fulfillments.get(), || {
            let mut digest = Digest::default();
            for message in black_box(&responses).iter() {
                let fulfill = Fulfill::parse(message).expect("a Fulfill was made");
                digest.add(word(fulfill.fulfillment()));
            }
            digest.get()
        }),
        Work::new("parse, copy, patch", as_patched.get(), || {
            copy(black_box(&received), &mut forwarded, forward)
        }),
        Work::new("parse, encode anew", as_patched.get(), || {
            copy(black_box(&received), &mut encoded, encode)
        }),
    ];
    measure(criterion, "wire/packet", samples.len(), works);
}

fn btp(criterion: &mut Criterion) {
    const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    /// Copies the frames, because what is unmasked in place cannot be unmasked again, and hands each one on with its head.
    fn each_payload(received: &Received, copied: &mut [u8], mut handle: impl FnMut(&[u8])) {
        copied.copy_from_slice(&received.bytes);
        let mut rest = copied;
        while !rest.is_empty() {
            let head = parse_head(rest, PACKET_BYTES_MAX)
                .expect("a frame was made")
                .expect("all of it");
            let (frame, behind) = rest.split_at_mut(head.head_len + head.payload_len);
            let payload = &mut frame[head.head_len..];
            unmask(payload, head.mask.expect("a client masks"));
            handle(payload);
            rest = behind;
        }
    }

    let samples = samples(2);
    let received: Received = (0..)
        .zip(&samples)
        .map(|(request_id, sample)| {
            let packet = sample.prepare();
            let mut frame = Vec::new();
            write_head(&mut frame, Opcode::Binary, ilp_frame_size(packet.len()), Some(KEY));
            let payload = frame.len();
            write_ilp(&mut frame, FrameKind::Message, request_id, &packet);
            unmask(&mut frame[payload..], KEY);
            frame
        })
        .collect();
    let heads: Digest = received.iter().map(word).collect();
    let ends: Digest = samples
        .iter()
        .map(|sample| word(&sample.data[sample.data.len() - 8..]))
        .collect();
    let packets: Digest = (0..)
        .zip(&samples)
        .flat_map(|(request_id, sample)| [request_id, sample.amount, word(&sample.condition)])
        .collect();

    let mut buffers = [const { Vec::new() }; 3].map(|mut buffer: Vec<u8>| {
        buffer.resize(received.bytes.len(), 0);
        buffer
    });
    let [copied, unmasked, read] = &mut buffers;
    let works = vec![
        Work::new("memcpy", heads.get(), || {
            let mut digest = Digest::default();
            copied.copy_from_slice(&black_box(&received).bytes);
            black_box(&mut *copied);
            received
                .messages
                .iter()
                .for_each(|range| digest.add(word(&copied[range.clone()])));
            digest.get()
        }),
        Work::new("copy, unmask", ends.get(), || {
            let mut digest = Digest::default();
            each_payload(black_box(&received), unmasked, |payload| {
                digest.add(word(&payload[payload.len() - 8..]));
            });
            black_box(&mut *unmasked);
            digest.get()
        }),
        Work::new("copy, unmask, parse both", packets.get(), || {
            let mut digest = Digest::default();
            each_payload(black_box(&received), read, |payload| {
                let frame = Frame::parse(payload).expect("a frame was made");
                let packet = frame.ilp().expect("with a packet");
                let prepare = Prepare::parse(packet).expect("a Prepare was made");
                digest.add(u64::from(frame.request_id()));
                digest.add(prepare.amount());
                digest.add(word(prepare.condition()));
            });
            digest.get()
        }),
    ];
    measure(criterion, "wire/btp", samples.len(), works);
}

fn head(criterion: &mut Criterion) {
    const FIELDS_MAX: usize = 16;

    /// What every request is about: its length, its body's, and a word of the body.
    fn note(digest: &mut Digest, bytes: usize, body: &[u8]) {
        digest.add(bytes as u64);
        digest.add(body.len() as u64);
        digest.add(word(&body[body.len() - 8..]));
    }

    /// Who uses httparse has to find out by himself where the body ends.
    fn httparse_all(mut bytes: &[u8]) -> u64 {
        let mut digest = Digest::default();
        while !bytes.is_empty() {
            let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
            let mut request = httparse::Request::new(&mut fields);
            let head_bytes = request.parse(bytes).expect("a request was made").unwrap();
            let body_bytes = request
                .headers
                .iter()
                .find(|field| field.name.eq_ignore_ascii_case("content-length"))
                .and_then(|field| str::from_utf8(field.value).ok()?.parse().ok())
                .unwrap_or(0);
            let (message, rest) = bytes.split_at(head_bytes + body_bytes);
            note(&mut digest, message.len(), &message[head_bytes..]);
            bytes = rest;
        }
        digest.get()
    }

    fn parse_all(mut bytes: &[u8]) -> u64 {
        let mut digest = Digest::default();
        while !bytes.is_empty() {
            let (head, head_bytes) = parse_request(bytes).expect("a request was made").expect("all of it");
            let Framing::Length(body_bytes) = head.framing() else {
                panic!("it has a Content-Length");
            };
            let (message, rest) = bytes.split_at(head_bytes + body_bytes as usize);
            note(&mut digest, message.len(), &message[head_bytes..]);
            bytes = rest;
        }
        digest.get()
    }

    /// A connection that reads all of it, and that must find every head new, or every one repeated.
    fn serve_all(server: &mut HttpServer, mut bytes: &[u8], repeats: bool, out: &mut Vec<u8>) -> u64 {
        let mut digest = Digest::default();
        while !bytes.is_empty() {
            let (used, incoming) = server
                .next(bytes, |_| PACKET_BYTES_MAX, out)
                .expect("a request was made");
            match (incoming.expect("all of it"), repeats) {
                (Incoming::Request { body, .. }, false) | (Incoming::Repeat { body }, true) => {
                    note(&mut digest, used, body);
                }
                _ => panic!("a head is a repeated one when the caller has remembered it, and only then"),
            }
            bytes = &bytes[used..];
        }
        digest.get()
    }

    let samples = samples(3);
    let received: Received = samples
        .iter()
        .map(|sample| {
            let body = sample.prepare();
            // The fields of the JavaScript client.
            let head = format!(
                "POST /accounts/alice/ilp HTTP/1.1\r\nAccept: application/octet-stream\r\n\
                 Content-Type: application/octet-stream\r\nAuthorization: Bearer 6fcdcf5a0b3c4b5c9ed3f81f6cf2a5a1\r\n\
                 Content-Length: {}\r\nUser-Agent: node-fetch/1.0 (+https://github.com/bitinn/node-fetch)\r\n\
                 Accept-Encoding: gzip,deflate\r\nConnection: keep-alive\r\nHost: hub.example:7770\r\n\r\n",
                body.len()
            );
            [head.into_bytes(), body].concat()
        })
        .collect();
    let expected: Digest = received
        .iter()
        .zip(&samples)
        .flat_map(|(message, sample)| {
            let end = word(&sample.data[sample.data.len() - 8..]);
            [message.len() as u64, sample.prepare().len() as u64, end]
        })
        .collect();
    let expected = expected.get();

    let bytes = received.bytes.as_slice();
    let (mut parsing, mut parsing_out) = (HttpServer::new(), Vec::new());
    let (mut comparing, mut comparing_out) = (HttpServer::new(), Vec::new());
    serve_all(&mut comparing, bytes, false, &mut comparing_out);
    comparing.remember();
    let works = vec![
        Work::new("httparse", expected, || httparse_all(black_box(bytes))),
        Work::new("parse", expected, || parse_all(black_box(bytes))),
        Work::new("connection, new head", expected, || {
            serve_all(&mut parsing, black_box(bytes), false, &mut parsing_out)
        }),
        Work::new("connection, same head", expected, || {
            serve_all(&mut comparing, black_box(bytes), true, &mut comparing_out)
        }),
    ];
    measure(criterion, "wire/head", samples.len(), works);
    assert!(
        parsing_out.is_empty() && comparing_out.is_empty(),
        "nobody waited for a go-ahead"
    );
}
