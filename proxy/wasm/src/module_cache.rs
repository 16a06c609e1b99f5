//! Compiled modules on disk: `<blake3 of the wasm>-<hash of engine and settings>.cwasm`, each a magic, a checksum and wasmtime's bytes.
//!
//! The checksum finds torn and rotten files, not attackers: whoever can write the folder can write code. So the folder is made for its
//! owner only, and one that everybody may write is refused.

use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::warn;

const MAGIC: &[u8; 8] = b"SLVGWSM1";
const HEADER: usize = MAGIC.len() + blake3::OUT_LEN;

/// A folder of compiled modules, for one engine's settings.
#[derive(Debug)]
pub(crate) struct ModuleCache {
    folder: PathBuf,
    engine_hash: String,
}

/// What is wrong with a folder for compiled modules.
#[derive(Debug, thiserror::Error)]
pub enum CacheDirError {
    /// It cannot be made or looked at.
    #[error("cannot create or read the folder")]
    Io(#[from] io::Error),
    /// It is no folder.
    #[error("not a folder")]
    NotAFolder,
    /// Its permissions let everybody write, and so run code in this process.
    #[error("everybody may write to it: run `chmod o-w` on it")]
    WorldWritable,
}

impl ModuleCache {
    pub(crate) fn open(folder: &Path, engine: &wasmtime::Engine) -> Result<Self, CacheDirError> {
        create_private(folder)?;
        let metadata = fs::metadata(folder)?;
        if !metadata.is_dir() {
            return Err(CacheDirError::NotAFolder);
        }
        if world_writable(&metadata) {
            return Err(CacheDirError::WorldWritable);
        }
        Ok(Self { folder: folder.to_owned(), engine_hash: engine_hash(engine) })
    }

    /// The compiled module of this wasm, if there is a good one. A bad file is removed and warned about: the caller compiles again.
    pub(crate) fn load(&self, engine: &wasmtime::Engine, wasm_hash: &blake3::Hash) -> Option<wasmtime::Module> {
        let path = self.path(wasm_hash);
        let file = match fs::read(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                warn!(path = %path.display(), %error, "cannot read a compiled module; compiling again");
                return None;
            }
        };
        let reason = match verified(&file) {
            // SAFETY: `deserialize` runs what it is given, so it must be what `serialize` wrote with the same wasmtime and settings.
            // The checksum shows that the bytes are those `store` wrote; the file name and wasmtime's own header bind them to this
            // version, CPU and settings; the folder's permissions were checked to keep strangers from writing there.
            Some(compiled) => match unsafe { wasmtime::Module::deserialize(engine, compiled) } {
                Ok(module) => return Some(module),
                Err(error) => format!("{error:#}"),
            },
            None => "checksum does not match".to_owned(),
        };
        warn!(path = %path.display(), reason, "bad compiled module removed; compiling again");
        if let Err(error) = fs::remove_file(&path) {
            warn!(path = %path.display(), %error, "cannot remove a bad compiled module");
        }
        None
    }

    /// Keeps a compiled module: written beside its place, then renamed, so no reader sees half a file. Failing only costs the next start.
    pub(crate) fn store(&self, wasm_hash: &blake3::Hash, module: &wasmtime::Module) {
        let path = self.path(wasm_hash);
        let written = module.serialize().map_err(io::Error::other).and_then(|compiled| write_whole(&path, &compiled));
        if let Err(error) = written {
            warn!(path = %path.display(), %error, "cannot keep a compiled module: the next start compiles again");
        }
    }

    fn path(&self, wasm_hash: &blake3::Hash) -> PathBuf {
        self.folder.join(format!("{}-{}.cwasm", wasm_hash.to_hex(), self.engine_hash))
    }
}

fn verified(file: &[u8]) -> Option<&[u8]> {
    let (header, compiled) = file.split_at_checked(HEADER)?;
    let checksum = header.strip_prefix(MAGIC)?;
    (blake3::hash(compiled).as_bytes() == checksum).then_some(compiled)
}

fn write_whole(path: &Path, compiled: &[u8]) -> io::Result<()> {
    // Unique among processes and among threads of this one: two may compile the same module at once.
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("tmp-{}-{serial}", std::process::id()));

    let write = || -> io::Result<()> {
        let mut file = fs::File::create_new(&temporary)?;
        file.write_all(MAGIC)?;
        file.write_all(blake3::hash(compiled).as_bytes())?;
        file.write_all(compiled)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// Everything that makes compiled code fit this process: wasmtime's version, CPU features, code generation settings.
fn engine_hash(engine: &wasmtime::Engine) -> String {
    /// `std`'s hashers promise nothing across builds.
    struct Stable(blake3::Hasher);
    impl Hasher for Stable {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            let hash = self.0.finalize();
            hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
        }
    }
    let mut hasher = Stable(blake3::Hasher::new());
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

#[cfg(unix)]
fn create_private(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

#[cfg(not(unix))]
fn create_private(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)
}

#[cfg(unix)]
fn world_writable(metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt;
    metadata.permissions().mode() & 0o002 != 0
}

#[cfg(not(unix))]
fn world_writable(_metadata: &fs::Metadata) -> bool {
    false
}
