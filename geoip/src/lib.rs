//! Where an address is: MaxMind DB files read, swapped while in use, and written for tests.
//!
//! ```
//! use selvedge_geoip::{Geo, GeoSource};
//!
//! let geo = Geo::open(GeoSource::BuiltinTest)?;
//! let location = geo.lookup("192.0.2.7".parse().expect("an address")).expect("it is in the test database");
//! assert_eq!(location.country.map(|country| country.to_string()).as_deref(), Some("DE"));
//! # Ok::<(), selvedge_geoip::GeoError>(())
//! ```
//!
//! # Replacing the file
//!
//! Write the new database beside the old one, on the same file system, and `rename` it over the old name; then call [`Geo::reload`].
//! `geoipupdate` and package managers work this way.
//!
//! Files up to [`READ_LIMIT`] are read into memory and never looked at again before the next reload, so nothing that happens to them
//! can harm the running process. Larger ones are memory mapped, because a second gigabyte on the heap during each reload is worse
//! than the risk: a mapped file that is **truncated or overwritten in place** kills the process (`SIGBUS`) or gives wrong
//! answers. Never `cp` over a database of that size.

mod distance;
mod place;
mod record;
pub mod testdb;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use maxminddb::{MaxMindDbError, Reader, WithinOptions};
use memmap2::Mmap;
use parking_lot::Mutex;

pub use crate::distance::distance_km;
pub use crate::place::{ContinentCode, CountryCode, UnknownCode};
pub use crate::record::Location;
use crate::record::Record;

/// Databases up to this size, 256 MiB, are read into memory; larger ones are memory mapped.
///
/// Every country, city and ASN database of MaxMind, DB-IP and ip-location-db is below it.
pub const READ_LIMIT: u64 = 256 * 1024 * 1024;

/// How many records [`Geo::open`] reads to see whether the database has anything we know.
const PROBED_RECORDS: usize = 1000;

/// A database that answers lookups from any thread and can be replaced while it does.
pub struct Geo {
    source: GeoSource,
    current: ArcSwap<Database>,
    /// Held while a reload runs, so that of two reloads the one that read the file last is the one that stays.
    reloading: Mutex<()>,
}

impl Geo {
    /// Opens a database and checks that it can be read and that its records have a layout we know.
    ///
    /// Reads from disk: in asynchronous code this belongs into `spawn_blocking`.
    ///
    /// # Errors
    ///
    /// [`GeoError::Open`], [`GeoError::NotAFile`], [`GeoError::Read`] and [`GeoError::Map`] for the file, [`GeoError::Format`] when it
    /// is not a MaxMind DB or a broken one, [`GeoError::Layout`] when its records know nothing of location or ASN.
    pub fn open(source: GeoSource) -> Result<Geo, GeoError> {
        let database = Database::load(&source, READ_LIMIT)?;
        Ok(Geo { source, current: ArcSwap::from_pointee(database), reloading: Mutex::new(()) })
    }

    /// Where the address is; `None` when the database does not have it, knows nothing about it, or is broken at this place.
    ///
    /// An IPv4 address mapped into IPv6 (`::ffff:192.0.2.1`) is looked up as IPv4. An IPv6 address is in no IPv4 database. Allocates
    /// only for the city's name.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Option<Location> {
        self.try_lookup(address).ok().flatten()
    }

    /// As [`Geo::lookup`], but says when the database is broken at this place.
    ///
    /// # Errors
    ///
    /// [`GeoError::Record`] when the tree or the record cannot be decoded.
    pub fn try_lookup(&self, address: IpAddr) -> Result<Option<Location>, GeoError> {
        self.current.load().locate(address.to_canonical()).map_err(|cause| GeoError::Record {
            database: self.source.clone(),
            address,
            cause,
        })
    }

    /// An address that is in this country, the first that the database has; `None` when it has none.
    #[must_use]
    pub fn address_in(&self, country: CountryCode) -> Option<IpAddr> {
        let database = self.current.load();
        let networks = database.reader.networks(WithinOptions::default()).ok()?;
        networks.flatten().find_map(|found| {
            let address = found.network().ok()?.ip().to_canonical();
            let location = database.locate(address).ok()??;
            (location.country == Some(country)).then_some(address)
        })
    }

    /// Opens the source again and, if all is well, answers from it from now on. Lookups never wait for it; those under way
    /// finish on the database they began with. If it fails, the old database stays.
    ///
    /// Reads from disk: in asynchronous code this belongs into `spawn_blocking`.
    ///
    /// # Errors
    ///
    /// As [`Geo::open`].
    pub fn reload(&self) -> Result<(), GeoError> {
        let _one_at_a_time = self.reloading.lock();
        self.current.store(Arc::new(Database::load(&self.source, READ_LIMIT)?));
        Ok(())
    }

    /// What the current database says about itself.
    #[must_use]
    pub fn metadata(&self) -> Metadata {
        let database = self.current.load();
        let metadata = database.reader.metadata();
        Metadata {
            database_type: metadata.database_type.clone(),
            build_epoch: metadata.build_epoch,
            node_count: metadata.node_count,
            ip_version: metadata.ip_version,
            size: database.size,
            is_mapped: database.is_mapped,
        }
    }

    /// Where the database comes from.
    #[must_use]
    pub fn source(&self) -> &GeoSource {
        &self.source
    }
}

impl fmt::Debug for Geo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Geo").field("source", &self.source).field("metadata", &self.metadata()).finish_non_exhaustive()
    }
}

