//! The exchange as data: what the host calls of either kind of guest read and change, by the rules of the shipped host
//! (`docs/properties.md`).

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// Names and values, in order.
pub(crate) type Fields = Vec<(String, Vec<u8>)>;

/// The most properties of a filter's own that the host keeps for an exchange, and their sizes in bytes.
const MAX_PROPERTIES: usize = 64;
const MAX_PATH: usize = 256;
const MAX_VALUE: usize = 16 * 1024;

/// The most response headers that are kept until there is a response.
const MAX_EARLY: usize = 64;

/// What begins the paths that are the host's.
const OWNED: [&str; 18] = [
    "request",
    "response",
    "source",
    "destination",
    "connection",
    "upstream",
    "cluster_name",
    "xds",
    "site",
    "route_name",
    "listener",
    "listener_direction",
    "node",
    "plugin_name",
    "plugin_root_id",
    "plugin_vm_id",
    "cache",
    "selvedge",
];

/// Which half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Request,
    Response,
}

/// Why a change is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused;

/// One request and its response.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exchange {
    pub(crate) request: Half,
    pub(crate) response: Half,
    /// What the test says, by path: it wins over everything.
    given: BTreeMap<String, Vec<u8>>,
    /// What the filter has set and nobody but filters knows.
    kept: BTreeMap<String, Vec<u8>>,
    /// Every property that the filter has set, in order.
    pub(crate) writes: Vec<(String, Vec<u8>)>,
    /// Changes to a response that has not come yet.
    early: Vec<Early>,
    upstreams: Vec<String>,
    started: Option<SystemTime>,
}

/// The headers, and the part of the body that is held.
#[derive(Clone, Debug, Default)]
pub(crate) struct Half {
    /// `None`: not there yet.
    pub(crate) headers: Option<Fields>,
    /// `None`: there are none, or not yet.
    pub(crate) trailers: Option<Fields>,
    /// The headers have gone on.
    pub(crate) sent: bool,
    /// `None`: there is no buffer in this phase.
    pub(crate) held: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
enum Early {
    Set(String, Vec<u8>),
    Add(String, Vec<u8>),
    Remove(String),
}

impl Exchange {
    pub(crate) fn new(
        headers: Fields,
        given: BTreeMap<String, Vec<u8>>,
        upstreams: Vec<String>,
        now: SystemTime,
    ) -> Self {
        let request = Half { headers: Some(headers), ..Half::default() };
        Self { request, given, upstreams, started: Some(now), ..Self::default() }
    }

    pub(crate) fn half(&self, side: Side) -> &Half {
        match side {
            Side::Request => &self.request,
            Side::Response => &self.response,
        }
    }

    pub(crate) fn half_mut(&mut self, side: Side) -> &mut Half {
        match side {
            Side::Request => &mut self.request,
            Side::Response => &mut self.response,
        }
    }

    /// The response is here: changes that were made before it came are made now.
    pub(crate) fn respond(&mut self, headers: Fields) {
        self.response = Half { headers: Some(headers), ..Half::default() };
        for early in std::mem::take(&mut self.early) {
            // They were checked when they were made.
            let _ = match early {
                Early::Set(name, value) => self.response.set_header(&name, &value),
                Early::Add(name, value) => self.response.add_header(&name, &value),
                Early::Remove(name) => self.response.remove_header(&name),
            };
        }
    }

    pub(crate) fn set_header(&mut self, side: Side, name: &str, value: &[u8]) -> Result<(), Refused> {
        match self.early(side, name, value)? {
            Some(name) => self.keep(Early::Set(name, value.to_vec())),
            None => self.half_mut(side).set_header(name, value),
        }
    }

    pub(crate) fn add_header(&mut self, side: Side, name: &str, value: &[u8]) -> Result<(), Refused> {
        match self.early(side, name, value)? {
            Some(name) => self.keep(Early::Add(name, value.to_vec())),
            None => self.half_mut(side).add_header(name, value),
        }
    }

    pub(crate) fn remove_header(&mut self, side: Side, name: &str) -> Result<(), Refused> {
        match self.early(side, name, b"")? {
            Some(name) => self.keep(Early::Remove(name)),
            None => self.half_mut(side).remove_header(name),
        }
    }

    /// The name, when the change is one of a response that has not come yet.
    fn early(&self, side: Side, name: &str, value: &[u8]) -> Result<Option<String>, Refused> {
        if side == Side::Request || self.response.headers.is_some() {
            return Ok(None);
        }
        let name = canonical(name);
        let fixed = matches!(&*name, ":status" | "content-length" | "transfer-encoding");
        if fixed || !is_sound(&name, value) { Err(Refused) } else { Ok(Some(name)) }
    }

