use std::fs;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use super::testdb::{Addresses, Layout, Writer};
use super::*;

#[test]
fn builtin_knows_the_documentation_ranges_and_nothing_else() {
    let geo = Geo::open(GeoSource::BuiltinTest).unwrap();
    for (address, expected) in [
        ("192.0.2.1", Some(("DE", "EU", "Berlin", 64496))),
        ("198.51.100.255", Some(("US", "NA", "Washington", 64497))),
        ("203.0.113.0", Some(("JP", "AS", "Tokyo", 64498))),
        ("2001:db8:1::1", Some(("FR", "EU", "Paris", 64499))),
        ("2001:db8:1:ffff:ffff:ffff:ffff:ffff", Some(("FR", "EU", "Paris", 64499))),
        ("2001:db8:2::1", None),
        ("192.0.3.0", None),
        ("127.0.0.1", None),
        ("::1", None),
        ("0.0.0.0", None),
        ("255.255.255.255", None),
    ] {
        let found = geo.lookup(ip(address));
        let found = found.as_ref().map(|location| {
            assert!(location.coordinates.is_some());
            let country = location.country.as_ref().unwrap().as_str();
            (country, location.continent.unwrap().as_str(), location.city.as_deref().unwrap(), location.asn.unwrap())
        });
        assert_eq!(found, expected, "{address}");
    }
    let metadata = geo.metadata();
    assert_eq!(metadata.database_type, testdb::BUILTIN_TYPE);
    assert_eq!((metadata.build_epoch, metadata.ip_version), (testdb::BUILTIN_EPOCH, 6));
    assert!(metadata.node_count > 100 && metadata.size > 0 && !metadata.is_mapped);
}

#[test]
fn mapped_ipv4_is_looked_up_as_ipv4() {
    let geo = Geo::open(GeoSource::BuiltinTest).unwrap();
    assert_eq!(geo.lookup(ip("::ffff:192.0.2.1")), geo.lookup(ip("192.0.2.1")));
    assert!(geo.lookup(ip("::ffff:192.0.2.1")).is_some());
}

#[test]
fn continent_is_derived_where_the_database_has_none() {
    for layout in [Layout::Nested, Layout::Flat] {
        let writer = Writer::new("Country").layout(layout).network("192.0.2.0/24", country("BR")).unwrap();
        let file = database(&writer);
        let location = open(file.path()).unwrap().lookup(ip("192.0.2.1")).unwrap();
        assert_eq!(location, Location { continent: Some(ContinentCode::SouthAmerica), ..country("BR") });
    }
}

#[test]
fn ipv6_is_in_no_ipv4_database() {
    let writer = Writer::new("V4").addresses(Addresses::V4).network("192.0.2.0/24", country("DE")).unwrap();
    let file = database(&writer);
    let geo = open(file.path()).unwrap();
    assert!(geo.lookup(ip("192.0.2.1")).is_some());
    assert!(geo.lookup(ip("::ffff:192.0.2.1")).is_some());
    assert!(geo.try_lookup(ip("2001:db8::1")).unwrap().is_none());
    assert_eq!(geo.metadata().ip_version, 4);
}

#[test]
fn a_record_that_knows_nothing_is_no_location() {
    let file = database(&Writer::new("Mixed").network("192.0.2.0/24", country("DE")).unwrap());
    let geo = open(file.path()).unwrap();
    assert!(geo.lookup(ip("192.0.2.1")).is_some());

    let nowhere = Location { coordinates: Some((91.0, 0.0)), ..Location::default() };
    let file = database(&Writer::new("Mixed").network("192.0.2.0/24", nowhere).unwrap());
    assert_eq!(open(file.path()).unwrap().lookup(ip("192.0.2.1")), None, "there is no latitude 91");
}

#[test]
fn an_empty_database_opens_and_knows_nothing() {
    let file = database(&Writer::new("Empty"));
    assert_eq!(open(file.path()).unwrap().lookup(ip("192.0.2.1")), None);
}

#[test]
fn a_database_of_something_else_is_refused() {
    let file = database(&Writer::new("Anonymous-IP").network("192.0.2.0/24", Location::default()).unwrap());
    let error = open(file.path()).unwrap_err();
    assert!(matches!(&error, GeoError::Layout { database_type, .. } if database_type == "Anonymous-IP"), "{error}");
}

#[test]
fn faults_of_the_file_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("geo.mmdb");
    assert!(matches!(open(&path), Err(GeoError::Open { .. })));
    assert!(matches!(open(folder.path()), Err(GeoError::NotAFile { .. })));
    for broken in [&b""[..], b"not a database", &testdb::builtin()[..300]] {
        fs::write(&path, broken).unwrap();
        assert!(matches!(open(&path), Err(GeoError::Format { .. })));
    }
}

#[test]
fn files_over_the_limit_are_mapped_and_answer_the_same() {
    let file = database(&Writer::new("Country").network("192.0.2.0/24", country("DE")).unwrap());
    let source = GeoSource::File(file.path().to_owned());
    let size = fs::metadata(file.path()).unwrap().len();
    for (limit, is_mapped) in [(size - 1, true), (size, false)] {
        let database = Database::load(&source, limit).unwrap();
        assert_eq!((database.is_mapped, database.size), (is_mapped, size));
        assert_eq!(database.locate(ip("192.0.2.1")).unwrap().unwrap().country, CountryCode::parse("DE"));
    }
}