/// Where a database comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GeoSource {
    /// [`testdb::builtin`]: documentation ranges only, so that configuration and filters can be tried without a database.
    BuiltinTest,
    /// A file in MaxMind DB format (`.mmdb`).
    File(PathBuf),
}

impl fmt::Display for GeoSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GeoSource::BuiltinTest => f.write_str("the built-in test database"),
            GeoSource::File(path) => path.display().fmt(f),
        }
    }
}

/// What a database says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Its type, such as `GeoLite2-City`.
    pub database_type: String,
    /// When it was built, in seconds since 1970.
    pub build_epoch: u64,
    /// Nodes in its search tree.
    pub node_count: u32,
    /// 6, or 4 for a database of IPv4 addresses only.
    pub ip_version: u16,
    /// Its size in bytes.
    pub size: u64,
    /// Whether it is memory mapped (larger than [`READ_LIMIT`]) instead of read into memory.
    pub is_mapped: bool,
}

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GeoError {
    /// The file is missing or may not be read.
    #[error("cannot open the geo database {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The path leads to a directory, a pipe or a device.
    #[error("the geo database {} is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Reading failed half-way.
    #[error("cannot read the geo database {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The file is larger than [`READ_LIMIT`] and mapping it failed.
    #[error("cannot map the geo database {} into memory", path.display())]
    Map {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// Not a MaxMind DB, cut short, or broken.
    #[error("{database} is not a readable MaxMind DB")]
    Format {
        /// The database.
        database: GeoSource,
        /// What is wrong with it.
        #[source]
        cause: MaxMindDbError,
    },
    /// A MaxMind DB of something else: none of its records has a key for country, continent, city, coordinates or ASN.
    #[error("{database} (type {database_type:?}) has neither locations nor AS numbers in a layout known here")]
    Layout {
        /// The database.
        database: GeoSource,
        /// The type it says it is.
        database_type: String,
    },
    /// The database is broken where this address leads to.
    #[error("{database} is broken at {address}")]
    Record {
        /// The database.
        database: GeoSource,
        /// The address that was looked up.
        address: IpAddr,
        /// What is wrong there.
        #[source]
        cause: MaxMindDbError,
    },
}

/// One opened database.
struct Database {
    reader: Reader<Bytes>,
    size: u64,
    is_mapped: bool,
}

impl Database {
    fn load(source: &GeoSource, read_limit: u64) -> Result<Database, GeoError> {
        let bytes = match source {
            GeoSource::BuiltinTest => Bytes::Read(testdb::builtin()),
            GeoSource::File(path) => Bytes::from_file(path, read_limit)?,
        };
        let (size, is_mapped) = (bytes.as_ref().len() as u64, matches!(bytes, Bytes::Mapped(_)));

        let broken = |cause| GeoError::Format { database: source.clone(), cause };
        let reader = Reader::from_source(bytes).map_err(broken)?;
        if !has_known_layout(&reader).map_err(broken)? {
            let database_type = reader.metadata().database_type.clone();
            return Err(GeoError::Layout { database: source.clone(), database_type });
        }
        Ok(Database { reader, size, is_mapped })
    }

    fn locate(&self, address: IpAddr) -> Result<Option<Location>, MaxMindDbError> {
        if address.is_ipv6() && self.reader.metadata().ip_version == 4 {
            return Ok(None);
        }
        let record = self.reader.lookup(address)?.decode::<Record<'_>>()?;
        Ok(record.map(|record| record.to_location()).filter(|location| !location.is_empty()))
    }
}

/// Whether the first records have a key we read. A database without any record is fine: it knows nothing, which is an answer.
fn has_known_layout(reader: &Reader<Bytes>) -> Result<bool, MaxMindDbError> {
    let mut is_empty = true;
    for found in reader.networks(WithinOptions::default())?.take(PROBED_RECORDS) {
        let Some(record) = found?.decode::<Record<'_>>()? else { continue };
        if record.is_known_layout {
            return Ok(true);
        }
        is_empty = false;
    }
    Ok(is_empty)
}

/// The bytes of a database.
enum Bytes {
    Read(Vec<u8>),
    Mapped(Mmap),
}

impl Bytes {
    fn from_file(path: &Path, read_limit: u64) -> Result<Bytes, GeoError> {
        // A pipe would block on opening it, so the kind is asked for first.
        let on_open = |cause| GeoError::Open { path: path.to_owned(), cause };
        if !std::fs::metadata(path).map_err(on_open)?.is_file() {
            return Err(GeoError::NotAFile { path: path.to_owned() });
        }
        let file = File::open(path).map_err(on_open)?;
        let size = file.metadata().map_err(on_open)?.len();
        if size > read_limit {
            return map(&file).map(Bytes::Mapped).map_err(|cause| GeoError::Map { path: path.to_owned(), cause });
        }

        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
        file.take(read_limit)
            .read_to_end(&mut bytes)
            .map_err(|cause| GeoError::Read { path: path.to_owned(), cause })?;
        Ok(Bytes::Read(bytes))
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Bytes::Read(bytes) => bytes,
            Bytes::Mapped(bytes) => bytes,
        }
    }
}

#[allow(
    unsafe_code,
    reason = "mapping a file is unsafe by nature: the only place in this crate, and only for very large files"
)]
fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: The mapping is read-only and private to this process; nothing here writes to or truncates the file. That nobody else does
    // is the operator's part: the crate documentation says that a database of this size is replaced by rename only, which leaves the
    // mapped inode as it is.
    unsafe { Mmap::map(file) }
}

#[cfg(test)]
mod tests;
