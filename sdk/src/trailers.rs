//! What stands behind a body.

use crate::HeaderValue;
use crate::host::{self, Map};

/// The trailers of a message (RFC 9110, 6.5), from [`Message::trailers`](crate::Message::trailers). A message without any looks like one
/// with none in it, but hosts refuse to add some to it.
///
/// A change that the host refuses is logged at warn and otherwise without effect.
#[derive(Debug)]
pub struct Trailers(Map);

impl Trailers {
    pub(crate) fn new(map: Map) -> Self {
        Self(map)
    }

    /// The first value of a field.
    pub fn get(&self, name: impl AsRef<str>) -> Option<HeaderValue> {
        host::current().header(self.0, name.as_ref()).map(HeaderValue::from)
    }

    /// All fields in order.
    pub fn iter(&self) -> impl Iterator<Item = (String, Vec<u8>)> + use<> {
        host::current().headers(self.0).into_iter()
    }

    /// Sets a field, in place of all values it had.
    pub fn set(&mut self, name: impl AsRef<str>, value: impl AsRef<[u8]>) {
        let name = name.as_ref();
        host::current()
            .set_header(self.0, name, value.as_ref())
            .unwrap_or_else(|status| log::warn!("trailer {name} could not be set: {status}"));
    }

    /// Adds a value to a field, behind those it has.
    pub fn add(&mut self, name: impl AsRef<str>, value: impl AsRef<[u8]>) {
        let name = name.as_ref();
        host::current()
            .add_header(self.0, name, value.as_ref())
            .unwrap_or_else(|status| log::warn!("trailer {name} could not be added: {status}"));
    }

    /// Removes all values of a field; nothing happens when there are none.
    pub fn remove(&mut self, name: impl AsRef<str>) {
        let name = name.as_ref();
        host::current()
            .remove_header(self.0, name)
            .unwrap_or_else(|status| log::warn!("trailer {name} could not be removed: {status}"));
    }
}
