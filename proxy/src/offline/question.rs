//! A request that is asked about: what a client would send, where it would arrive, and from where it comes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use selvedge_geoip::CountryCode;

use super::Offline;
use crate::listener::ListenerFacts;
use crate::plan::without_port;

/// Where clients come from of whom nothing is said.
const SOMEBODY: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The port they come from; nobody has it.
const CLIENT_PORT: u16 = 40_000;

/// A request as somebody describes it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Question {
    /// `https://host[:port]/path?query`, or a path alone. It is sent as it is written.
    pub(crate) url: String,
    pub(crate) method: String,
    /// A `host` among them stands for that of the URL.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    pub(crate) client: Option<IpAddr>,
    /// Instead of `client`: any address of this country.
    pub(crate) country: Option<String>,
    /// Where it arrives; else by scheme and port of the URL.
    pub(crate) listener: Option<String>,
}

/// Why nobody could send such a request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unaskable {
    #[error("{0} has characters that no request can carry there")]
    Characters(&'static str),
    #[error("{0} is neither a URL of http or https nor a path")]
    Url(String),
    #[error("no listener is called {name}; there is {known}")]
    NoListener { name: String, known: String },
    #[error("listener {0} speaks no HTTP")]
    NotHttp(String),
    #[error("no listener takes {0}")]
    NoScheme(&'static str),
    #[error("{0} is not the code of a country")]
    Country(String),
    #[error("nobody knows where clients are: the configuration has no `geo`")]
    NoGeo,
    #[error("the geo database has no address in {0}")]
    NobodyThere(String),
}

/// A request that can be sent.
pub(super) struct Sent {
    pub(super) bytes: Vec<u8>,
    pub(super) target: String,
    pub(super) listener: Arc<ListenerFacts>,
    /// Where the listener is; `None` = at a Unix socket.
    pub(super) bind: Option<SocketAddr>,
    /// From where it comes; `None` = through a Unix socket, if nothing else is said.
    pub(super) client: Option<SocketAddr>,
    /// What a client would ask for in a TLS handshake: the host of the URL, if it is a name.
    pub(super) server_name: Option<String>,
}

impl Question {
    /// As a client would send it.
    pub(super) fn sent(&self, offline: &Offline) -> Result<Sent, Unaskable> {
        let (scheme, authority, target) = parts(&self.url)?;
        let (listener, bind) = self.arrives(offline, scheme, authority)?;
        let client = self.comes_from(offline)?.or_else(|| (!listener.unix).then_some(SOMEBODY));
        let host = without_port(authority).to_ascii_lowercase();
        let is_name = !host.is_empty() && !host.starts_with('[') && host.parse::<IpAddr>().is_err();
        Ok(Sent {
            bytes: self.bytes(authority, target)?,
            target: target.to_owned(),
            listener,
            bind,
            client: client.map(|client| SocketAddr::new(client, CLIENT_PORT)),
            server_name: is_name.then_some(host),
        })
    }

    fn bytes(&self, authority: &str, target: &str) -> Result<Vec<u8>, Unaskable> {
        let one_line = |what, text: &str| {
            let whole = !text.bytes().any(|byte| matches!(byte, b'\r' | b'\n' | 0));
            if whole { Ok(()) } else { Err(Unaskable::Characters(what)) }
        };
        one_line("the URL", &self.url)?;
        one_line("the method", &self.method)?;
        if self.method.contains(' ') || self.method.is_empty() {
            return Err(Unaskable::Characters("the method"));
        }
        let has = |wanted: &str| self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(wanted));
        let mut head = format!("{} {target} HTTP/1.1\r\n", self.method);
        if !has("host") && !authority.is_empty() {
            head.push_str(&format!("host: {authority}\r\n"));
        }
        for (name, value) in &self.headers {
            one_line("a header", name)?;
            one_line("a header", value)?;
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self.body.is_empty() && !has("content-length") && !has("transfer-encoding") {
            head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        head.push_str("\r\n");
        head.push_str(&self.body);
        Ok(head.into_bytes())
    }

    /// The listener that is named; else the one of the URL's port, else the first of those that speak its scheme.
    fn arrives(
        &self,
        offline: &Offline,
        scheme: Option<&'static str>,
        authority: &str,
    ) -> Result<(Arc<ListenerFacts>, Option<SocketAddr>), Unaskable> {
        let bind = |name: &str| offline.config.listeners.get(name).map(|listener| listener.bind.tcp());
        if let Some(name) = &self.listener {
            let Some((facts, bind)) = offline.listeners.get(name).cloned().zip(bind(name)) else {
                let known = offline.listeners.keys().cloned().collect::<Vec<_>>().join(", ");
                return Err(Unaskable::NoListener { name: name.clone(), known });
            };
            return if facts.tcp { Err(Unaskable::NotHttp(name.clone())) } else { Ok((facts, bind)) };
        }
        let http = offline.listeners.values().filter(|facts| !facts.tcp);
        let mut speaking: Vec<_> = http
            .filter(|facts| scheme.is_none_or(|scheme| facts.scheme() == scheme))
            .filter_map(|facts| Some((Arc::clone(facts), bind(&facts.name)?)))
            .collect();
        // In the order they are written, as far as they are in one file.
        speaking.sort_by_key(|(facts, _)| {
            offline.config.listeners.get(&facts.name).map(|listener| {
                let position = &listener.position;
                (position.file.clone(), position.line, position.column)
            })
        });
        let standard = scheme.map(|scheme| if scheme == "https" { 443 } else { 80 });
        let written = authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let of_port =
            speaking.iter().find(|(_, bind)| bind.is_some_and(|bind| Some(bind.port()) == written.or(standard)));
        of_port.or(speaking.first()).cloned().ok_or(Unaskable::NoScheme(scheme.unwrap_or("HTTP")))
    }

    fn comes_from(&self, offline: &Offline) -> Result<Option<IpAddr>, Unaskable> {
        let Some(code) = &self.country else { return Ok(self.client) };
        let country: CountryCode = code.parse().map_err(|_| Unaskable::Country(code.clone()))?;
        let plan = offline.current.plan();
        let geo = plan.geo.as_ref().ok_or(Unaskable::NoGeo)?;
        geo.address_in(country).map(Some).ok_or_else(|| Unaskable::NobodyThere(code.clone()))
    }
}

/// Scheme, authority and target of a URL, none of them changed: what is odd about them is for the node to judge.
fn parts(url: &str) -> Result<(Option<&'static str>, &str, &str), Unaskable> {
    let url = url.split('#').next().unwrap_or_default(); // Clients keep fragments to themselves (RFC 9110, 7.1).
    if url.starts_with('/') || url == "*" {
        return Ok((None, "", url));
    }
    let (scheme, rest) = url.split_once("://").ok_or_else(|| Unaskable::Url(url.to_owned()))?;
    let scheme = ["http", "https"].into_iter().find(|known| scheme.eq_ignore_ascii_case(known));
    let scheme = scheme.ok_or_else(|| Unaskable::Url(url.to_owned()))?;
    let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    Ok((Some(scheme), authority, if target.is_empty() { "/" } else { target }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_and_not_changed() {
        let cases = [
            ("https://a.test/x/../y?q=1#frag", (Some("https"), "a.test", "/x/../y?q=1")),
            ("HTTP://A.test:8080", (Some("http"), "A.test:8080", "/")),
            ("http://[::1]:80/%2e", (Some("http"), "[::1]:80", "/%2e")),
            ("/p?u=http://x/", (None, "", "/p?u=http://x/")),
            ("*", (None, "", "*")),
        ];
        for (url, expected) in cases {
            assert_eq!(parts(url).unwrap(), expected, "{url}");
        }
        for url in ["ftp://a/", "a.test/x", ""] {
            assert!(parts(url).is_err(), "{url}");
        }
    }

    #[test]
    fn what_would_be_two_requests_is_none() {
        let good = Question { url: "http://a/".into(), method: "GET".into(), ..Question::default() };
        assert_eq!(good.bytes("a", "/").unwrap(), b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        let bad = [
            Question { url: "http://a/\r\nx: y".into(), ..good.clone() },
            Question { method: "GET /\r\n".into(), ..good.clone() },
            Question { method: String::new(), ..good.clone() },
            Question { headers: vec![("x".into(), "y\n\r\nGET".into())], ..good.clone() },
            Question { headers: vec![("x: y\r\nz".into(), String::new())], ..good },
        ];
        for question in bad {
            assert!(question.bytes("a", "/").is_err(), "{question:?}");
        }
    }
}
