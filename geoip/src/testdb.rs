//! A writer for small databases, for tests and for trying an edge without a licence key.
//!
//! It writes the MaxMind DB format 2.0 (search tree, data section, metadata) that every reader of the format accepts. It holds the
//! whole tree in memory and is meant for up to some hundred thousand networks.
//!
//! ```
//! use selvedge_geoip::testdb::Writer;
//! use selvedge_geoip::{CountryCode, Location};
//!
//! let germany = Location { country: CountryCode::parse("DE"), ..Location::default() };
//! let bytes = Writer::new("Example-Country").network("192.0.2.0/24", germany)?.to_bytes()?;
//! # assert!(!bytes.is_empty());
//! # Ok::<(), selvedge_geoip::testdb::WriteError>(())
//! ```

use std::collections::HashMap;
use std::net::IpAddr;

use crate::place::{ContinentCode, CountryCode};
use crate::record::Location;

/// The type that [`builtin`] carries in its metadata, so that nobody takes it for a real database.
pub const BUILTIN_TYPE: &str = "Selvedge-Test-Country";

/// When [`builtin`] says it was built: 2026-01-01T00:00:00Z, in seconds since 1970. Fixed, so that its bytes never change.
pub const BUILTIN_EPOCH: u64 = 1_767_225_600;

/// The networks of [`builtin`]: documentation ranges (RFC 5737, RFC 3849) and corners of loopback, which no client from outside can
/// have.
const BUILTIN: [(&str, &str, &str, f64, f64, u32); 7] = [
    ("192.0.2.0/24", "DE", "Berlin", 52.5200, 13.4050, 64496),
    ("198.51.100.0/24", "US", "Washington", 38.9072, -77.0369, 64497),
    ("203.0.113.0/24", "JP", "Tokyo", 35.6895, 139.6917, 64498),
    ("2001:db8:1::/48", "FR", "Paris", 48.8566, 2.3522, 64499),
    ("127.64.0.0/16", "DE", "Berlin", 52.5200, 13.4050, 64496),
    ("127.65.0.0/16", "US", "Washington", 38.9072, -77.0369, 64497),
    ("127.66.0.0/16", "JP", "Tokyo", 35.6895, 139.6917, 64498),
];

/// The built-in test database.
///
/// | network | country | continent | city | ASN (RFC 5398) |
/// |---|---|---|---|---|
/// | `192.0.2.0/24` | DE | EU | Berlin | 64496 |
/// | `198.51.100.0/24` | US | NA | Washington | 64497 |
/// | `203.0.113.0/24` | JP | AS | Tokyo | 64498 |
/// | `2001:db8:1::/48` | FR | EU | Paris | 64499 |
///
/// | `127.64.0.0/16` | DE | EU | Berlin | 64496 |
/// | `127.65.0.0/16` | US | NA | Washington | 64497 |
/// | `127.66.0.0/16` | JP | AS | Tokyo | 64498 |
///
/// Each has its city's coordinates. The three loopback networks make it possible to come from somewhere on one machine
/// (`curl --interface 127.64.0.1`). Nothing else is in it; the rest of loopback is in no country.
#[must_use]
pub fn builtin() -> Vec<u8> {
    let mut writer = Writer::new(BUILTIN_TYPE).build_epoch(BUILTIN_EPOCH);
    for (network, country, city, latitude, longitude, asn) in BUILTIN {
        let country = CountryCode::parse(country);
        let location = Location {
            country,
            continent: country.and_then(CountryCode::continent),
            city: Some(city.to_owned()),
            asn: Some(asn),
            coordinates: Some((latitude, longitude)),
        };
        writer = writer.network(network, location).expect("the table above has well-formed networks");
    }
    writer.to_bytes().expect("seven networks fit any record size")
}

/// Which addresses the tree is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Addresses {
    /// IPv6, with IPv4 below `::/96`: what most databases are.
    #[default]
    V6,
    /// IPv4 only.
    V4,
}

/// How wide a record of the search tree is; a node has two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RecordSize {
    /// 24 bits: nodes and data up to 16 Mi together.
    #[default]
    Bits24,
    /// 28 bits, the two upper nibbles sharing a byte: up to 256 Mi.
    Bits28,
    /// 32 bits.
    Bits32,
}

impl RecordSize {
    const fn bits(self) -> u16 {
        match self {
            RecordSize::Bits24 => 24,
            RecordSize::Bits28 => 28,
            RecordSize::Bits32 => 32,
        }
    }
}

/// How a record spells what it knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Nested maps, as in GeoIP2 and GeoLite2: `{"country": {"iso_code": "DE"}}`.
    #[default]
    Nested,
    /// One flat map, as in ip-location-db: `{"country_code": "DE"}`.
    Flat,
}

