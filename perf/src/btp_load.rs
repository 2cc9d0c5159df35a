//! Load over BTP: one sender and one receiver, each with one WebSocket, many packets in flight.
//! Owns both ends on one thread; `handshake` has brought them to where packets may flow. Always: an answer is
//! matched by its request number, and hashed against the condition kept under that number.

use std::io;

use serde_json::Value;

use crate::btp;
use crate::handshake::{End, Receiver, Server, open};
use crate::http_load::name_of_failure;
use crate::meter::Meter;
use crate::packet::{self, FULFILL_BYTES, HASH_BYTES, Packet, Prepares};
use crate::stream::Readiness;

/// Requests in flight at once. The slot fits the lower half of a request number.
pub const WINDOW_MAX: usize = 65_536;

const SENDER: usize = 0;
const RECEIVER: usize = 1;

/// A request in flight, under its slot.
struct Slot {
    /// Counts the uses of the slot, so that a late answer is not taken for that to a later request.
    generation: u16,
    due: Option<u64>,
    condition: [u8; HASH_BYTES],
}

struct Load {
    meter: Meter,
    prepares: Prepares,
    sender: End,
    receiver: End,
    slots: Vec<Slot>,
    vacant: Vec<u16>,
}

/// Runs one measurement with up to `window` packets in flight and returns its figures.
/// Errors are about the set-up or a lost connection; what becomes of packets is in the figures.
pub fn run(
    target: &Server,
    receiver: &Receiver,
    window: usize,
    prepares: Prepares,
    meter: Meter,
) -> Result<Value, String> {
    assert!((1..=WINDOW_MAX).contains(&window), "checked by the caller");
    let (sender, receiver) = open(target, receiver)?;
    let mut load = Load {
        meter,
        prepares,
        sender,
        receiver,
        slots: Vec::with_capacity(window),
        vacant: (0..window).rev().map(|slot| slot as u16).collect(),
    };
    load.slots.resize_with(window, || Slot {
        generation: 0,
        due: None,
        condition: [0; HASH_BYTES],
    });
    load.turn_until_over()?;
    Ok(load.meter.finish())
}

impl Load {
    fn turn_until_over(&mut self) -> Result<(), String> {
        let mut readiness = Readiness::new().map_err(|error| error.to_string())?;
        for (end, token) in [(&mut self.sender, SENDER), (&mut self.receiver, RECEIVER)] {
            end.stream
                .go_nonblocking()
                .and_then(|()| readiness.watch(&end.stream, token))
                .map_err(|error| error.to_string())?;
        }
        let mut ready = Vec::new();
        while self.meter.goes_on()? {
            if let Some(unix_ms) = self.meter.refresh_at() {
                self.prepares.refresh(unix_ms);
            }
            self.send_what_is_due().map_err(|error| format!("sender: {error}"))?;
            ready.clear();
            readiness
                .wait(self.meter.sleep_ms(), &mut ready)
                .map_err(|error| error.to_string())?;
            for &token in &ready {
                if token == SENDER {
                    self.handle_answers().map_err(|error| format!("sender: {error}"))?;
                } else {
                    serve(&mut self.receiver).map_err(|error| format!("receiver: {error}"))?;
                }
            }
        }
        Ok(())
    }

    fn send_what_is_due(&mut self) -> io::Result<()> {
        self.meter.tick();
        while !self.sender.stream.is_clogged() {
            let Some(slot) = self.vacant.pop() else { break };
            let Some(due) = self.meter.due() else {
                self.vacant.push(slot);
                break;
            };
            let (prepare, condition) = self.prepares.next();
            let state = &mut self.slots[usize::from(slot)];
            state.generation = state.generation.wrapping_add(1);
            state.due = Some(due);
            state.condition = condition;
            let request_id = u32::from(state.generation) << 16 | u32::from(slot);
            let key = End::key(&mut self.sender.dice);
            let output = self.sender.stream.output();
            btp::push_packet(output, key, btp::MESSAGE, request_id, prepare.len(), |out| {
                out.extend_from_slice(prepare);
            });
        }
        self.sender.stream.flush()
    }

    fn handle_answers(&mut self) -> io::Result<()> {
        loop {
            let more = self.sender.stream.fill()?;
            self.meter.tick();
            let mut read = 0;
            loop {
                let (input, output) = self.sender.stream.both();
                let rest = &mut input[read..];
                let Some(frame) = btp::read_frame(rest).map_err(io::Error::other)? else {
                    break;
                };
                read += frame.payload.end;
                let payload = &rest[frame.payload];
                if frame.opcode == btp::BINARY {
                    take_answer(&mut self.meter, &mut self.slots, &mut self.vacant, payload);
                } else {
                    control(output, &mut self.sender.dice, frame.opcode, payload)?;
                }
            }
            self.sender.stream.consume(read);
            self.send_what_is_due()?;
            if !more {
                return Ok(());
            }
        }
    }
}

