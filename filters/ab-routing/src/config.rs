//! What an operator writes, and the checked form of it.

use std::str::FromStr;
use std::time::Duration;

use selvedge_sdk::Upstream;

/// Longest name of an experiment or a variant, in characters.
const MAX_NAME: usize = 64;
/// Longest life of a sticky cookie: browsers cut longer ones to 400 days.
const MAX_AGE: Duration = Duration::from_secs(400 * 86_400);

/// Configuration of the filter.
#[derive(Clone, Debug, selvedge_sdk::Config)]
pub struct Config {
    /// The experiment's name; it salts the assignment and names the header to the origin, `x-ab-<experiment>`. Letters, digits and
    /// `-`; at most 64; case does not matter. Required.
    #[config(pattern = "^[-A-Za-z0-9]{1,64}$")]
    pub experiment: String,
    /// What identifies a user for the assignment. Default: `generated`.
    #[config(default)]
    pub user: User,
    /// The variants; at least one with a weight above 0, at most 64. Required.
    #[config(min_len = 1, max_len = 64)]
    pub variants: Vec<Variant>,
    /// The cookie that keeps a user in a variant; `null`: none, so that the assignment alone decides (it is the same each time for
    /// the same user key). With `user: generated` a cookie is needed. Default: a cookie with the defaults of [`Cookie`].
    #[config(default = Some(Cookie::default()))]
    pub cookie: Option<Cookie>,
    /// A request header by which testers choose a variant by name. Whoever knows its name can use it. It is not passed on, sets no
    /// cookie, and an unknown variant in it is ignored. Default: none.
    pub override_header: Option<String>,
}

/// What identifies a user.
#[derive(Clone, Debug, Default, PartialEq, Eq, selvedge_sdk::Config)]
pub enum User {
    /// The value of this cookie (a session or user id); a random key when the request has none.
    Cookie(String),
    /// The value of this request header (such as `x-user` from `jwt-auth`); a random key when the request has none.
    Header(String),
    /// The client's address; a random key when it is unknown.
    ClientIp,
    /// A random key, different on each request: the sticky cookie alone keeps a user in a variant.
    #[default]
    Generated,
}

/// One variant of the experiment.
#[derive(Clone, Debug, selvedge_sdk::Config)]
pub struct Variant {
    /// Its name, as the origin and the cookie see it: letters, digits, `-`, `_`, `.`; at most 64. Required.
    #[config(pattern = "^[-A-Za-z0-9_.]{1,64}$")]
    pub name: String,
    /// Its share of new users, relative to the sum of all weights: 0 to 1000000. 0: no new users, but those who have its cookie stay.
    /// Required.
    #[config(max = 1_000_000)]
    pub weight: u32,
    /// The upstream that serves it. Default: the one of the request's route.
    pub upstream: Option<Upstream>,
}

/// The sticky cookie.
#[derive(Clone, Debug, selvedge_sdk::Config)]
#[config(default)]
pub struct Cookie {
    /// Its name. Default: `ab-<experiment>`.
    pub name: Option<String>,
    /// How long it lasts: `s`, `m`, `h` or `d` after a number, 1s to 400d. Default: `30d`.
    #[config(default)]
    pub max_age: MaxAge,
    /// `Path`. Default: `/`.
    #[config(pattern = "^/[^;]*$")]
    pub path: Option<String>,
    /// `SameSite`. Default: `lax`.
    #[config(default)]
    pub same_site: SameSite,
    /// `HttpOnly`: hide it from scripts. Default: `true`.
    #[config(default = true)]
    pub http_only: bool,
    /// `Secure`: send it over TLS only. Default: set when the request came over TLS.
    pub secure: Option<bool>,
}

/// The `SameSite` attribute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, selvedge_sdk::Config)]
pub enum SameSite {
    /// Never on requests from other sites.
    Strict,
    /// Only on navigation from other sites.
    #[default]
    Lax,
    /// Always; browsers want `secure: true` with it.
    None,
}

/// A time written `30d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, selvedge_sdk::Config)]
#[config(from_str, pattern = "^[0-9]+[smhd]$", default = "30d")]
pub struct MaxAge(pub Duration);

/// The configuration, checked.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// Its name, in lower case.
    pub name: String,
    /// As [`Config::user`]; a header's name is in lower case.
    pub user: User,
    /// The variants, **ordered by name**, so that their order in the file does not matter.
    pub variants: Vec<Variant>,
    /// The sticky cookie, if any.
    pub cookie: Option<StickyCookie>,
    /// As [`Config::override_header`], in lower case.
    pub override_header: Option<String>,
    /// The header to the origin: `x-ab-<experiment>`.
    pub header: String,
}