    fn keep(&mut self, early: Early) -> Result<(), Refused> {
        if self.early.len() >= MAX_EARLY {
            return Err(Refused);
        }
        self.early.push(early);
        Ok(())
    }

    pub(crate) fn property(&self, path: &[&str]) -> Option<Vec<u8>> {
        let path = path.join(".");
        if let Some(value) = self.given.get(&path) {
            return Some(value.clone());
        }
        let own = path.strip_prefix("wasm.").unwrap_or(&path);
        if let Some(value) = self.kept.get(own) {
            return Some(value.clone());
        }
        match path.split_once('.')? {
            ("request", what) => self.of_request(what),
            ("response", what) => self.of_response(what),
            ("selvedge", "upstream") => self.chosen_upstream().map(|name| name.as_bytes().to_vec()),
            ("cache", "key_parts" | "tags") => {
                let written: Fields = self.written(&path).map(|value| (text(value), Vec::new())).collect();
                (!written.is_empty()).then(|| pairs(&written))
            }
            ("cache", _) => self.written(&path).next_back().map(<[u8]>::to_vec),
            _ => None,
        }
    }

    pub(crate) fn set_property(&mut self, path: &[&str], value: &[u8]) -> Result<(), Refused> {
        let path = path.join(".");
        if path.is_empty() || path.len() > MAX_PATH || value.len() > MAX_VALUE {
            return Err(Refused);
        }
        let known = |upstreams: &[String]| upstreams.iter().any(|name| name.as_bytes() == value);
        let count = |writes: &[(String, Vec<u8>)]| writes.iter().filter(|(known, _)| *known == path).count();
        let goes_on = self.request.sent;
        match &*path {
            "selvedge.upstream" if !goes_on && known(&self.upstreams) => {}
            "request.path" if !goes_on => self.request.set_header(":path", value)?,
            "request.host" if !goes_on => self.request.set_header(":authority", value)?,
            "cache.key_parts" if !goes_on && value.len() <= 1024 && count(&self.writes) < 16 => {}
            "cache.tags" if !goes_on && value.len() <= 1024 && count(&self.writes) < 64 => {}
            "cache.ttl" if !goes_on && lifetime(value).is_some() => {}
            "cache.bypass" if !goes_on && truth(value).is_some() => {}
            _ if OWNED.contains(&path.split('.').next().unwrap_or_default()) => return Err(Refused),
            _ if !self.kept.contains_key(&path) && self.kept.len() >= MAX_PROPERTIES => return Err(Refused),
            _ => {
                self.kept.insert(path.clone(), value.to_vec());
            }
        }
        self.writes.push((path, value.to_vec()));
        Ok(())
    }

    /// The upstream that the filter has chosen.
    pub(crate) fn chosen_upstream(&self) -> Option<&str> {
        let chosen = self.written("selvedge.upstream").next_back()?;
        std::str::from_utf8(chosen).ok()
    }

    fn written<'e>(&'e self, path: &'e str) -> impl DoubleEndedIterator<Item = &'e [u8]> {
        self.writes.iter().filter(move |(known, _)| known == path).map(|(_, value)| value.as_slice())
    }

    fn of_request(&self, what: &str) -> Option<Vec<u8>> {
        let header = |name| self.request.header(name).map(<[u8]>::to_vec);
        let path = self.request.header(":path").unwrap_or_default();
        let mut parts = path.splitn(2, |byte| *byte == b'?');
        let (url_path, query) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        match what {
            "path" => header(":path"),
            "url_path" => Some(url_path.to_vec()),
            "query" => Some(query.to_vec()),
            "host" => header(":authority"),
            "scheme" => header(":scheme"),
            "method" => header(":method"),
            "protocol" => Some(b"HTTP/1.1".to_vec()),
            "referer" => header("referer"),
            "useragent" => header("user-agent"),
            "id" => header("x-request-id"),
            "time" => {
                let since = self.started?.duration_since(UNIX_EPOCH).ok()?;
                Some(u64::try_from(since.as_nanos()).ok()?.to_le_bytes().to_vec())
            }
            "headers" => self.request.headers.as_deref().map(pairs),
            _ => self.request.joined(what.strip_prefix("headers.")?),
        }
    }

