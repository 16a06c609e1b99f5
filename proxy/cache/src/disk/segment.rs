//! One file of the log.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::index::Entry;
use super::io::{DiskFile, Folder};
use super::record::{self, FOOTER_ENTRY, Footer, HEADER, Header, Kind, Listed};

/// Read at once while a segment is scanned.
const WINDOW: usize = 256 << 10;
/// A footer beyond this is none: no segment has so many records.
const MOST_FOOTER: usize = 512 << 20;
/// What the head record takes.
pub(crate) const HEAD: u64 = 2 * HEADER as u64;

/// A file of the log. Whoever reads from it holds it: removed meanwhile, it can be read to the end.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) number: u32,
    pub(crate) salt: u64,
    pub(crate) file: Arc<dyn DiskFile>,
    /// What it takes of the disk.
    pub(crate) size: AtomicU64,
}

/// What a look at all records found.
#[derive(Debug)]
pub(crate) struct Scan {
    pub(crate) listed: Vec<Listed>,
    /// Where the last good record ends.
    pub(crate) end: u64,
    /// Whether something is missing that once was durable, so that a removal may be missing too.
    pub(crate) damaged: bool,
}

pub(crate) fn name(number: u32) -> String {
    format!("{number:08x}.seg")
}

/// The number in a segment's name.
pub(crate) fn number_of(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".seg").filter(|digits| digits.len() == 8)?;
    u32::from_str_radix(digits, 16).ok()
}

impl Segment {
    /// A new file. The head is returned, to be written first.
    pub(crate) fn create(folder: &dyn Folder, number: u32, size: u64) -> io::Result<(Self, Vec<u8>)> {
        let file = folder.create(&name(number), size)?;
        let salt = RandomState::new().hash_one(number);
        let payload = salt.to_le_bytes();
        let head = Header { number, length: 8, body_crc: record::body_crc([&payload[..]]), ..Header::of(Kind::Head) };
        let mut bytes = head.encode(u64::from(number)).to_vec();
        bytes.extend(payload);
        bytes.resize(HEADER * 2, 0);
        Ok((Self { number, salt, file, size: AtomicU64::new(size) }, bytes))
    }

    /// A file that is there; `None` when its head cannot be read.
    pub(crate) fn open(folder: &dyn Folder, number: u32) -> io::Result<Option<Self>> {
        let file = folder.open(&name(number))?;
        let size = file.length()?;
        if size < HEAD {
            return Ok(None);
        }
        let mut head = [0; HEADER * 2];
        file.read_at(&mut head, 0)?;
        let salt = record::verify(&head, u64::from(number)).and_then(|(header, payload)| {
            let right = header.kind == Kind::Head && header.number == number;
            right.then(|| payload.try_into().ok().map(u64::from_le_bytes)).flatten()
        });
        Ok(salt.map(|salt| Self { number, salt, file, size: AtomicU64::new(size) }))
    }

    /// Whether nothing was ever written into the file of this number.
    pub(crate) fn is_blank(folder: &dyn Folder, number: u32) -> bool {
        let blank = || -> io::Result<bool> {
            let file = folder.open(&name(number))?;
            let mut head = vec![0; usize::try_from(file.length()?.min(HEAD)).unwrap_or_default()];
            file.read_at(&mut head, 0)?;
            Ok(head.iter().all(|byte| *byte == 0))
        };
        blank().unwrap_or(false)
    }

    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// Reads one record that should be of `bytes` bytes at `offset`, and checks it.
    pub(crate) fn read(&self, offset: u32, bytes: usize) -> io::Result<Option<(Header, Vec<u8>)>> {
        let mut record = vec![0; bytes];
        self.file.read_at(&mut record, u64::from(offset) * HEADER as u64)?;
        let header = record::verify(&record, self.salt).map(|(header, _)| header);
        Ok(header.map(|header| (header, record)))
    }

