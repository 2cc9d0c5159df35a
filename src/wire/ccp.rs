//! CCP, how neighbours tell each other routes: a request for them, and an update with some. In no RFC; defined by two
//! implementations, one in Rust and one in JavaScript (protocols.md 8).
//!
//! Owns the layout of both payloads. Leaves to routing what a route is good for and when to tell one, and to
//! [`super::peer`] what all requests between neighbours have in common.
//! Always: what was parsed was walked to its end, so every iterator yields exactly what was counted; parsing allocates
//! nothing; every count has a limit. Prefixes and hops are bytes: whether they are addresses decides about one route,
//! not about the update it came in. Bytes after the last field are ignored (RFC 30).
//!
//! Both implementations' bytes are read. They differ in what they leave to the reader: how a count is written (leading
//! zeros are accepted, and never written), an own address with an empty path or with itself as the path, and which bits
//! of a property go together.

use super::address::{Address, AddressError};
use super::oer::{OerError, Reader, length_size, write_var_octets, write_var_uint};
use super::packet::{DATA_BYTES_MAX, PEER_FULFILLMENT, encode_fulfill};
use super::peer::encode_request;
use super::timestamp::Timestamp;

/// Where a neighbour is asked for routes.
pub const CONTROL_DESTINATION: Address<'static> = Address::from_static("peer.route.control");
/// Where a neighbour is told routes.
pub const UPDATE_DESTINATION: Address<'static> = Address::from_static("peer.route.update");

/// New routes in one update: more do not fit into a packet.
pub const ROUTES_MAX: usize = DATA_BYTES_MAX / ROUTE_BYTES_MIN;
/// Withdrawn prefixes in one update: more do not fit, for the shortest takes four bytes (`g.a` and its length).
pub const WITHDRAWN_MAX: usize = DATA_BYTES_MAX / 4;
/// Hops of one path that are read; routing believes far fewer.
pub const HOPS_MAX: usize = 255;
/// Properties of one route. None is defined.
pub const PROPS_MAX: usize = 64;
/// Features of one control request. None is defined.
pub const FEATURES_MAX: usize = 64;

/// Bytes of what authenticates a route, one day.
pub const AUTH_BYTES: usize = 32;

/// Two empty texts, the auth, no properties.
const ROUTE_BYTES_MIN: usize = 2 + 1 + AUTH_BYTES + 2;
/// An empty text.
const TEXT_BYTES_MIN: usize = 1;
/// The flags, the number, an empty value.
const PROP_BYTES_MIN: usize = 1 + 2 + 1;
/// The table, four numbers.
const UPDATE_FIXED_BYTES: usize = 16 + 4 * 4;

/// Names one routing table of one process: a node that starts again has another.
pub type TableId = [u8; 16];
/// The table that nobody has: what is asked for by who knows none.
pub const NO_TABLE: TableId = [0; 16];

/// Why the data of a request is not CCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A length, a count, or the end of the bytes.
    #[error("malformed: {0}")]
    Oer(#[from] OerError),
    /// Neither [`Mode::Idle`] nor [`Mode::Sync`].
    #[error("unknown mode {0}")]
    Mode(u8),
    /// Who speaks is no address.
    #[error("invalid speaker: {0}")]
    Speaker(#[from] AddressError),
    /// An update from an epoch to an earlier one.
    #[error("the update ends before it begins")]
    EpochsReversed,
    /// More of something than its limit.
    #[error("more than {max} {what}")]
    TooMany { what: &'static str, max: usize },
    /// More than the data of a packet.
    #[error("longer than the data of a packet")]
    TooLong,
}

/// What a neighbour wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// To be told no routes.
    Idle = 0,
    /// To be told routes.
    Sync = 1,
}

/// The data of a request for routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    pub mode: Mode,
    /// The table it knows part of; [`NO_TABLE`] if none.
    pub table_id: TableId,
    /// The first epoch of that table it does not know.
    pub epoch: u32,
}