fn take_answer(meter: &mut Meter, slots: &mut [Slot], vacant: &mut Vec<u16>, payload: &[u8]) {
    let Some(message) = btp::parse(payload) else {
        return meter.note("an unreadable BTP message", 1);
    };
    let (generation, number) = ((message.request_id >> 16) as u16, message.request_id as u16);
    let Some(slot) = slots
        .get_mut(usize::from(number))
        .filter(|slot| slot.generation == generation)
    else {
        return meter.note("an answer to nothing", 1);
    };
    let Some(due) = slot.due.take() else {
        return meter.note("a second answer", 1);
    };
    vacant.push(number);
    match (message.kind, message.packet.and_then(packet::parse)) {
        (btp::RESPONSE, Some(Packet::Fulfill { fulfillment }))
            if packet::condition_of(fulfillment) == slot.condition =>
        {
            meter.fulfilled(due);
        }
        (btp::RESPONSE, packet) => meter.failed(&name_of_failure(packet)),
        (btp::ERROR, _) => meter.failed("a BTP ERROR"),
        _ => meter.failed("a BTP message of another type as an answer"),
    }
}

/// The receiver's part: answers every Prepare that has arrived.
fn serve(end: &mut End) -> io::Result<()> {
    end.stream.flush()?;
    while !end.stream.is_clogged() {
        let more = end.stream.fill()?;
        let mut read = 0;
        loop {
            let (input, output) = end.stream.both();
            let rest = &mut input[read..];
            let Some(frame) = btp::read_frame(rest).map_err(io::Error::other)? else {
                break;
            };
            read += frame.payload.end;
            let payload = &rest[frame.payload];
            if frame.opcode != btp::BINARY {
                control(output, &mut end.dice, frame.opcode, payload)?;
                continue;
            }
            let message = btp::parse(payload).ok_or_else(|| io::Error::other("not BTP"))?;
            match message.packet.and_then(packet::parse) {
                Some(Packet::Prepare { data }) if data.len() == HASH_BYTES => {
                    let key = End::key(&mut end.dice);
                    let id = message.request_id;
                    btp::push_packet(output, key, btp::RESPONSE, id, FULFILL_BYTES, |out| {
                        packet::push_fulfill(out, data);
                    });
                }
                _ => return Err(io::Error::other("not a Prepare of this load")),
            }
        }
        end.stream.consume(read);
        end.stream.flush()?;
        if !more {
            break;
        }
    }
    Ok(())
}

/// Answers a ping; a close ends the run, everything else is not for us.
fn control(output: &mut Vec<u8>, dice: &mut Option<u64>, opcode: u8, payload: &[u8]) -> io::Result<()> {
    match opcode {
        btp::PING => btp::push_frame(output, btp::PONG, End::key(dice), payload.len(), |out| {
            out.extend_from_slice(payload);
        }),
        btp::CLOSE => return Err(io::Error::other("closed by the other side")),
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;
    use crate::meter::Plan;

    fn meter() -> Meter {
        Meter::start(Plan {
            warmup: Duration::ZERO,
            window: Duration::from_millis(100),
            rate: None,
            pids: Vec::new(),
            spin: false,
        })
        .unwrap()
    }

    #[test]
    fn every_packet_comes_back() {
        let address = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .unwrap();
        let target = Server {
            address,
            path: "/".into(),
            token: "pw".into(),
        };
        let prepares = Prepares::new("test.hub.bob", 0).unwrap();
        let receiver = Receiver::Listens(address);
        let figures = run(&target, &receiver, 100, prepares, meter()).unwrap();
        assert!(figures["packets"].as_u64().unwrap() > 100);
        assert_eq!(figures["errors"], serde_json::json!({}));
    }

    #[test]
    fn an_answer_counts_once_and_only_if_it_fits() {
        let mut meter = meter();
        let mut vacant = Vec::new();
        let mut slots = Vec::new();
        for number in 0..3 {
            slots.push(Slot {
                generation: 1,
                due: meter.due(),
                condition: packet::condition_of(&[number; HASH_BYTES]),
            });
        }
        let mut answer = |kind, request_id, preimage| {
            let mut wire = Vec::new();
            btp::push_packet(&mut wire, None, kind, request_id, FULFILL_BYTES, |out| {
                packet::push_fulfill(out, &[preimage; HASH_BYTES]);
            });
            let frame = btp::read_frame(&mut wire).unwrap().unwrap();
            take_answer(&mut meter, &mut slots, &mut vacant, &wire[frame.payload]);
        };
        answer(btp::RESPONSE, 0x1_0000, 0); // right
        answer(btp::RESPONSE, 0x1_0000, 0); // again
        answer(btp::RESPONSE, 0x1_0001, 0); // the fulfillment of another packet
        answer(btp::RESPONSE, 0x0_0002, 2); // the number of an earlier use of the slot
        answer(btp::RESPONSE, 0x1_0003, 3); // a number never used
        answer(btp::MESSAGE, 0x1_0002, 2); // a request, not an answer
        assert_eq!(vacant, [0, 1, 2]);
        let figures = meter.finish();
        assert_eq!(
            figures["errors"],
            serde_json::json!({
                "a second answer": 1,
                "wrong fulfillment": 1,
                "an answer to nothing": 2,
                "a BTP message of another type as an answer": 1,
            })
        );
    }
}
