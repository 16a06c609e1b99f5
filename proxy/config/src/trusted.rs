//! `node.trusted_proxies`: who may say for whom a request or a connection is.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    decode::{At, Cx, list, parsed},
    matching::parse_range,
};

/// Who may say for whom a request or a connection is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    /// Whoever has one of these addresses.
    pub ranges: Vec<IpNet>,
    /// Whoever comes at a listener on a Unix socket.
    pub unix: bool,
}

impl TrustedProxies {
    /// Whether anybody is.
    #[must_use]
    pub fn any(&self) -> bool {
        self.unix || !self.ranges.is_empty()
    }

    /// Whether who has this address is. An IPv4 address that is written as IPv6 is the IPv4 address.
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        // Mostly nobody is trusted: then this is all.
        !self.ranges.is_empty() && self.ranges.iter().any(|range| range.contains(&address.to_canonical()))
    }

    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut trusted = Self::default();
        let read = list(cx, at, |cx, at| {
            parsed(cx, at, "an address, a range of addresses, or `unix`", |text| match text {
                "unix" => Ok(None),
                text => parse_range(text).map(Some),
            })
        })?;
        trusted.unix = read.contains(&None);
        trusted.ranges = read.into_iter().flatten().collect();
        Some(trusted)
    }
}
