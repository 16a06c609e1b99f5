//! Which endpoints are nearer than others.

use schemars::JsonSchema;

use crate::decode::{At, Cx, Fields, check_name, parsed, whole};

/// Sends requests to near endpoints, as long as they can take them.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Prefer {
    /// What is near: `nearest` takes endpoints in the client's country before others, then the least great-circle distance from the
    /// client to `at`; it needs `geo`, and a client of whom nothing is known gets any endpoint. `zone:NAME` takes endpoints with that
    /// `zone` before others. Of equally near ones, `balance` chooses (`round_robin` as `least_request` would). Required.
    #[schemars(with = "String", regex(pattern = r"^(nearest|zone:.+)$|\$\{"))]
    pub by: PreferBy,

    /// An endpoint with so many requests under way for each unit of its weight is passed over for farther ones; when all have as many,
    /// all are used as if nothing was preferred. 0: no limit. From 0 to 65535. Default 0.
    #[schemars(with = "Option<u16>", extend("default" = 0))]
    pub load_limit: u16,
}

/// What makes an endpoint near.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PreferBy {
    /// Where the client and the endpoint are.
    Nearest,
    /// The endpoint's zone.
    Zone(String),
}

/// Where an endpoint stands, as far as it is written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Place {
    /// Its zone.
    pub zone: Option<String>,
    /// Its country, two letters in upper case.
    pub country: Option<String>,
    /// Its latitude and longitude in degrees.
    pub at: Option<(f64, f64)>,
}

impl Prefer {
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Prefer")?;
        let by = fields.need(cx, "by", |cx, at| {
            parsed(cx, at, "`nearest` or `zone:NAME`", |text| match text.strip_prefix("zone:") {
                _ if text == "nearest" => Ok(PreferBy::Nearest),
                Some(name) => zone(name).map(PreferBy::Zone),
                None => Err(("is nothing to prefer by".into(), None)),
            })
        });
        let load_limit = fields.read(cx, "load_limit", |cx, at| whole(cx, at, 0, u16::MAX));
        fields.close(cx);
        Some(Self { by: by?, load_limit: load_limit.unwrap_or(0) })
    }
}

impl Place {
    /// The keys of an endpoint that say where it stands.
    pub(super) fn read(cx: &mut Cx<'_>, fields: &mut Fields<'_>) -> Self {
        Self {
            zone: fields.read(cx, "zone", |cx, at| parsed(cx, at, "the name of a zone", zone)),
            country: fields.read(cx, "country", |cx, at| parsed(cx, at, "the two letters of a country", country)),
            at: fields.read(cx, "at", |cx, at| parsed(cx, at, "`LATITUDE,LONGITUDE` in degrees", coordinates)),
        }
    }
}

fn zone(text: &str) -> Result<String, (String, Option<String>)> {
    check_name(text).map(|()| text.to_owned()).map_err(|why| (why, None))
}

fn country(text: &str) -> Result<String, (String, Option<String>)> {
    if text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        Ok(text.to_ascii_uppercase())
    } else {
        Err(("is no country code".into(), None))
    }
}

fn coordinates(text: &str) -> Result<(f64, f64), (String, Option<String>)> {
    let number = |text: &str, most: f64| text.trim().parse::<f64>().ok().filter(|degrees| degrees.abs() <= most);
    let pair = text
        .split_once(',')
        .and_then(|(latitude, longitude)| Some((number(latitude, 90.0)?, number(longitude, 180.0)?)));
    pair.ok_or_else(|| ("is no place on Earth".into(), Some("write `\"52.52,13.40\"`".into())))
}