    /// Where the footer is, in units of 64 bytes, and how many bytes it takes with its header; `None` when the segment is not sealed, or its
    /// end cannot be read.
    fn footer_place(&self) -> io::Result<Option<(u32, usize)>> {
        let length = self.file.length()?;
        let Some(at) = length.checked_sub(HEADER as u64) else { return Ok(None) };
        let mut trailer = [0; HEADER];
        self.file.read_at(&mut trailer, at)?;
        let Some(trailer) = Header::decode(&trailer, self.salt).filter(|header| header.kind == Kind::Trailer) else {
            return Ok(None);
        };
        let start = u64::from(trailer.number) * HEADER as u64;
        let bytes = usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX);
        Ok((start < at && bytes <= MOST_FOOTER).then_some((trailer.number, bytes)))
    }

    /// About how many records the footer lists, without reading it; 0 without one.
    pub(crate) fn listed(&self) -> usize {
        self.footer_place().ok().flatten().map_or(0, |(_, bytes)| bytes.saturating_sub(HEADER) / FOOTER_ENTRY)
    }

    /// The footer; `None` when the segment is not sealed, or its end cannot be read.
    pub(crate) fn footer(&self) -> io::Result<Option<Footer>> {
        let Some((start, bytes)) = self.footer_place()? else { return Ok(None) };
        let footer = self.read(start, bytes)?.filter(|(header, _)| header.kind == Kind::Footer);
        Ok(footer.and_then(|(header, record)| Footer::of(record, header.length as usize, self.number)))
    }

    /// Goes from record to record.
    ///
    /// The first one that cannot be read ends it: what follows cannot be trusted, and where the next one begins is not known. Whether that
    /// is the usual end after a crash, or damage, a [`Kind::Synced`] record further on tells, which says that this place had been durable.
    pub(crate) fn scan(&self) -> io::Result<Scan> {
        let mut window = Window { segment: self, bytes: Vec::new(), start: 0, length: self.file.length()? };
        let (mut listed, mut at, mut durable) = (Vec::new(), HEAD, 0);
        let sealed = loop {
            let Some(header) = window.header(at)? else { break false };
            match header.kind {
                Kind::Footer | Kind::Trailer => break true,
                Kind::Synced => durable = header.number,
                Kind::Head => {}
                _ => listed.push(list(&header, self.number, at)),
            }
            at += header.room();
        };
        self.drop_torn(&mut listed, durable, window.length)?;
        if sealed {
            return Ok(Scan { listed, end: at, damaged: false });
        }

        let mut damaged = false;
        let mut ahead = at + HEADER as u64;
        while !damaged && ahead + (HEADER as u64) <= window.length {
            // Mostly what follows was never written.
            if let Some(zeros) = window.zeros(ahead)? {
                ahead += zeros;
                continue;
            }
            // A trailer whose footer alone is bad says that every record was read.
            damaged = window.header(ahead)?.is_some_and(|header| match header.kind {
                Kind::Synced => u64::from(header.number) * HEADER as u64 > at,
                Kind::Trailer => u64::from(header.number) * HEADER as u64 != at,
                Kind::Footer => true,
                _ => false,
            });
            ahead += HEADER as u64;
        }
        Ok(Scan { listed, end: at, damaged })
    }

    /// An object from `durable` on whose record is there in part only counts as removed: what it was to replace is older.
    fn drop_torn(&self, listed: &mut [Listed], durable: u32, length: u64) -> io::Result<()> {
        for listed in listed.iter_mut().filter(|listed| listed.kind == Kind::Meta && listed.entry.offset >= durable) {
            let (offset, bytes) = (listed.entry.offset, listed.entry.bytes());
            let inside = u64::from(offset) * HEADER as u64 + bytes as u64 <= length;
            if !inside || self.read(offset, bytes)?.is_none() {
                listed.kind = Kind::RemovedKey;
            }
        }
        Ok(())
    }
}

/// What is listed of a record.
pub(crate) fn list(header: &Header, segment: u32, at: u64) -> Listed {
    let tag = super::index::Tag::of(header.key, header.family);
    let units = |bytes: u64| u32::try_from(bytes / HEADER as u64).unwrap_or(u32::MAX);
    #[expect(clippy::cast_possible_truncation, reason = "the index keeps the lower half")]
    let generation = header.generation as u32;
    let entry =
        Entry::new(tag.family, tag.variant, generation, segment, units(at), units(header.room()), header.number);
    Listed { kind: header.kind, entry }
}

/// A part of the segment in memory.
struct Window<'s> {
    segment: &'s Segment,
    bytes: Vec<u8>,
    start: u64,
    length: u64,
}

impl Window<'_> {
    /// How many zeros there are from `at` on within the window, by the page; `None` when the first page has something else.
    fn zeros(&mut self, at: u64) -> io::Result<Option<u64>> {
        self.load(at)?;
        let from = usize::try_from(at - self.start).unwrap_or_default();
        let rest = &self.bytes[from..];
        let zero = [0; 4096];
        let pages = rest.chunks(zero.len()).take_while(|page| **page == zero[..page.len()]);
        let zeros = pages.map(<[u8]>::len).sum::<usize>() / HEADER * HEADER;
        Ok(Some(zeros as u64).filter(|zeros| *zeros > 0))
    }

    /// The header at `at`, if there is one.
    fn header(&mut self, at: u64) -> io::Result<Option<Header>> {
        if at + HEADER as u64 > self.length {
            return Ok(None);
        }
        self.load(at)?;
        let from = usize::try_from(at - self.start).unwrap_or_default();
        Ok(self.bytes.get(from..from + HEADER).and_then(|bytes| Header::decode(bytes, self.segment.salt)))
    }

    /// Has the header's bytes at `at`, which are within the file, in the window.
    fn load(&mut self, at: u64) -> io::Result<()> {
        if at < self.start || at + HEADER as u64 > self.start + self.bytes.len() as u64 {
            let count = usize::try_from(self.length - at).unwrap_or(WINDOW).min(WINDOW);
            self.bytes.resize(count, 0);
            self.segment.file.read_at(&mut self.bytes, at)?;
            self.start = at;
        }
        Ok(())
    }
}
