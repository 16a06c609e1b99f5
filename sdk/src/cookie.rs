//! Cookies that a filter gives to a client (RFC 6265, 4.1; the prefixes and `SameSite` as in its revision).

use std::fmt::Write as _;
use std::time::Duration;

/// What browsers keep of one cookie, name and value together, in bytes.
const MAX_PAIR: usize = 4096;
/// The same for an attribute.
const MAX_ATTRIBUTE: usize = 1024;

/// A cookie for [`Reply::cookie`](crate::Reply::cookie) and [`Response::set_cookie`](crate::Response::set_cookie). Unless told otherwise it is
/// for the whole site (`Path=/`) and the session, goes over TLS alone (`Secure`), is hidden from scripts (`HttpOnly`) and does not come with
/// requests that other sites make (`SameSite=Lax`).
///
/// ```
/// use selvedge_sdk::SetCookie;
/// use std::time::Duration;
///
/// let cookie = SetCookie::new("__Host-version", "new").max_age(Duration::from_secs(3600));
/// assert_eq!(cookie.text().unwrap(), "__Host-version=new; Path=/; Max-Age=3600; Secure; HttpOnly; SameSite=Lax");
/// assert!(SetCookie::new("__Host-version", "new").domain("example.com").text().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a cookie is set by giving it to a reply or a response"]
pub struct SetCookie {
    name: String,
    value: String,
    path: Option<String>,
    domain: Option<String>,
    max_age: Option<Duration>,
    secure: bool,
    http_only: bool,
    same_site: SameSite,
    partitioned: bool,
}

/// With which requests of other sites a cookie comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameSite {
    /// None.
    Strict,
    /// When somebody follows a link from there.
    Lax,
    /// All; such a cookie must be `Secure`.
    None,
}

/// Why a cookie cannot be set. Values are not shown: they may be secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CookieError {
    /// Not a name.
    #[error("{0:?} is no name of a cookie")]
    Name(String),
    /// Not a value.
    #[error(
        "the value of cookie {0:?} has spaces, quotes, commas, semicolons, backslashes or what is not ASCII: encode it"
    )]
    Value(String),
    /// Not an attribute.
    #[error("{attribute} of cookie {name:?} is none")]
    Attribute {
        /// The cookie.
        name: String,
        /// Which one.
        attribute: &'static str,
    },
    /// Browsers would throw it away.
    #[error("cookie {0:?} is longer than 4096 bytes")]
    TooLong(String),
    /// The name promises what the attributes do not keep, or one attribute needs another: browsers would throw it away.
    #[error("cookie {name:?} needs {needs}")]
    Needs {
        /// The cookie.
        name: String,
        /// What it needs.
        needs: &'static str,
    },
}