/// Why a test database cannot be written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The text is not an address, a slash and a prefix length that the address can have.
    #[error("{0:?} is not a network such as 192.0.2.0/24")]
    Network(String),
    /// An IPv6 network was given for a database of [`Addresses::V4`].
    #[error("an IPv4 database cannot hold {0:?}")]
    Family(String),
    /// Nodes and data together are more than a record of this width can number.
    #[error("{nodes} nodes and {data} bytes of data do not fit into {bits}-bit records")]
    TooLarge {
        /// Nodes in the search tree.
        nodes: usize,
        /// Bytes in the data section.
        data: usize,
        /// The width of a record.
        bits: u16,
    },
}

/// Collects networks and writes them as a database.
#[derive(Clone, Debug)]
pub struct Writer {
    database_type: String,
    build_epoch: u64,
    addresses: Addresses,
    record_size: RecordSize,
    layout: Layout,
    networks: Vec<Network>,
}

#[derive(Clone, Debug)]
struct Network {
    /// The address at the top of the 128 bits, so that bit 0 of the tree is the highest.
    bits: u128,
    prefix: u32,
    location: Location,
}

impl Writer {
    /// An empty IPv6 database of this type, with 24-bit records in the nested layout, built at [`BUILTIN_EPOCH`].
    #[must_use]
    pub fn new(database_type: &str) -> Writer {
        Writer {
            database_type: database_type.to_owned(),
            build_epoch: BUILTIN_EPOCH,
            addresses: Addresses::default(),
            record_size: RecordSize::default(),
            layout: Layout::default(),
            networks: Vec::new(),
        }
    }

    /// Sets the build time in the metadata, in seconds since 1970.
    #[must_use]
    pub fn build_epoch(mut self, seconds: u64) -> Writer {
        self.build_epoch = seconds;
        self
    }

    /// Sets which addresses the tree is over; to be called before the first network.
    #[must_use]
    pub fn addresses(mut self, addresses: Addresses) -> Writer {
        self.addresses = addresses;
        self
    }

    /// Sets the width of a record.
    #[must_use]
    pub fn record_size(mut self, record_size: RecordSize) -> Writer {
        self.record_size = record_size;
        self
    }

    /// Sets how records spell what they know.
    #[must_use]
    pub fn layout(mut self, layout: Layout) -> Writer {
        self.layout = layout;
        self
    }

    /// Adds a network in CIDR notation; bits after the prefix are ignored.
    ///
    /// The longest prefix wins, in whatever order networks are added; of two equal networks the later one wins.
    ///
    /// # Errors
    ///
    /// [`WriteError::Network`] when the text is no network, [`WriteError::Family`] for IPv6 in an IPv4 database.
    pub fn network(mut self, cidr: &str, location: Location) -> Result<Writer, WriteError> {
        let malformed = || WriteError::Network(cidr.to_owned());
        let (address, prefix) = cidr.split_once('/').ok_or_else(malformed)?;
        let address: IpAddr = address.parse().map_err(|_| malformed())?;
        let prefix: u32 = prefix.parse().map_err(|_| malformed())?;
        if prefix > if address.is_ipv4() { 32 } else { 128 } {
            return Err(malformed());
        }

        let (bits, prefix) = match (address, self.addresses) {
            (IpAddr::V4(address), Addresses::V4) => (u128::from(address.to_bits()) << 96, prefix),
            (IpAddr::V4(address), Addresses::V6) => (u128::from(address.to_bits()), prefix + 96),
            (IpAddr::V6(address), Addresses::V6) => (address.to_bits(), prefix),
            (IpAddr::V6(_), Addresses::V4) => return Err(WriteError::Family(cidr.to_owned())),
        };
        self.networks.push(Network { bits, prefix, location });
        Ok(self)
    }

