//! Stores, keys and bodies for the tests.

use std::path::Path;

use bytes::Bytes;
use selvedge_cache::disk::{Admit, DiskOptions, Found, Limits, ReadError, Store, StoreOptions};
use std::time::Duration;
use tempfile::TempDir;

/// What a store may take, and how much of it one segment.
pub(crate) const SIZE: u64 = 40 << 20;
pub(crate) const SEGMENT: u64 = 4 << 20;
/// Of use for ever.
pub(crate) const FAR: u32 = u32::MAX;

pub(crate) fn key(number: u64) -> u128 {
    let hash = blake3::hash(&number.to_le_bytes());
    u128::from_le_bytes(hash.as_bytes()[..16].try_into().expect("16 bytes"))
}

/// Bytes that tell whose they are, everywhere.
pub(crate) fn body_of(number: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    let mut word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < length {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.extend(word.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub(crate) fn meta(number: u64) -> Bytes {
    Bytes::from(format!("meta of {number}"))
}

pub(crate) fn options(folder: &Path) -> StoreOptions {
    let disk = DiskOptions { segment_size: SEGMENT, ..DiskOptions::at(folder, SIZE) };
    StoreOptions { disks: vec![disk], admit: Admit::All, write_budget: 0, limits: patient() }
}

/// Lookups and reads may take as long as they take on a machine that is busy.
pub(crate) fn patient() -> Limits {
    Limits { lookup: Duration::from_secs(30), read: Duration::from_secs(60), ..Limits::default() }
}

pub(crate) fn opened(options: StoreOptions) -> Store {
    let store = Store::open(options).expect("threads");
    store.wait(Duration::from_secs(30));
    store
}

pub(crate) fn open(folder: &Path) -> Store {
    opened(options(folder))
}

/// Stores, durably; gives the generation.
pub(crate) async fn put(store: &Store, number: u64, body: &[u8]) -> u64 {
    put_in(store, number, number, body).await
}

pub(crate) async fn put_in(store: &Store, number: u64, family: u64, body: &[u8]) -> u64 {
    let mut writing = store.begin(key(number), key(family)).expect("room in the queue");
    let generation = writing.generation();
    assert!(writing.push(Bytes::copy_from_slice(body)));
    assert!(writing.commit(meta(number), FAR));
    assert!(store.sync().await);
    generation
}

pub(crate) async fn drain(found: &mut Found) -> Result<Vec<u8>, ReadError> {
    let mut body = Vec::new();
    while let Some(chunk) = found.body.read().await? {
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The body, if there is one, with the right metadata.
pub(crate) async fn get(store: &Store, number: u64) -> Option<Vec<u8>> {
    let mut found = store.find(key(number), key(number)).await?;
    assert_eq!(found.meta, meta(number));
    Some(drain(&mut found).await.expect("a body"))
}

/// What a crash would leave: the files as they are, without the writer's end.
pub(crate) fn copy(folder: &Path) -> TempDir {
    let to = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), to.path().join(entry.file_name())).expect("copied");
    }
    to
}

pub(crate) fn size_of(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).expect("a folder");
    files.filter_map(|file| file.ok()?.metadata().ok()).map(|file| file.len()).sum()
}
