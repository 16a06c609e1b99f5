use std::net::{Ipv4Addr, Ipv6Addr};

use maxminddb::Reader;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::record::Record;

#[test]
fn builtin_is_clearly_named_and_always_the_same() {
    let reader = Reader::from_source(builtin()).unwrap();
    assert_eq!(reader.metadata().database_type, "Selvedge-Test-Country");
    assert_eq!(reader.metadata().build_epoch, 1_767_225_600);
    assert_eq!(reader.metadata().ip_version, 6);
    reader.verify().unwrap();
    assert_eq!(builtin(), builtin());
}

#[test]
fn malformed_networks_are_refused() {
    for cidr in ["", "192.0.2.0", "192.0.2.0/33", "2001:db8::/129", "192.0.2/24", "192.0.2.0/-1", "a/8", "192.0.2.0/ 8"]
    {
        let error = Writer::new("Test").network(cidr, Location::default()).unwrap_err();
        assert_eq!(error, WriteError::Network(cidr.to_owned()));
    }
    let error = Writer::new("Test").addresses(Addresses::V4).network("2001:db8::/32", Location::default()).unwrap_err();
    assert_eq!(error, WriteError::Family("2001:db8::/32".to_owned()));
}

#[test]
fn longest_prefix_wins_in_any_order_and_later_wins_over_equal() {
    let asn = |asn| Location { asn: Some(asn), ..Location::default() };
    let bytes = Writer::new("Test")
        .network("198.51.100.128/25", asn(3))
        .and_then(|writer| writer.network("198.51.100.0/24", asn(1)))
        .and_then(|writer| writer.network("198.51.100.0/24", asn(2)))
        .and_then(|writer| writer.to_bytes())
        .unwrap();
    let reader = Reader::from_source(bytes).unwrap();
    for (address, expected) in [("198.51.100.1", Some(2)), ("198.51.100.200", Some(3)), ("198.51.101.1", None)] {
        assert_eq!(find(&reader, address.parse().unwrap()).and_then(|location| location.asn), expected, "{address}");
    }
}

#[test]
fn strings_of_every_size_class_come_back() {
    for length in [0, 1, 28, 29, 284, 285, 65_820, 65_821, 70_000] {
        let location = Location { city: Some("x".repeat(length)), asn: Some(1), ..Location::default() };
        let bytes = Writer::new("Test").network("192.0.2.0/24", location).and_then(|writer| writer.to_bytes()).unwrap();
        let found = find(&Reader::from_source(bytes).unwrap(), IpAddr::from([192, 0, 2, 1])).unwrap();
        assert_eq!(found.city.map_or(0, |city| city.len()), length);
    }
}

#[test]
fn data_beyond_the_record_size_is_refused() {
    let huge = Location { city: Some("x".repeat((1 << 24) - 100)), ..Location::default() };
    let writer = Writer::new("Test").network("192.0.2.0/24", huge).unwrap();
    assert!(matches!(writer.to_bytes(), Err(WriteError::TooLarge { bits: 24, .. })));
    assert!(writer.record_size(RecordSize::Bits28).to_bytes().is_ok());
}

/// A 28-bit record keeps its upper four bits in a byte shared with its neighbour; only data beyond 16 MiB sets them.
#[test]
fn upper_nibbles_of_28_bit_records_are_read_back() {
    let filler = Location { city: Some("x".repeat(9 << 20)), asn: Some(1), ..Location::default() };
    let other = Location { city: Some("y".repeat(9 << 20)), asn: Some(2), ..Location::default() };
    let last = Location { asn: Some(3), ..Location::default() };
    let bytes = Writer::new("Test")
        .record_size(RecordSize::Bits28)
        .network("0.0.0.0/4", filler)
        .and_then(|writer| writer.network("16.0.0.0/4", other))
        .and_then(|writer| writer.network("192.0.2.0/25", last.clone()))
        .and_then(|writer| writer.network("192.0.2.128/25", Location { asn: Some(4), ..last.clone() }))
        .and_then(|writer| writer.to_bytes())
        .unwrap();
    let reader = Reader::from_source(bytes).unwrap();
    assert_eq!(find(&reader, IpAddr::from([192, 0, 2, 1])), Some(last));
    assert_eq!(find(&reader, IpAddr::from([192, 0, 2, 129])).and_then(|location| location.asn), Some(4));
}