impl Control {
    /// Reads the data of a request. Features are walked over: none is defined.
    pub fn parse(data: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(data);
        let mode = match reader.read_u8()? {
            0 => Mode::Idle,
            1 => Mode::Sync,
            other => return Err(Malformed::Mode(other)),
        };
        let control = Self {
            mode,
            table_id: *reader.read_array()?,
            epoch: reader.read_u32()?,
        };
        Texts::read(&mut reader, "features", FEATURES_MAX)?;
        Ok(control)
    }

    /// Appends the data to `out`.
    pub fn encode_data(&self, out: &mut Vec<u8>) {
        out.push(self.mode as u8);
        out.extend_from_slice(&self.table_id);
        out.extend_from_slice(&self.epoch.to_be_bytes());
        write_var_uint(out, 0);
    }

    /// Appends the whole Prepare to `out`, sent at `now`.
    pub fn encode(&self, out: &mut Vec<u8>, now: Timestamp) {
        let mut data = Vec::new();
        self.encode_data(&mut data);
        encode_request(out, now, CONTROL_DESTINATION, &data);
    }
}

/// Appends the Prepare with the data of an update to `out`, sent at `now`.
///
/// # Panics
/// If `data` has more bytes than a packet may.
pub fn encode_update_request(out: &mut Vec<u8>, now: Timestamp, data: &[u8]) {
    encode_request(out, now, UPDATE_DESTINATION, data);
}

/// Appends the Fulfill that says yes to either request.
pub fn encode_acceptance(out: &mut Vec<u8>) {
    encode_fulfill(out, &PEER_FULFILLMENT, &[]);
}

/// What stands before the routes of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpdateHead<'a> {
    pub table_id: TableId,
    /// The next epoch of the table as it is; `to_epoch` is lower when not all fits into one update.
    pub current_epoch: u32,
    /// The update says all that happened from this epoch on,
    pub from_epoch: u32,
    /// and before this one.
    pub to_epoch: u32,
    /// How long the routes are good without another update, in milliseconds.
    pub hold_down_ms: u32,
    /// Who tells: the first hop of every path.
    pub speaker: Address<'a>,
}

/// The data of an update, borrowed from the bytes it arrived in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update<'a> {
    pub head: UpdateHead<'a>,
    /// Added, or in the place of others.
    pub new_routes: Routes<'a>,
    /// Prefixes that lead nowhere any more. They go first: a prefix in both lists leads somewhere.
    pub withdrawn: Texts<'a>,
}

impl<'a> Update<'a> {
    /// Reads the data of an update.
    pub fn parse(data: &'a [u8]) -> Result<Self, Malformed> {
        if data.len() > DATA_BYTES_MAX {
            return Err(Malformed::TooLong);
        }
        let mut reader = Reader::new(data);
        let head = UpdateHead {
            table_id: *reader.read_array()?,
            current_epoch: reader.read_u32()?,
            from_epoch: reader.read_u32()?,
            to_epoch: reader.read_u32()?,
            hold_down_ms: reader.read_u32()?,
            speaker: Address::parse(reader.read_var_octets()?)?,
        };
        if head.from_epoch > head.to_epoch {
            return Err(Malformed::EpochsReversed);
        }
        Ok(Self {
            head,
            new_routes: Routes::read(&mut reader)?,
            withdrawn: Texts::read(&mut reader, "withdrawn prefixes", WITHDRAWN_MAX)?,
        })
    }

    /// Whether it only says that the neighbour is there.
    pub const fn is_heartbeat(&self) -> bool {
        self.new_routes.is_empty() && self.withdrawn.is_empty()
    }
}

/// The new routes of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routes<'a> {
    /// Without the count.
    bytes: &'a [u8],
    count: usize,
}