/// The sticky cookie, checked.
#[derive(Clone, Debug)]
pub struct StickyCookie {
    /// Its name.
    pub name: String,
    /// The attributes after the value, without `Secure`.
    pub attributes: String,
    /// `Some`: always or never `Secure`; `None`: as the request came.
    pub secure: Option<bool>,
}

/// Why a configuration was refused. The text names the field, except where the field is being read: there the reader names it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// An experiment name that cannot stand in a header name.
    #[error("experiment: {0:?} must be 1 to 64 letters, digits or '-'")]
    Experiment(String),
    /// A variant name that cannot stand in a cookie.
    #[error("variants.name: {0:?} must be 1 to 64 letters, digits, '-', '_' or '.'")]
    VariantName(String),
    /// Two variants of one name.
    #[error("variants.name: {0:?} is given twice")]
    VariantTwice(String),
    /// Nobody would be assigned.
    #[error("variants.weight: at least one must be above 0")]
    NoWeight,
    /// Not a name for a cookie or a header.
    #[error("{field}: {value:?} is not a name for a {kind}")]
    Name {
        /// The field at fault.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it should name.
        kind: &'static str,
    },
    /// A random key on each request, and nothing to remember it by.
    #[error("cookie: user: generated needs a sticky cookie, or every request is a new user")]
    CookieNeeded,
    /// Not a time.
    #[error("{0:?} is not a time of the form 30d, 12h, 30m or 90s")]
    MaxAgeForm(String),
    /// A time outside its bounds.
    #[error("the time {0:?} must be 1s to 400d")]
    MaxAgeBounds(String),
    /// Not a path for a cookie.
    #[error("cookie.path: {0:?} must begin with '/' and hold no ';' or control character")]
    Path(String),
    /// What browsers refuse.
    #[error("cookie.same_site: none needs cookie.secure: true")]
    InsecureNone,
}

impl Config {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that is outside its bounds.
    pub fn check(self) -> Result<Experiment, ConfigError> {
        let name = self.experiment.to_ascii_lowercase();
        if !is_name(&name, |c| c.is_ascii_alphanumeric() || c == '-') {
            return Err(ConfigError::Experiment(self.experiment));
        }
        let user = match self.user {
            User::Header(header) => User::Header(header_name("user.header", header)?),
            User::Cookie(cookie) if !is_token(&cookie) => {
                return Err(ConfigError::Name { field: "user.cookie", value: cookie, kind: "cookie" });
            }
            User::Generated if self.cookie.is_none() => return Err(ConfigError::CookieNeeded),
            user => user,
        };
        let cookie = self.cookie.map(|cookie| cookie.check(&name)).transpose()?;
        let override_header = self.override_header.map(|header| header_name("override_header", header)).transpose()?;
        let header = format!("x-ab-{name}");
        Ok(Experiment { name, user, variants: check_variants(self.variants)?, cookie, override_header, header })
    }
}

fn check_variants(mut variants: Vec<Variant>) -> Result<Vec<Variant>, ConfigError> {
    for Variant { name, .. } in &variants {
        if !is_name(name, |c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
            return Err(ConfigError::VariantName(name.clone()));
        }
    }
    if variants.iter().all(|variant| variant.weight == 0) {
        return Err(ConfigError::NoWeight);
    }
    variants.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = variants.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(ConfigError::VariantTwice(pair[0].name.clone()));
    }
    Ok(variants)
}

impl Cookie {
    fn check(self, experiment: &str) -> Result<StickyCookie, ConfigError> {
        let name = self.name.unwrap_or_else(|| format!("ab-{experiment}"));
        if !is_token(&name) {
            return Err(ConfigError::Name { field: "cookie.name", value: name, kind: "cookie" });
        }
        let path = self.path.unwrap_or_else(|| "/".to_owned());
        if !path.starts_with('/') || !path.bytes().all(|byte| matches!(byte, 0x20..=0x7e) && byte != b';') {
            return Err(ConfigError::Path(path));
        }
        let same_site = match self.same_site {
            SameSite::Strict => "Strict",
            SameSite::Lax => "Lax",
            SameSite::None if self.secure != Some(true) => return Err(ConfigError::InsecureNone),
            SameSite::None => "None",
        };
        let mut attributes = format!("; Max-Age={}; Path={path}; SameSite={same_site}", self.max_age.0.as_secs());
        if self.http_only {
            attributes.push_str("; HttpOnly");
        }
        Ok(StickyCookie { name, attributes, secure: self.secure })
    }
}

impl Default for MaxAge {
    fn default() -> Self {
        Self(Duration::from_secs(30 * 86_400))
    }
}

impl FromStr for MaxAge {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit: u64 = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return Err(ConfigError::MaxAgeForm(text.to_owned())),
        };
        if number.is_empty() {
            return Err(ConfigError::MaxAgeForm(text.to_owned()));
        }
        let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        match seconds.map(Duration::from_secs) {
            Some(age) if !age.is_zero() && age <= MAX_AGE => Ok(Self(age)),
            _ => Err(ConfigError::MaxAgeBounds(text.to_owned())),
        }
    }
}