    fn of_response(&self, what: &str) -> Option<Vec<u8>> {
        match what {
            "code" => {
                let status: i64 = text(self.response.header(":status")?).parse().ok()?;
                Some(status.to_le_bytes().to_vec())
            }
            "headers" => self.response.headers.as_deref().map(pairs),
            _ => self.response.joined(what.strip_prefix("headers.")?),
        }
    }
}

impl Half {
    pub(crate) fn header(&self, name: &str) -> Option<&[u8]> {
        let name = if name.eq_ignore_ascii_case("host") { ":authority" } else { name };
        let headers = self.headers.as_ref()?;
        headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_slice())
    }

    /// All values, as properties have them.
    fn joined(&self, name: &str) -> Option<Vec<u8>> {
        let headers = self.headers.as_ref()?.iter();
        let values: Vec<&[u8]> =
            headers.filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_slice()).collect();
        (!values.is_empty()).then(|| values.join(&b','))
    }

    /// Replaces in the place of the first value, as the shipped host does.
    pub(crate) fn set_header(&mut self, name: &str, value: &[u8]) -> Result<(), Refused> {
        let name = canonical(name);
        set(self.writable(&name, value)?, &name, value);
        Ok(())
    }

    pub(crate) fn add_header(&mut self, name: &str, value: &[u8]) -> Result<(), Refused> {
        let name = canonical(name);
        if name.starts_with(':') {
            return self.set_header(&name, value);
        }
        self.writable(&name, value)?.push((name, value.to_vec()));
        Ok(())
    }

    pub(crate) fn remove_header(&mut self, name: &str) -> Result<(), Refused> {
        let name = canonical(name);
        self.writable(&name, b"")?.retain(|(other, _)| *other != name);
        Ok(())
    }

    /// The trailers, to be changed; they are there while they are shown.
    pub(crate) fn trailers_mut(&mut self, name: &str, value: &[u8]) -> Result<&mut Fields, Refused> {
        match &mut self.trailers {
            Some(trailers) if is_sound(name, value) && !name.starts_with(':') => Ok(trailers),
            _ => Err(Refused),
        }
    }

    /// Replaces part of what is held; beyond its end means behind it.
    pub(crate) fn splice(&mut self, start: usize, size: usize, bytes: &[u8]) -> Result<(), Refused> {
        let held = self.held.as_mut().ok_or(Refused)?;
        let start = start.min(held.len());
        let end = start.saturating_add(size).min(held.len());
        held.splice(start..end, bytes.iter().copied());
        Ok(())
    }

    fn writable(&mut self, name: &str, value: &[u8]) -> Result<&mut Fields, Refused> {
        match &mut self.headers {
            Some(headers) if is_sound(name, value) && !self.sent => Ok(headers),
            _ => Err(Refused),
        }
    }
}

/// Replaces all values of a name by one, in the place of the first.
pub(crate) fn set(fields: &mut Fields, name: &str, value: &[u8]) {
    match fields.iter().position(|(other, _)| other == name) {
        Some(first) => {
            fields[first].1 = value.to_vec();
            let mut at = 0;
            fields.retain(|(other, _)| {
                at += 1;
                at - 1 <= first || other != name
            });
        }
        None => fields.push((name.to_owned(), value.to_vec())),
    }
}

/// A lifetime for the cache: digits, or nanoseconds in eight bytes.
pub(crate) fn lifetime(value: &[u8]) -> Option<std::time::Duration> {
    let seconds = std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok());
    match (seconds, <[u8; 8]>::try_from(value)) {
        (Some(seconds), _) => Some(std::time::Duration::from_secs(seconds)),
        (None, Ok(bytes)) => u64::try_from(i64::from_le_bytes(bytes)).ok().map(std::time::Duration::from_nanos),
        (None, Err(_)) => None,
    }
}

/// A truth value, as properties of the cache take it.
pub(crate) fn truth(value: &[u8]) -> Option<bool> {
    match value {
        b"1" | b"true" | b"\x01" => Some(true),
        b"0" | b"false" | b"\x00" => Some(false),
        _ => None,
    }
}

fn is_sound(name: &str, value: &[u8]) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_graphic())
        && !value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n'))
}

pub(crate) fn canonical(name: &str) -> String {
    if name.eq_ignore_ascii_case("host") { ":authority".into() } else { name.to_ascii_lowercase() }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A map as the ABI writes it: the count, the lengths, and each name and value with a NUL behind it.
fn pairs(fields: &[(String, Vec<u8>)]) -> Vec<u8> {
    let size = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    let mut bytes = size(fields.len()).to_vec();
    for (name, value) in fields {
        bytes.extend(size(name.len()));
        bytes.extend(size(value.len()));
    }
    for (name, value) in fields {
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(value);
        bytes.push(0);
    }
    bytes
}