impl<'a> Routes<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let count = read_count(reader, ROUTE_BYTES_MIN, "new routes", ROUTES_MAX)?;
        let bytes = walk(reader, count, |reader| Route::read(reader).map(drop))?;
        Ok(Self { bytes, count })
    }

    pub const fn len(&self) -> usize {
        self.count
    }

    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = Route<'a>> + use<'a> {
        let mut reader = Reader::new(self.bytes);
        (0..self.count).map(move |_| Route::read(&mut reader).expect("walked when it was parsed"))
    }
}

/// A route that a neighbour told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route<'a> {
    /// Perhaps no prefix at all.
    pub prefix: &'a [u8],
    /// The addresses of the nodes on the way, the nearest first; perhaps empty, perhaps none are addresses.
    pub path: Texts<'a>,
    /// Nobody verifies it.
    pub auth: &'a [u8; AUTH_BYTES],
    pub props: Props<'a>,
}

impl<'a> Route<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(Self {
            prefix: reader.read_var_octets()?,
            path: Texts::read(reader, "hops in a path", HOPS_MAX)?,
            auth: reader.read_array()?,
            props: Props::read(reader)?,
        })
    }
}

/// A list of texts, which may be none: nothing but their lengths was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Texts<'a> {
    /// Without the count.
    bytes: &'a [u8],
    count: usize,
}

impl<'a> Texts<'a> {
    fn read(reader: &mut Reader<'a>, what: &'static str, max: usize) -> Result<Self, Malformed> {
        let count = read_count(reader, TEXT_BYTES_MIN, what, max)?;
        let bytes = walk(reader, count, |reader| Ok(reader.read_var_octets().map(drop)?))?;
        Ok(Self { bytes, count })
    }

    /// From the texts alone, as [`Self::as_bytes`] gives them: for who keeps a path.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self, OerError> {
        let mut reader = Reader::new(bytes);
        let mut count = 0;
        while !reader.is_empty() {
            reader.read_var_octets()?;
            count += 1;
        }
        Ok(Self { bytes, count })
    }

    /// The texts as they stand in the packet, each with its length, without the count.
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub const fn len(&self) -> usize {
        self.count
    }

    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut reader = Reader::new(self.bytes);
        (0..self.count).map(move |_| reader.read_var_octets().expect("walked when it was parsed"))
    }
}

/// The properties of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Props<'a> {
    /// Without the count.
    bytes: &'a [u8],
    count: usize,
}

/// One property. The flags, from the highest bit: optional, transitive, partial, UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prop<'a> {
    pub flags: u8,
    pub id: u16,
    pub value: &'a [u8],
}

impl<'a> Props<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let count = read_count(reader, PROP_BYTES_MIN, "properties of a route", PROPS_MAX)?;
        let bytes = walk(reader, count, |reader| Prop::read(reader).map(drop))?;
        Ok(Self { bytes, count })
    }

    pub const fn len(&self) -> usize {
        self.count
    }

    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = Prop<'a>> + use<'a> {
        let mut reader = Reader::new(self.bytes);
        (0..self.count).map(move |_| Prop::read(&mut reader).expect("walked when it was parsed"))
    }
}

impl<'a> Prop<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(Self {
            flags: reader.read_u8()?,
            id: reader.read_u16()?,
            value: reader.read_var_octets()?,
        })
    }
}

fn read_count(reader: &mut Reader<'_>, bytes_min: usize, what: &'static str, max: usize) -> Result<usize, Malformed> {
    let count = reader.read_count(bytes_min)?;
    if count > max {
        Err(Malformed::TooMany { what, max })
    } else {
        Ok(count)
    }
}

/// The bytes of `count` elements, each of which was read once.
fn walk<'a>(
    reader: &mut Reader<'a>,
    count: usize,
    mut read: impl FnMut(&mut Reader<'a>) -> Result<(), Malformed>,
) -> Result<&'a [u8], Malformed> {
    let bytes = reader.remaining();
    let begin = reader.position();
    for _ in 0..count {
        read(reader)?;
    }
    Ok(&bytes[..reader.position() - begin])
}