    /// Writes the database.
    ///
    /// # Errors
    ///
    /// [`WriteError::TooLarge`] when the tree and its data need wider records.
    pub fn to_bytes(&self) -> Result<Vec<u8>, WriteError> {
        let mut data = DataSection::default();
        let mut tree = Tree::new();
        let mut by_prefix: Vec<&Network> = self.networks.iter().collect();
        by_prefix.sort_by_key(|network| network.prefix); // stable: of equals the later one is inserted last
        for network in by_prefix {
            tree.insert(network.bits, network.prefix, data.offset_of(&network.location, self.layout));
        }

        let nodes = tree.nodes.len();
        let too_large = || WriteError::TooLarge { nodes, data: data.bytes.len(), bits: self.record_size.bits() };
        let node_count = u32::try_from(nodes).map_err(|_| too_large())?;
        let largest = (1_u64 << self.record_size.bits()) - 1;
        if (nodes + SEPARATOR.len() + data.bytes.len()) as u64 > largest {
            return Err(too_large());
        }

        let mut out = Vec::new();
        for [left, right] in &tree.nodes {
            let [left, right] = [left, right].map(|slot| match slot {
                // The format's three meanings of a record: the next node, nothing (the node count), data (beyond it).
                Slot::Node(node) => *node,
                Slot::Empty => nodes,
                Slot::Data(offset) => nodes + SEPARATOR.len() + offset,
            });
            put_node(&mut out, left, right, self.record_size);
        }
        out.extend_from_slice(&SEPARATOR);
        out.extend_from_slice(&data.bytes);
        self.put_metadata(&mut out, node_count);
        Ok(out)
    }

    fn put_metadata(&self, out: &mut Vec<u8>, node_count: u32) {
        out.extend_from_slice(b"\xab\xcd\xefMaxMind.com");
        let ip_version = match self.addresses {
            Addresses::V4 => 4,
            Addresses::V6 => 6,
        };
        put_map(out, 9);
        put_string(out, "binary_format_major_version");
        put_unsigned(out, Type::Uint16, 2);
        put_string(out, "binary_format_minor_version");
        put_unsigned(out, Type::Uint16, 0);
        put_string(out, "build_epoch");
        put_unsigned(out, Type::Uint64, self.build_epoch);
        put_string(out, "database_type");
        put_string(out, &self.database_type);
        put_string(out, "description");
        put_map(out, 1);
        put_string(out, "en");
        put_string(out, "A generated test database; it says nothing about real addresses");
        put_string(out, "ip_version");
        put_unsigned(out, Type::Uint16, ip_version);
        put_string(out, "languages");
        put_control(out, Type::Array, 1);
        put_string(out, "en");
        put_string(out, "node_count");
        put_unsigned(out, Type::Uint32, u64::from(node_count));
        put_string(out, "record_size");
        put_unsigned(out, Type::Uint16, u64::from(self.record_size.bits()));
    }
}

/// The 16 zero bytes between the search tree and the data section.
const SEPARATOR: [u8; 16] = [0; 16];

/// A binary trie over the address bits.
struct Tree {
    nodes: Vec<[Slot; 2]>,
}

#[derive(Clone, Copy)]
enum Slot {
    Empty,
    Node(usize),
    /// An offset into the data section.
    Data(usize),
}

impl Tree {
    fn new() -> Tree {
        Tree { nodes: vec![[Slot::Empty; 2]] }
    }

    /// Sets everything below the prefix to the data. Shorter prefixes have to be inserted before longer ones.
    fn insert(&mut self, bits: u128, prefix: u32, data: usize) {
        if prefix == 0 {
            self.nodes[0] = [Slot::Data(data); 2];
            return;
        }
        let bit = |depth: u32| usize::from(bits >> (127 - depth) & 1 == 1);

        let mut node = 0;
        for depth in 0..prefix - 1 {
            node = match self.nodes[node][bit(depth)] {
                Slot::Node(next) => next,
                // What held for the whole subtree now holds for both of its halves.
                above @ (Slot::Empty | Slot::Data(_)) => {
                    self.nodes.push([above; 2]);
                    let next = self.nodes.len() - 1;
                    self.nodes[node][bit(depth)] = Slot::Node(next);
                    next
                }
            };
        }
        self.nodes[node][bit(prefix - 1)] = Slot::Data(data);
    }
}

#[allow(clippy::cast_possible_truncation, reason = "taking a number apart into bytes; to_bytes has checked its size")]
fn put_node(out: &mut Vec<u8>, left: usize, right: usize, size: RecordSize) {
    let [left, right] = [left as u32, right as u32].map(u32::to_be_bytes);
    match size {
        RecordSize::Bits24 => {
            out.extend_from_slice(&left[1..]);
            out.extend_from_slice(&right[1..]);
        }
        RecordSize::Bits28 => {
            out.extend_from_slice(&left[1..]);
            out.push(left[0] << 4 | right[0]);
            out.extend_from_slice(&right[1..]);
        }
        RecordSize::Bits32 => {
            out.extend_from_slice(&left);
            out.extend_from_slice(&right);
        }
    }
}

/// The records, each written once however many networks share it.
#[derive(Default)]
struct DataSection {
    bytes: Vec<u8>,
    offsets: HashMap<Vec<u8>, usize>,
}