proptest! {
    /// What maxminddb reads from a generated database is what a search through the list of networks finds.
    #[test]
    fn every_generated_database_reads_back(
        networks in vec((network(), location()), 0..24),
        others in vec(address(), 8),
        record_size in prop_oneof![Just(RecordSize::Bits24), Just(RecordSize::Bits28), Just(RecordSize::Bits32)],
        layout in prop_oneof![Just(Layout::Nested), Just(Layout::Flat)],
        addresses in prop_oneof![Just(Addresses::V4), Just(Addresses::V6)],
    ) {
        let networks: Vec<_> =
            networks.into_iter().filter(|((address, _), _)| addresses == Addresses::V6 || address.is_ipv4()).collect();
        let mut writer = Writer::new("Test").record_size(record_size).layout(layout).addresses(addresses);
        for ((address, prefix), location) in &networks {
            writer = writer.network(&format!("{address}/{prefix}"), location.clone()).unwrap();
        }
        let reader = Reader::from_source(writer.to_bytes().unwrap()).unwrap();
        reader.verify().unwrap();

        let edges = networks.iter().flat_map(|((address, prefix), _)| edges(*address, *prefix));
        for address in edges.chain(others).filter(|address| addresses == Addresses::V6 || address.is_ipv4()) {
            let expected = networks
                .iter()
                .filter(|((network, prefix), _)| contains(*network, *prefix, address))
                .max_by_key(|((network, prefix), _)| prefix + if network.is_ipv4() { 96 } else { 0 }) // the last of equals
                .map(|(_, location)| location.clone());
            prop_assert_eq!(find(&reader, address), expected, "{}", address);
        }
    }

    /// Damage leads to an error or to a wrong answer, never to a panic or an endless loop.
    #[test]
    fn damaged_databases_do_no_harm(
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in option::of(any::<prop::sample::Index>()),
        addresses in vec(address(), 8),
    ) {
        let mut bytes = builtin();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(reader) = Reader::from_source(bytes) {
            for address in addresses.into_iter().chain([IpAddr::from([192, 0, 2, 1]), IpAddr::from([203, 0, 113, 1])]) {
                if address.is_ipv4() || reader.metadata().ip_version == 6 {
                    let _ = reader.lookup(address).and_then(|found| found.decode::<Record<'_>>().map(|_| ()));
                }
            }
        }
    }
}

fn find(reader: &Reader<Vec<u8>>, address: IpAddr) -> Option<Location> {
    reader.lookup(address).unwrap().decode::<Record<'_>>().unwrap().map(|record| record.to_location())
}

fn tree_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn contains(network: IpAddr, prefix: u32, address: IpAddr) -> bool {
    let prefix = prefix + if network.is_ipv4() { 96 } else { 0 };
    let shift = 128 - prefix;
    tree_bits(network).checked_shr(shift).unwrap_or(0) == tree_bits(address).checked_shr(shift).unwrap_or(0)
}

/// The first and last address of a network and their neighbours outside.
fn edges(address: IpAddr, prefix: u32) -> Vec<IpAddr> {
    match address {
        IpAddr::V4(address) => {
            let hosts = u32::MAX.checked_shr(prefix).unwrap_or(0);
            let (first, last) = (address.to_bits() & !hosts, address.to_bits() | hosts);
            [first, last, first.wrapping_sub(1), last.wrapping_add(1)]
                .map(Ipv4Addr::from_bits)
                .map(IpAddr::from)
                .to_vec()
        }
        IpAddr::V6(address) => {
            let hosts = u128::MAX.checked_shr(prefix).unwrap_or(0);
            let (first, last) = (address.to_bits() & !hosts, address.to_bits() | hosts);
            [first, last, first.wrapping_sub(1), last.wrapping_add(1)]
                .map(Ipv6Addr::from_bits)
                .map(IpAddr::from)
                .to_vec()
        }
    }
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::from(Ipv4Addr::from_bits(bits))),
        any::<u128>().prop_map(|bits| IpAddr::from(Ipv6Addr::from_bits(bits))),
        any::<u16>().prop_map(|bits| IpAddr::from(Ipv6Addr::from_bits(u128::from(bits)))), // below ::/96, where IPv4 is
    ]
}

fn network() -> impl Strategy<Value = (IpAddr, u32)> {
    address().prop_flat_map(|address| (Just(address), 0..=if address.is_ipv4() { 32_u32 } else { 128 }))
}

/// Locations as a database gives them back: with a country there is a continent.
fn location() -> impl Strategy<Value = Location> {
    let country = option::of("[A-Y][A-Z]".prop_map(|code| CountryCode::parse(&code).unwrap()));
    let continent = option::of(prop::sample::select(ContinentCode::ALL.to_vec()));
    let city = option::of("\\PC{1,40}");
    let coordinates = option::of((-90.0..=90.0, -180.0..=180.0));
    (country, continent, city, option::of(1..=u32::MAX), coordinates).prop_map(
        |(country, continent, city, asn, coordinates)| Location {
            country,
            continent: continent.or(country.and_then(CountryCode::continent)),
            city,
            asn,
            coordinates,
        },
    )
}