fn header_name(field: &'static str, value: String) -> Result<String, ConfigError> {
    if is_token(&value) {
        Ok(value.to_ascii_lowercase())
    } else {
        Err(ConfigError::Name { field, value, kind: "header" })
    }
}

fn is_name(name: &str, allowed: impl Fn(char) -> bool) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(allowed)
}

/// RFC 9110, 5.6.2; also the form of a cookie's name (RFC 6265, 4.1.1).
fn is_token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: serde_json::Value) -> Result<Experiment, String> {
        let config: Config = selvedge_sdk::config::parse(value.to_string().as_bytes())?;
        config.check().map_err(|error| error.to_string())
    }

    #[test]
    fn name_and_variants_are_enough() {
        let experiment =
            parse(json!({ "experiment": "Checkout", "variants": [{ "name": "a", "weight": 1 }] })).unwrap();
        assert_eq!((experiment.name.as_str(), experiment.header.as_str()), ("checkout", "x-ab-checkout"));
        assert_eq!((experiment.user, experiment.override_header), (User::Generated, None));
        let cookie = experiment.cookie.unwrap();
        assert_eq!(cookie.name, "ab-checkout");
        assert_eq!(cookie.attributes, "; Max-Age=2592000; Path=/; SameSite=Lax; HttpOnly");
        assert_eq!(cookie.secure, None);
    }

    #[test]
    fn times_have_units() {
        for (text, seconds) in [("90s", 90), ("30m", 1800), ("12h", 43_200), ("30d", 2_592_000), ("400d", 34_560_000)] {
            assert_eq!(text.parse::<MaxAge>(), Ok(MaxAge(Duration::from_secs(seconds))), "{text}");
        }
        for text in ["", "30", "d", "-1d", "1.5d", "30 d", "1w"] {
            assert_eq!(text.parse::<MaxAge>(), Err(ConfigError::MaxAgeForm(text.to_owned())), "{text}");
        }
        for text in ["0s", "401d", "99999999999999999999d", "18446744073709551615d"] {
            assert_eq!(text.parse::<MaxAge>(), Err(ConfigError::MaxAgeBounds(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn a_fault_names_its_field() {
        let with = |extra: serde_json::Value| {
            let mut value = json!({ "experiment": "e", "variants": [{ "name": "a", "weight": 1 }] });
            value.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            value
        };
        for (value, part) in [
            (json!({ "variants": [{ "name": "a", "weight": 1 }] }), "missing field `experiment`"),
            (with(json!({ "experiment": "a b" })), "experiment: \"a b\""),
            (with(json!({ "experiment": "" })), "experiment: \"\""),
            (with(json!({ "variants": [] })), "`variants`: must have at least 1 entry"),
            (with(json!({ "variants": [{ "name": "a;b", "weight": 1 }] })), "variants.name: \"a;b\""),
            (with(json!({ "variants": [{ "name": "a", "weight": 1 }, { "name": "a", "weight": 1 }] })), "given twice"),
            (with(json!({ "variants": [{ "name": "a", "weight": 0 }] })), "at least one must be above 0"),
            (
                with(json!({ "variants": [{ "name": "a", "weight": 1_000_001 }] })),
                "`variants[0].weight`: must be at most 1000000",
            ),
            (with(json!({ "variants": [{ "name": "a", "weight": -1 }] })), "invalid value: integer `-1`"),
            (
                with(json!({ "variants": [{ "name": "a", "weight": 1, "upstream": "" }] })),
                "`variants[0].upstream`: names no upstream",
            ),
            (with(json!({ "sticky": true })), "unknown field `sticky`"),
            (with(json!({ "user": { "header": "a b" } })), "user.header: \"a b\""),
            (with(json!({ "user": { "cookie": "a=b" } })), "user.cookie: \"a=b\""),
            (with(json!({ "cookie": null })), "cookie: user: generated needs"),
            (with(json!({ "cookie": { "name": "a b" } })), "cookie.name: \"a b\""),
            (with(json!({ "cookie": { "max_age": "1y" } })), "\"1y\" is not a time"),
            (with(json!({ "cookie": { "path": "/; Secure" } })), "cookie.path"),
            (with(json!({ "cookie": { "path": "a" } })), "cookie.path"),
            (with(json!({ "cookie": { "same_site": "none" } })), "cookie.same_site"),
            (with(json!({ "override_header": "" })), "override_header: \"\""),
        ] {
            let error = parse(value.clone()).unwrap_err();
            assert!(error.contains(part), "{value}: {error}");
        }
    }
}