/// A route to tell: `path` follows the speaker. Properties are not told on, because none is defined.
#[derive(Debug, Clone, Copy)]
pub struct NewRoute<'a> {
    pub prefix: &'a str,
    pub path: Texts<'a>,
    pub auth: &'a [u8; AUTH_BYTES],
}

/// Writes an update route by route, so that whoever tells routes can stop when it is long enough.
pub struct UpdateWriter<'a> {
    speaker: Address<'a>,
    new_routes: Vec<u8>,
    new_count: usize,
    withdrawn: Vec<u8>,
    withdrawn_count: usize,
}

impl<'a> UpdateWriter<'a> {
    pub const fn new(speaker: Address<'a>) -> Self {
        Self {
            speaker,
            new_routes: Vec::new(),
            new_count: 0,
            withdrawn: Vec::new(),
            withdrawn_count: 0,
        }
    }

    /// Bytes of the data so far.
    pub const fn data_bytes(&self) -> usize {
        let speaker_bytes = self.speaker.as_bytes().len();
        UPDATE_FIXED_BYTES
            + length_size(speaker_bytes)
            + speaker_bytes
            + COUNT_BYTES_MAX
            + self.new_routes.len()
            + COUNT_BYTES_MAX
            + self.withdrawn.len()
    }

    /// New routes and withdrawn prefixes so far.
    pub const fn len(&self) -> usize {
        self.new_count + self.withdrawn_count
    }

    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells a route; the speaker is put before its path.
    pub fn announce(&mut self, route: &NewRoute<'_>) {
        let out = &mut self.new_routes;
        write_var_octets(out, route.prefix.as_bytes());
        write_var_uint(out, 1 + route.path.len() as u64);
        write_var_octets(out, self.speaker.as_bytes());
        out.extend_from_slice(route.path.as_bytes());
        out.extend_from_slice(route.auth);
        write_var_uint(out, 0);
        self.new_count += 1;
    }

    pub fn withdraw(&mut self, prefix: &str) {
        write_var_octets(&mut self.withdrawn, prefix.as_bytes());
        self.withdrawn_count += 1;
    }

    /// Appends the data to `out`.
    ///
    /// # Panics
    /// If the speaker of `head` is not the one that the writer was made with.
    pub fn finish(self, head: &UpdateHead<'_>, out: &mut Vec<u8>) {
        assert_eq!(head.speaker, self.speaker, "the paths begin with who speaks");
        out.reserve(self.data_bytes());
        out.extend_from_slice(&head.table_id);
        for number in [head.current_epoch, head.from_epoch, head.to_epoch, head.hold_down_ms] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        write_var_octets(out, head.speaker.as_bytes());
        write_var_uint(out, self.new_count as u64);
        out.extend_from_slice(&self.new_routes);
        write_var_uint(out, self.withdrawn_count as u64);
        out.extend_from_slice(&self.withdrawn);
    }
}

/// A count of up to 65,535, and its length.
const COUNT_BYTES_MAX: usize = 3;
const _: () = assert!(ROUTES_MAX <= 0xffff && WITHDRAWN_MAX <= 0xffff);

/// Bytes that a route takes in an update, at most: `path_bytes` without the speaker.
pub const fn route_bytes_max(prefix_bytes: usize, speaker_bytes: usize, path_bytes: usize) -> usize {
    length_size(prefix_bytes)
        + prefix_bytes
        + COUNT_BYTES_MAX
        + length_size(speaker_bytes)
        + speaker_bytes
        + path_bytes
        + AUTH_BYTES
        + 2
}

#[cfg(test)]
mod tests {
    use super::super::packet::{Fulfill, Prepare};
    use super::super::peer::check_request;
    use super::*;
    use crate::wire::hex;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn show(texts: Texts<'_>) -> String {
        let texts: Vec<_> = texts.iter().map(|text| text.escape_ascii().to_string()).collect();
        texts.join(" ")
    }