impl DataSection {
    fn offset_of(&mut self, location: &Location, layout: Layout) -> usize {
        let mut record = Vec::new();
        match layout {
            Layout::Nested => put_nested(&mut record, location),
            Layout::Flat => put_flat(&mut record, location),
        }
        if let Some(offset) = self.offsets.get(&record) {
            return *offset;
        }
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(&record);
        self.offsets.insert(record, offset);
        offset
    }
}

fn put_nested(out: &mut Vec<u8>, location: &Location) {
    let Location { country, continent, city, asn, coordinates } = location;
    let fields = [country.is_some(), continent.is_some(), city.is_some(), asn.is_some(), coordinates.is_some()];
    put_map(out, fields.into_iter().filter(|is_set| *is_set).count());
    if let Some(asn) = asn {
        put_string(out, "autonomous_system_number");
        put_unsigned(out, Type::Uint32, u64::from(*asn));
    }
    if let Some(city) = city {
        put_string(out, "city");
        put_map(out, 1);
        put_string(out, "names");
        put_map(out, 1);
        put_string(out, "en");
        put_string(out, city);
    }
    if let Some(continent) = continent {
        put_string(out, "continent");
        put_map(out, 1);
        put_string(out, "code");
        put_string(out, continent.as_str());
    }
    if let Some(country) = country {
        put_string(out, "country");
        put_map(out, 1);
        put_string(out, "iso_code");
        put_string(out, country.as_str());
    }
    if let Some((latitude, longitude)) = coordinates {
        put_string(out, "location");
        put_map(out, 2);
        put_string(out, "latitude");
        put_double(out, *latitude);
        put_string(out, "longitude");
        put_double(out, *longitude);
    }
}

fn put_flat(out: &mut Vec<u8>, location: &Location) {
    let Location { country, continent, city, asn, coordinates } = location;
    let fields = [country.is_some(), continent.is_some(), city.is_some(), asn.is_some()];
    let coordinate_fields = if coordinates.is_some() { 2 } else { 0 };
    put_map(out, fields.into_iter().filter(|is_set| *is_set).count() + coordinate_fields);
    if let Some(asn) = asn {
        put_string(out, "asn");
        put_unsigned(out, Type::Uint32, u64::from(*asn));
    }
    for (key, text) in [
        ("city", city.as_deref()),
        ("continent_code", continent.map(ContinentCode::as_str)),
        ("country_code", country.as_ref().map(CountryCode::as_str)),
    ] {
        if let Some(text) = text {
            put_string(out, key);
            put_string(out, text);
        }
    }
    if let Some((latitude, longitude)) = coordinates {
        put_string(out, "latitude");
        put_double(out, *latitude);
        put_string(out, "longitude");
        put_double(out, *longitude);
    }
}

/// The format's type numbers; those from 8 on are written in a second byte.
#[derive(Clone, Copy)]
enum Type {
    String = 2,
    Double = 3,
    Uint16 = 5,
    Uint32 = 6,
    Map = 7,
    Uint64 = 9,
    Array = 11,
}

#[allow(clippy::cast_possible_truncation, reason = "taking a size apart into bytes; the branches bound it")]
fn put_control(out: &mut Vec<u8>, kind: Type, size: usize) {
    let (size_bits, size_bytes): (u8, &[u8]) = match size {
        0..29 => (size as u8, &[]),
        29..285 => (29, &[(size - 29) as u8]),
        285..65_821 => (30, &((size - 285) as u16).to_be_bytes()),
        _ => (31, &((size - 65_821) as u32).to_be_bytes()[1..]),
    };
    match kind as u8 {
        kind @ ..8 => out.push(kind << 5 | size_bits),
        extended => out.extend_from_slice(&[size_bits, extended - 7]),
    }
    out.extend_from_slice(size_bytes);
}

fn put_map(out: &mut Vec<u8>, entries: usize) {
    put_control(out, Type::Map, entries);
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    /// The format's longest string. No name comes near; what does is cut, because a size that wraps would ruin the file.
    const LONGEST: usize = 65_820 + (1 << 24);
    let text = &text.as_bytes()[..text.floor_char_boundary(LONGEST)];
    put_control(out, Type::String, text.len());
    out.extend_from_slice(text);
}

fn put_double(out: &mut Vec<u8>, number: f64) {
    put_control(out, Type::Double, 8);
    out.extend_from_slice(&number.to_be_bytes());
}

/// Unsigned numbers are written without their leading zero bytes.
fn put_unsigned(out: &mut Vec<u8>, kind: Type, number: u64) {
    let bytes = number.to_be_bytes();
    let significant = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
    put_control(out, kind, significant.len());
    out.extend_from_slice(significant);
}

#[cfg(test)]
mod tests;
