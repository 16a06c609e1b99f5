//! From the path of a URL to an open file, never out of the folder.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use percent_encoding::percent_decode_str;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use selvedge_config::Encoding;

use super::Folder;

/// What a path names.
pub(super) enum Found {
    File(Opened),
    /// A folder that is asked for as if it were a file.
    Folder,
    Nothing,
    /// It may be there, but cannot be read.
    Failed(io::Error),
}

/// A file that is open, and what is known of it.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) size: u64,
    /// Changes whenever the file does, as far as its size and time tell.
    pub(super) etag: HeaderValue,
    pub(super) modified: SystemTime,
    pub(super) last_modified: HeaderValue,
    pub(super) content_type: HeaderValue,
    pub(super) encoding: Option<Encoding>,
}

impl Folder {
    /// Whether it can be read, the way it will be.
    ///
    /// # Errors
    /// It is no folder, may not be read, or the system is too old (Linux 5.6).
    pub(super) fn check(&self) -> io::Result<()> {
        let root = openat(CWD, &self.root, FOLDER, Mode::empty())?;
        openat2(&root, ".", FOLDER, Mode::empty(), ResolveFlags::BENEATH)?;
        Ok(())
    }

    /// The file of this path, which begins with a slash or is empty. Blocks.
    pub(super) fn find(&self, path: &str, accepted: &[Encoding]) -> Found {
        let name = match name(path) {
            Some(name) => name,
            None => return self.otherwise(accepted),
        };
        // A folder that is replaced by another of its name (`current -> release-7`) is looked into anew with every request.
        let root = match openat(CWD, &self.root, FOLDER, Mode::empty()) {
            Ok(root) => root,
            Err(error) => return Found::Failed(error.into()),
        };
        let found = if name.is_empty() {
            self.open(&root, &self.index, accepted)
        } else if let Some(folder) = name.strip_suffix('/') {
            self.open(&root, &format!("{folder}/{}", self.index), accepted)
        } else {
            match self.open(&root, &name, accepted) {
                // Only where it has an index: nobody learns which other folders there are.
                Found::Folder => match self.open(&root, &format!("{name}/{}", self.index), accepted) {
                    Found::File(_) => Found::Folder,
                    found => found,
                },
                found => found,
            }
        };
        match found {
            Found::Nothing => self.otherwise(accepted),
            Found::Folder if name.is_empty() || name.ends_with('/') => self.otherwise(accepted),
            found => found,
        }
    }

    fn otherwise(&self, accepted: &[Encoding]) -> Found {
        let Some(fallback) = &self.fallback else { return Found::Nothing };
        match openat(CWD, &self.root, FOLDER, Mode::empty()) {
            Ok(root) => match self.open(&root, fallback, accepted) {
                Found::Folder => Found::Nothing,
                found => found,
            },
            Err(error) => Found::Failed(error.into()),
        }
    }

    /// A file by its name in the folder, or what is compressed of it.
    fn open(&self, root: &rustix::fd::OwnedFd, name: &str, accepted: &[Encoding]) -> Found {
        for encoding in accepted {
            if let Found::File(opened) = open(root, &format!("{name}.{}", suffix(*encoding)), name, Some(*encoding)) {
                return Found::File(opened);
            }
        }
        open(root, name, name, None)
    }
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The name of a path in the folder, without a slash in front; `None` for one that nothing may be at.
fn name(path: &str) -> Option<String> {
    let decoded = percent_decode_str(path.strip_prefix('/').unwrap_or(path)).decode_utf8().ok()?;
    // An encoded slash is no separator, so it would be part of a name, which no file has.
    if decoded.matches('/').count() != path.strip_prefix('/').unwrap_or(path).matches('/').count() {
        return None;
    }
    if decoded.contains('\0') {
        return None;
    }
    let folder = decoded.strip_suffix('/').unwrap_or(&decoded);
    let hidden = |part: &str| part.starts_with('.') && part != ".well-known";
    if !folder.is_empty() && folder.split('/').any(|part| part.is_empty() || hidden(part)) {
        return None;
    }
    Some(decoded.into_owned())
}

fn suffix(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Br => "br",
        Encoding::Zstd => "zst",
        Encoding::Gzip => "gz",
    }
}

fn open(root: &rustix::fd::OwnedFd, name: &str, plain: &str, encoding: Option<Encoding>) -> Found {
    // NONBLOCK: a pipe of that name must not hold us up.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = match openat2(root, name, flags, Mode::empty(), resolve) {
        Ok(file) => File::from(file),
        Err(
            Errno::NOENT
            | Errno::NOTDIR
            | Errno::XDEV
            | Errno::LOOP
            | Errno::ACCESS
            | Errno::PERM
            | Errno::NAMETOOLONG
            | Errno::NXIO,
        ) => return Found::Nothing,
        Err(error) => return Found::Failed(error.into()),
    };
    let metadata = match file.metadata() {
        Ok(metadata) if metadata.is_dir() => return Found::Folder,
        Ok(metadata) if metadata.is_file() => metadata,
        Ok(_) => return Found::Nothing, // A device, a pipe.
        Err(error) => return Found::Failed(error),
    };
    let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    let coding = encoding.map(|encoding| format!("-{}", suffix(encoding))).unwrap_or_default();
    let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
    let etag = format!("\"{seconds:x}.{nanoseconds:x}-{:x}{coding}\"", metadata.len());
    let valid =
        |text: String| HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("application/octet-stream"));
    // A time before 1970 has no form in HTTP.
    let told = modified.max(SystemTime::UNIX_EPOCH + Duration::from_secs(1));
    Found::File(Opened {
        file,
        size: metadata.len(),
        etag: valid(etag),
        modified,
        last_modified: valid(httpdate::fmt_http_date(told)),
        content_type: valid(content_type(plain)),
        encoding,
    })
}

/// By what the name ends with; text is taken to be UTF-8.
fn content_type(name: &str) -> String {
    let guess = mime_guess::from_path(Path::new(name)).first_or_octet_stream();
    let text = guess.type_() == mime_guess::mime::TEXT || guess.subtype() == mime_guess::mime::JAVASCRIPT;
    if text { format!("{}; charset=utf-8", guess.essence_str()) } else { guess.essence_str().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_names_or_nothing() {
        let cases = [
            ("", Some("")),
            ("/", Some("")),
            ("/a.css", Some("a.css")),
            ("/a/b/", Some("a/b/")),
            ("/a%20b", Some("a b")),
            ("/%C3%A4", Some("ä")),
            ("/.well-known/x", Some(".well-known/x")),
            ("/.git/config", None),
            ("/a/.env", None),
            ("/%2e%2e/x", None),
            ("/..", None),
            ("/a%2Fb", None),
            ("/a%00", None),
            ("/a//b", None),
            ("/%ff", None),
        ];
        for (path, expected) in cases {
            assert_eq!(name(path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn content_types_are_those_of_the_plain_name() {
        for (name, expected) in [
            ("a.html", "text/html; charset=utf-8"),
            ("a.js", "text/javascript; charset=utf-8"),
            ("a.css", "text/css; charset=utf-8"),
            ("a.json", "application/json"),
            ("a.wasm", "application/wasm"),
            ("a.svg", "image/svg+xml"),
            ("a", "application/octet-stream"),
        ] {
            assert_eq!(content_type(name), expected, "{name}");
        }
    }
}