    /// `table-beginning current from to hold speaker`
    fn show_head(update: &Update<'_>) -> String {
        let head = &update.head;
        format!(
            "{:02x}{:02x} {} {} {} {} {}",
            head.table_id[0],
            head.table_id[1],
            head.current_epoch,
            head.from_epoch,
            head.to_epoch,
            head.hold_down_ms,
            head.speaker
        )
    }

    /// `prefix [path] auth-beginning`
    fn show_routes(update: &Update<'_>) -> String {
        let show = |route: Route<'_>| {
            let prefix = route.prefix.escape_ascii();
            format!(
                "{prefix} [{}] {:02x}{:02x}",
                show(route.path),
                route.auth[0],
                route.auth[1]
            )
        };
        update.new_routes.iter().map(show).collect::<Vec<_>>().join(", ")
    }

    const CONTROL: &str = "0c6c0000000000000000323031353036313630303031303030303066687aadf862bd776c8fc18b8e9f8e2008\
        9714856ee233b3902a591d0d5f292512706565722e726f7574652e636f6e74726f6c1f0170d1a134a0df4f47964f6e19e2ab37900000\
        0020010203666f6f03626172";
    const HEARTBEAT: &str = "0c7e0000000000000000323031353036313630303031303030303066687aadf862bd776c8fc18b8e9f8e2008\
        9714856ee233b3902a591d0d5f292511706565722e726f7574652e7570646174653221e55f8eabcd4e979ab9bf0ff00a224c00000034\
        0000003400000034000075300d6578616d706c652e616c69636501000100";
    const ROUTES: &str = "0c8201520000000000000000323031353036313630303031303030303066687aadf862bd776c8fc18b8e9f8e20\
        089714856ee233b3902a591d0d5f292511706565722e726f7574652e757064617465820104bffbf6ad0ddc4d3ba1e5b4f0537365bd00\
        0000340000002e00000032000075300d6578616d706c652e616c69636501020f6578616d706c652e7072656669783101010f6578616d\
        706c652e707265666978317a6c7d85867c46a2fabfad1afa7a4a5e229ce574fcce63f5edeedfc03f8468ea01000f6578616d706c652e\
        707265666978320102126578616d706c652e636f6e6e6563746f72310f6578616d706c652e707265666978322b08e53fbcc17c5f1bd5\
        4ae0d9ad7ba39a5f9a7b126ca9b5c0945609a35324cc01025000000b68656c6c6f20776f726c64e0000104a0a0a0a001020f6578616d\
        706c652e707265666978330f6578616d706c652e70726566697834";
    const UNASKED: &str = "46273eae8f1a9fcbf3babfd195439c93000000030000000200000003000075300c746573742e7061722e6b6964\
        010208746573742e70617201010c746573742e7061722e6b696466687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d\
        0d5f292501000a746573742e706565723101010c746573742e7061722e6b696466687aadf862bd776c8fc18b8e9f8e20089714856ee2\
        33b3902a591d0d5f292501000100";
    const OWN: &str = "00112233445566778899aabbccddeeff0000000100000000000000010000afc809746573742e61636d65010109746573\
        742e61636d65010109746573742e61636d6566687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f292501000100";

    #[test]
    fn controls_are_read_and_written() {
        let bytes = hex(CONTROL);
        let prepare = Prepare::parse(&bytes).unwrap();
        let sent_at = prepare.expires_at().minus_ms(60_000);
        assert_eq!(prepare.destination(), CONTROL_DESTINATION);
        assert_eq!(check_request(&prepare, sent_at), Ok(()));
        let control = Control {
            mode: Mode::Sync,
            table_id: *hex("70d1a134a0df4f47964f6e19e2ab3790").first_chunk().unwrap(),
            epoch: 32,
        };
        assert_eq!(Control::parse(prepare.data()), Ok(control), "features are walked over");
        let mut written = Vec::new();
        control.encode(&mut written, sent_at);
        let written = Prepare::parse(&written).unwrap();
        assert_eq!(written.expires_at(), prepare.expires_at());
        assert_eq!(Control::parse(written.data()), Ok(control));

        let first = hex("0100000000000000000000000000000000000000000100");
        let control = Control::parse(&first).unwrap();
        assert_eq!(
            (control.mode, control.table_id, control.epoch),
            (Mode::Sync, NO_TABLE, 0)
        );
        let mut written = Vec::new();
        control.encode_data(&mut written);
        assert_eq!(written, first);
    }

    #[test]
    fn updates_are_read() {
        for (packet, head, routes, withdrawn) in [
            (HEARTBEAT, "21e5 52 52 52 30000 example.alice", "", ""),
            (
                ROUTES,
                "bffb 52 46 50 30000 example.alice",
                "example.prefix1 [example.prefix1] 7a6c, \
                 example.prefix2 [example.connector1 example.prefix2] 2b08",
                "example.prefix3 example.prefix4",
            ),
        ] {
            let bytes = hex(packet);
            let prepare = Prepare::parse(&bytes).unwrap();
            assert_eq!(prepare.destination(), UPDATE_DESTINATION);
            let update = Update::parse(prepare.data()).unwrap();
            assert_eq!(show_head(&update), head);
            assert_eq!(show_routes(&update), routes);
            assert_eq!(show(update.withdrawn), withdrawn);
            assert_eq!(update.is_heartbeat(), routes.is_empty());
            let with_more = [prepare.data(), b"from the future"].concat();
            assert_eq!(Update::parse(&with_more), Ok(update));
        }
        let unasked = hex(UNASKED);
        let update = Update::parse(&unasked).unwrap();
        assert_eq!(show_head(&update), "4627 3 2 3 30000 test.par.kid");
        assert_eq!(
            show_routes(&update),
            "test.par [test.par.kid] 6668, test.peer1 [test.par.kid] 6668"
        );
    }

    #[test]
    fn properties_are_read() {
        let bytes = hex(ROUTES);
        let update = Update::parse(Prepare::parse(&bytes).unwrap().data()).unwrap();
        let props: Vec<_> = update.new_routes.iter().map(|route| route.props).collect();
        assert!(props[0].is_empty());
        let read: Vec<_> = props[1].iter().map(|prop| (prop.flags, prop.id, prop.value)).collect();
        assert_eq!(
            read,
            [(0x50, 0, &b"hello world"[..]), (0xe0, 1, &[0xa0, 0xa0, 0xa0, 0xa0][..])]
        );
        assert_eq!(props[1].len(), 2);
    }

    #[test]
    fn an_own_address_is_told_as_everybody_does() {
        let bytes = hex(OWN);
        let head = UpdateHead {
            table_id: *bytes.first_chunk().unwrap(),
            current_epoch: 1,
            from_epoch: 0,
            to_epoch: 1,
            hold_down_ms: 45_000,
            speaker: Address::from_static("test.acme"),
        };
        let mut writer = UpdateWriter::new(head.speaker);
        writer.announce(&NewRoute {
            prefix: "test.acme",
            path: Texts::default(),
            auth: &super::super::packet::PEER_CONDITION,
        });
        let bytes_max = writer.data_bytes();
        let mut written = Vec::new();
        writer.finish(&head, &mut written);
        assert_eq!(written, bytes);
        assert!(bytes_max >= written.len());
    }

    #[test]
    fn what_implementations_write_differently_is_read_alike() {
        // An own address with an empty path, and a count with a leading zero.
        let head = "46273eae8f1a9fcbf3babfd195439c93000000030000000000000003000075300c746573742e7061722e6b6964";
        let auth = "00".repeat(32);
        for count in ["0100", "020000"] {
            let bytes = hex(&format!(
                "{head}01010c746573742e7061722e6b6964{count}{auth}{count}{count}"
            ));
            let update = Update::parse(&bytes).unwrap();
            assert_eq!(show_routes(&update), "test.par.kid [] 0000", "{count}");
            assert!(update.withdrawn.is_empty());
        }
    }

    #[test]
    fn the_answer_is_zeros() {
        let mut out = Vec::new();
        encode_acceptance(&mut out);
        assert_eq!(out, hex(&format!("0d21{}00", "00".repeat(32))));
        assert_eq!(Fulfill::parse(&out).unwrap().data(), b"");
    }

    #[test]
    fn malformed_data_is_refused() {
        let control = hex("01010100003b0000000101010101010101010100000501000000003b");
        assert_eq!(Control::parse(&control), Err(OerError::CountTooLarge.into()));
        let mode = hex("0200000000000000000000000000000000000000000100");
        assert_eq!(Control::parse(&mode), Err(Malformed::Mode(2)));
        assert_eq!(Control::parse(&mode[..21]), Err(Malformed::Mode(2)));
        assert_eq!(Control::parse(&[]), Err(OerError::Truncated.into()));
        assert!(Update::parse(&hex("0affffffff9f9f9f9f310aff0a9f9f9f2effffff")).is_err());

        let own = hex(OWN);
        let changed = |at: usize, byte: u8| {
            let mut bytes = own.clone();
            bytes[at] = byte;
            bytes
        };
        for (bytes, error) in [
            (changed(23, 9), Malformed::EpochsReversed),
            (changed(33, b'x'), AddressError::UnknownScheme.into()),
            (changed(43, 9), OerError::CountTooLarge.into()),
            (changed(55, 255), OerError::CountTooLarge.into()),
            (vec![0; DATA_BYTES_MAX + 1], Malformed::TooLong),
        ] {
            assert_eq!(Update::parse(&bytes), Err(error), "{bytes:02x?}");
        }
        for end in 0..own.len() {
            assert!(Update::parse(&own[..end]).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn more_than_the_limits_is_refused() {
        let head = hex("46273eae8f1a9fcbf3babfd195439c93000000030000000000000003000075300c746573742e7061722e6b6964");
        let update = |routes: usize, hops: usize, props: usize, withdrawn: usize| {
            let mut data = head.clone();
            write_var_uint(&mut data, routes as u64);
            for _ in 0..routes {
                write_var_octets(&mut data, b"");
                write_var_uint(&mut data, hops as u64);
                data.extend(std::iter::repeat_n(0, hops));
                data.extend([0; AUTH_BYTES]);
                write_var_uint(&mut data, props as u64);
                data.extend(std::iter::repeat_n(0, 4 * props));
            }
            write_var_uint(&mut data, withdrawn as u64);
            data.extend(std::iter::repeat_n(0, withdrawn));
            data
        };
        let accepted = update(1, HOPS_MAX, PROPS_MAX, WITHDRAWN_MAX);
        let parsed = Update::parse(&accepted).unwrap();
        let route = parsed.new_routes.iter().next().unwrap();
        assert_eq!((route.path.len(), route.props.len()), (HOPS_MAX, PROPS_MAX));
        assert_eq!(parsed.withdrawn.len(), WITHDRAWN_MAX);
        for (data, max) in [
            (update(1, HOPS_MAX + 1, 0, 0), HOPS_MAX),
            (update(1, 0, PROPS_MAX + 1, 0), PROPS_MAX),
            (update(0, 0, 0, WITHDRAWN_MAX + 1), WITHDRAWN_MAX),
        ] {
            assert!(matches!(Update::parse(&data), Err(Malformed::TooMany { max: limit, .. }) if limit == max));
        }
        let many = update(800, 0, 0, 0);
        assert_eq!(Update::parse(&many).unwrap().new_routes.iter().count(), 800);
        let mut control = hex("01000000000000000000000000000000000000000001");
        control.push(65);
        control.extend([0; 65]);
        assert!(matches!(
            Control::parse(&control),
            Err(Malformed::TooMany { max: 64, .. })
        ));
    }

    fn any_address() -> impl Strategy<Value = String> {
        "(g|test|example)(\\.[a-zA-Z0-9_~-]{1,12}){1,5}"
    }

    proptest! {
        #[test]
        fn updates_round_trip(
            table_id: TableId,
            numbers: (u32, u32, u32),
            speaker in any_address(),
            routes in vec((any_address(), vec(any_address(), 0..6), any::<[u8; AUTH_BYTES]>()), 0..12),
            withdrawn in vec(any_address(), 0..12),
        ) {
            let speaker = Address::parse(speaker.as_bytes()).unwrap();
            let (from, to, hold_down_ms) = (numbers.0.min(numbers.1), numbers.0.max(numbers.1), numbers.2);
            let head = UpdateHead {
                table_id, current_epoch: to, from_epoch: from, to_epoch: to, hold_down_ms, speaker,
            };
            let mut writer = UpdateWriter::new(speaker);
            for (prefix, path, auth) in &routes {
                let mut bytes = Vec::new();
                path.iter().for_each(|hop| write_var_octets(&mut bytes, hop.as_bytes()));
                let before = writer.data_bytes();
                writer.announce(&NewRoute { prefix, path: Texts::from_bytes(&bytes).unwrap(), auth });
                let room = route_bytes_max(prefix.len(), speaker.as_bytes().len(), bytes.len());
                prop_assert!(writer.data_bytes() - before <= room);
            }
            withdrawn.iter().for_each(|prefix| writer.withdraw(prefix));
            prop_assert_eq!(writer.len(), routes.len() + withdrawn.len());
            let bytes_max = writer.data_bytes();
            let mut data = Vec::new();
            writer.finish(&head, &mut data);
            prop_assert!(data.len() <= bytes_max);

            let update = Update::parse(&data).unwrap();
            prop_assert_eq!(update.head, head);
            let read: Vec<_> = update.new_routes.iter().map(|route| {
                let path: Vec<_> = route.path.iter().map(|hop| String::from_utf8(hop.to_vec()).unwrap()).collect();
                (String::from_utf8(route.prefix.to_vec()).unwrap(), path, *route.auth)
            }).collect();
            let with_speaker: Vec<_> = routes.into_iter().map(|(prefix, mut path, auth)| {
                path.insert(0, speaker.as_str().to_owned());
                (prefix, path, auth)
            }).collect();
            prop_assert_eq!(read, with_speaker);
            let read: Vec<_> = update.withdrawn.iter().map(|text| text.to_vec()).collect();
            let withdrawn: Vec<_> = withdrawn.into_iter().map(String::into_bytes).collect();
            prop_assert_eq!(read, withdrawn);
        }

        #[test]
        fn controls_round_trip(is_sync: bool, table_id: TableId, epoch: u32) {
            let mode = if is_sync { Mode::Sync } else { Mode::Idle };
            let control = Control { mode, table_id, epoch };
            let mut data = Vec::new();
            control.encode_data(&mut data);
            prop_assert_eq!(Control::parse(&data), Ok(control));
        }

        #[test]
        fn no_data_panics(
            noise in vec(any::<u8>(), 0..300),
            changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let packet = hex(ROUTES);
            let mut nearly = Prepare::parse(&packet).unwrap().data().to_vec();
            for (at, byte) in changes {
                let at = at.index(nearly.len());
                nearly[at] = byte;
            }
            for data in [noise, nearly] {
                let _ = Control::parse(&data);
                if let Ok(update) = Update::parse(&data) {
                    for route in update.new_routes.iter() {
                        prop_assert_eq!(route.path.iter().count(), route.path.len());
                        prop_assert_eq!(route.props.iter().count(), route.props.len());
                    }
                    prop_assert_eq!(update.withdrawn.iter().count(), update.withdrawn.len());
                }
            }
        }
    }
}