impl SetCookie {
    /// A cookie.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            value: value.into(),
            path: Some("/".into()),
            domain: None,
            max_age: None,
            secure: true,
            http_only: true,
            same_site: SameSite::Lax,
            partitioned: false,
        }
    }

    /// Takes a cookie away from the client. Path and domain must be those it was set with.
    pub fn delete(name: impl Into<String>) -> Self {
        Self::new(name, "").max_age(Duration::ZERO)
    }

    /// The paths it is for; an empty one: those beside the request's. Default `/`.
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.path = Some(path.into()).filter(|path| !path.is_empty());
        self
    }

    /// The hosts it is for: this one and all below. Default: the request's host alone.
    pub fn domain(mut self, domain: impl Into<String>) -> Self {
        self.domain = Some(domain.into());
        self
    }

    /// How long it lives, in whole seconds. Default: until the browser ends.
    pub fn max_age(mut self, time: Duration) -> Self {
        self.max_age = Some(time);
        self
    }

    /// Over TLS alone. Default `true`.
    pub fn secure(mut self, secure: bool) -> Self {
        self.secure = secure;
        self
    }

    /// Hidden from scripts. Default `true`.
    pub fn http_only(mut self, http_only: bool) -> Self {
        self.http_only = http_only;
        self
    }

    /// With which requests of other sites it comes. Default [`SameSite::Lax`].
    pub fn same_site(mut self, same_site: SameSite) -> Self {
        self.same_site = same_site;
        self
    }

    /// Another one for each site that it is embedded in (CHIPS). Default `false`.
    pub fn partitioned(mut self, partitioned: bool) -> Self {
        self.partitioned = partitioned;
        self
    }

    /// The value of `Set-Cookie`.
    ///
    /// # Errors
    /// [`CookieError`]: a client would not take it.
    pub fn text(&self) -> Result<String, CookieError> {
        self.check()?;
        let mut text = format!("{}={}", self.name, self.value);
        let mut attribute = |name: &str, value: &str| {
            // Writing to a string does not fail.
            let _ = if value.is_empty() { write!(text, "; {name}") } else { write!(text, "; {name}={value}") };
        };
        if let Some(path) = &self.path {
            attribute("Path", path);
        }
        if let Some(domain) = &self.domain {
            attribute("Domain", domain);
        }
        if let Some(time) = self.max_age {
            attribute("Max-Age", &time.as_secs().to_string());
        }
        for (name, set) in [("Secure", self.secure), ("HttpOnly", self.http_only)] {
            if set {
                attribute(name, "");
            }
        }
        attribute(
            "SameSite",
            match self.same_site {
                SameSite::Strict => "Strict",
                SameSite::Lax => "Lax",
                SameSite::None => "None",
            },
        );
        if self.partitioned {
            attribute("Partitioned", "");
        }
        Ok(text)
    }

    fn check(&self) -> Result<(), CookieError> {
        let name = || self.name.clone();
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if self.name.is_empty() || !self.name.bytes().all(token) {
            return Err(CookieError::Name(name()));
        }
        let octet = |byte: u8| byte.is_ascii_graphic() && !b"\",;\\".contains(&byte);
        if !self.value.bytes().all(octet) {
            return Err(CookieError::Value(name()));
        }
        if self.name.len() + self.value.len() > MAX_PAIR {
            return Err(CookieError::TooLong(name()));
        }
        let sound = |value: &str| {
            value.len() <= MAX_ATTRIBUTE && value.bytes().all(|byte| byte.is_ascii_graphic() && byte != b';')
        };
        if self.path.as_ref().is_some_and(|path| !path.starts_with('/') || !sound(path)) {
            return Err(CookieError::Attribute { name: name(), attribute: "Path" });
        }
        if self.domain.as_ref().is_some_and(|domain| domain.is_empty() || !sound(domain)) {
            return Err(CookieError::Attribute { name: name(), attribute: "Domain" });
        }

        let needs = |needs| Err(CookieError::Needs { name: name(), needs });
        let lower = self.name.to_ascii_lowercase();
        let (host, secure) = (lower.starts_with("__host-"), lower.starts_with("__secure-"));
        if !self.secure && (host || secure || self.partitioned || self.same_site == SameSite::None) {
            return needs("Secure");
        }
        if host && self.path.as_deref() != Some("/") {
            return needs("the path /");
        }
        if host && self.domain.is_some() {
            return needs("to have no domain");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_written_as_they_are_set() {
        for (cookie, text) in [
            (SetCookie::new("a", "b"), "a=b; Path=/; Secure; HttpOnly; SameSite=Lax"),
            (
                SetCookie::new("a", "").path("").secure(false).http_only(false).same_site(SameSite::Strict),
                "a=; SameSite=Strict",
            ),
            (
                SetCookie::new("a", "b=c").path("/x").domain("example.com").max_age(Duration::from_millis(1900)),
                "a=b=c; Path=/x; Domain=example.com; Max-Age=1; Secure; HttpOnly; SameSite=Lax",
            ),
            (
                SetCookie::new("a", "b").same_site(SameSite::None).partitioned(true),
                "a=b; Path=/; Secure; HttpOnly; SameSite=None; Partitioned",
            ),
            (SetCookie::delete("a"), "a=; Path=/; Max-Age=0; Secure; HttpOnly; SameSite=Lax"),
            (
                SetCookie::new("__Secure-a", "b").domain("a.test"),
                "__Secure-a=b; Path=/; Domain=a.test; Secure; HttpOnly; SameSite=Lax",
            ),
        ] {
            assert_eq!(cookie.text().as_deref(), Ok(text));
        }
    }

    #[test]
    fn what_a_client_would_not_take_is_refused() {
        let a = || SetCookie::new("a", "b");
        for (cookie, part) in [
            (SetCookie::new("", "b"), "no name"),
            (SetCookie::new("a b", "b"), "no name"),
            (SetCookie::new("a=b", "b"), "no name"),
            (SetCookie::new("a", "b; Domain=evil.test"), "the value of"),
            (SetCookie::new("a", "b\r\nx: y"), "the value of"),
            (SetCookie::new("a", "\u{e4}"), "the value of"),
            (SetCookie::new("a", "x".repeat(4096)), "longer"),
            (a().path("x"), "Path of"),
            (a().path("/x; y"), "Path of"),
            (a().domain(""), "Domain of"),
            (a().domain("x;y"), "Domain of"),
            (a().secure(false).same_site(SameSite::None), "needs Secure"),
            (a().secure(false).partitioned(true), "needs Secure"),
            (SetCookie::new("__Secure-a", "b").secure(false), "needs Secure"),
            (SetCookie::new("__Host-a", "b").secure(false), "needs Secure"),
            (SetCookie::new("__host-a", "b").path("/x"), "needs the path /"),
            (SetCookie::new("__Host-a", "b").domain("a.test"), "needs to have no domain"),
        ] {
            let error = cookie.text().unwrap_err().to_string();
            assert!(error.contains(part), "{cookie:?}: {error}");
            assert!(!error.contains("evil"), "values are not shown");
        }
    }
}