#[test]
fn a_failed_reload_keeps_the_old_database() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("geo.mmdb");
    let good = Writer::new("Good").network("192.0.2.0/24", country("DE")).unwrap().to_bytes().unwrap();
    fs::write(&path, &good).unwrap();
    let geo = open(&path).unwrap();

    let halved = &good[..good.len() / 2];
    let unrelated = Writer::new("Other").network("192.0.2.0/24", Location::default()).unwrap().to_bytes().unwrap();
    for bad in [&b"broken"[..], halved, &unrelated] {
        replace(&path, bad);
        geo.reload().unwrap_err();
        assert_eq!(geo.metadata().database_type, "Good");
        assert_eq!(geo.lookup(ip("192.0.2.1")).unwrap().country, CountryCode::parse("DE"));
    }
    fs::remove_file(&path).unwrap();
    geo.reload().unwrap_err();
    assert!(geo.lookup(ip("192.0.2.1")).is_some());

    replace(&path, &Writer::new("New").network("192.0.2.0/24", country("FR")).unwrap().to_bytes().unwrap());
    geo.reload().unwrap();
    assert_eq!(geo.metadata().database_type, "New");
    assert_eq!(geo.lookup(ip("192.0.2.1")).unwrap().country, CountryCode::parse("FR"));
}

/// Readers see one whole database or the other, whenever they look, and never none.
#[test]
fn reload_swaps_under_concurrent_readers() {
    const READERS: usize = 4;
    const RELOADS: usize = 40;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("geo.mmdb");
    let versions = [("DE", 1), ("JP", 2)].map(|(code, asn)| {
        let location = Location { asn: Some(asn), city: Some(format!("City {asn}")), ..country(code) };
        let writer = Writer::new(code).network("192.0.2.0/24", location).unwrap();
        writer.to_bytes().unwrap()
    });
    replace(&path, &versions[0]);
    let geo = open(&path).unwrap();
    let (start, done) = (Barrier::new(READERS + 1), AtomicBool::new(false));

    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    let mut lookups = 0_usize;
                    while !done.load(Ordering::Relaxed) || lookups == 0 {
                        let found = geo.lookup(ip("192.0.2.1")).unwrap();
                        let expected = match found.country.as_ref().unwrap().as_str() {
                            "DE" => (Some(ContinentCode::Europe), Some("City 1"), Some(1)),
                            _ => (Some(ContinentCode::Asia), Some("City 2"), Some(2)),
                        };
                        assert_eq!((found.continent, found.city.as_deref(), found.asn), expected);
                        lookups += 1;
                    }
                })
            })
            .collect();
        start.wait();
        for round in 1..=RELOADS {
            replace(&path, &versions[round % 2]);
            geo.reload().unwrap();
            assert_eq!(geo.metadata().database_type, ["DE", "JP"][round % 2]);
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

/// For a look at a real database: `SELVEDGE_GEOIP_FILE=x.mmdb cargo test -p selvedge-geoip -- --ignored`.
#[test]
#[ignore = "needs a database: SELVEDGE_GEOIP_FILE"]
fn a_real_country_database_opens() {
    let path = std::env::var_os("SELVEDGE_GEOIP_FILE").expect("SELVEDGE_GEOIP_FILE names the database");
    let geo = open(Path::new(&path)).unwrap();
    println!("{:?}", geo.metadata());
    for address in
        ["8.8.8.8", "193.99.144.80", "133.11.0.1", "200.160.2.3", "2a00:1450:4001::1", "2001:200::1", "127.0.0.1"]
    {
        println!("{address}: {:?}", geo.try_lookup(ip(address)).unwrap());
    }
    let google = geo.lookup(ip("8.8.8.8")).unwrap();
    assert_eq!(google.country, CountryCode::parse("US"));
    assert_eq!(google.continent, Some(ContinentCode::NorthAmerica));
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn country(code: &str) -> Location {
    Location { country: CountryCode::parse(code), ..Location::default() }
}

fn open(path: &Path) -> Result<Geo, GeoError> {
    Geo::open(GeoSource::File(path.to_owned()))
}

fn database(writer: &Writer) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), writer.to_bytes().unwrap()).unwrap();
    file
}

fn replace(path: &Path, bytes: &[u8]) {
    let new = path.with_extension("new");
    fs::write(&new, bytes).unwrap();
    fs::rename(new, path).unwrap();
}

#[test]
fn an_address_of_a_country_is_found_and_is_there() {
    let geo = Geo::open(GeoSource::BuiltinTest).expect("the built-in database");
    for code in ["DE", "US", "JP"] {
        let country: CountryCode = code.parse().expect("a code");
        let address = geo.address_in(country).expect(code);
        assert_eq!(geo.lookup(address).and_then(|location| location.country), Some(country), "{address}");
    }
    assert_eq!(geo.address_in("AQ".parse().expect("a code")), None);
}
