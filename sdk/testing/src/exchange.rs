//! The exchange as data: what the host calls of either kind of guest read and change.

use std::collections::BTreeMap;

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
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    pub(crate) request: Half,
    pub(crate) response: Half,
    pub(crate) properties: BTreeMap<Vec<String>, Vec<u8>>,
}

/// The headers, and the part of the body that is held.
#[derive(Debug, Default)]
pub(crate) struct Half {
    /// `None`: not there yet.
    pub(crate) headers: Option<Vec<(String, Vec<u8>)>>,
    /// The headers have gone on.
    pub(crate) sent: bool,
    /// `None`: there is no buffer in this phase.
    pub(crate) held: Option<Vec<u8>>,
}

impl Exchange {
    pub(crate) fn new(headers: Vec<(String, Vec<u8>)>, properties: BTreeMap<Vec<String>, Vec<u8>>) -> Self {
        Self { request: Half { headers: Some(headers), ..Half::default() }, response: Half::default(), properties }
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

    pub(crate) fn property(&self, path: &[&str]) -> Option<&[u8]> {
        let path: Vec<String> = path.iter().map(|&segment| segment.to_owned()).collect();
        self.properties.get(&path).map(Vec::as_slice)
    }

    pub(crate) fn set_property(&mut self, path: &[&str], value: &[u8]) {
        self.properties.insert(path.iter().map(|&segment| segment.to_owned()).collect(), value.to_vec());
    }
}

impl Half {
    pub(crate) fn header(&self, name: &str) -> Option<&[u8]> {
        let name = if name.eq_ignore_ascii_case("host") { ":authority" } else { name };
        let headers = self.headers.as_ref()?;
        headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_slice())
    }

    /// Replaces in the place of the first value, as the shipped host does.
    pub(crate) fn set_header(&mut self, name: &str, value: &[u8]) -> Result<(), Refused> {
        let name = canonical(name);
        let headers = self.writable(&name, value)?;
        match headers.iter().position(|(other, _)| *other == name) {
            Some(first) => {
                headers[first].1 = value.to_vec();
                let mut at = 0;
                headers.retain(|(other, _)| {
                    at += 1;
                    at - 1 <= first || *other != name
                });
            }
            None => headers.push((name, value.to_vec())),
        }
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

    /// Replaces part of what is held; beyond its end means behind it.
    pub(crate) fn splice(&mut self, start: usize, size: usize, bytes: &[u8]) -> Result<(), Refused> {
        let held = self.held.as_mut().ok_or(Refused)?;
        let start = start.min(held.len());
        let end = start.saturating_add(size).min(held.len());
        held.splice(start..end, bytes.iter().copied());
        Ok(())
    }

    fn writable(&mut self, name: &str, value: &[u8]) -> Result<&mut Vec<(String, Vec<u8>)>, Refused> {
        let sound = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_graphic())
            && !value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n'));
        match &mut self.headers {
            Some(headers) if sound && !self.sent => Ok(headers),
            _ => Err(Refused),
        }
    }
}

fn canonical(name: &str) -> String {
    if name.eq_ignore_ascii_case("host") { ":authority".into() } else { name.to_ascii_lowercase() }
}
