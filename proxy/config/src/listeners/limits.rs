//! `listeners.*.limits`: how much, how fast and how slowly a client may send.

use std::time::Duration;

use schemars::JsonSchema;

use crate::{
    decode::{At, Cx, Fields, byte_rate, duration, size, whole},
    values::{ByteRate, ByteSize, DurationText},
};

/// How much and how slowly a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ListenerLimits {
    /// The largest request body; a larger one is answered with 413 (Content Too Large). It bounds what one client can
    /// make the origin read. Not with `tcp`. Above zero. Default `16MiB`.
    #[schemars(with = "Option<ByteSize>", extend("default" = "16MiB"))]
    pub body: ByteSize,

    /// The largest header section of a request, its request line included; a larger one is answered with 431 (Request Header Fields Too
    /// Large), an HTTP/1 one that is larger by more than 64 KiB ends the connection. On HTTP/2 a field counts as its name, its value and 32
    /// bytes (RFC 9113, 6.5.2). Not with `tcp`. `1B` to `1MiB`. Default `64KiB`.
    #[schemars(with = "Option<ByteSize>", extend("default" = "64KiB"))]
    pub header_size: ByteSize,

    /// How many fields a request's header section may have; one with more is answered with 431, and with 400 where it is HTTP/1 and has
    /// more than 256. Not with `tcp`. 1 to 256. Default `100`.
    #[schemars(with = "Option<u16>", range(min = 1, max = 256), extend("default" = 100))]
    pub header_count: u16,

    /// The longest target of a request, path and query; a longer one is answered with 414 (URI Too Long). Not with `tcp`. `1B` to `65534B`.
    /// Default `8KiB`.
    #[schemars(with = "Option<ByteSize>", extend("default" = "8KiB"))]
    pub uri_length: ByteSize,

    /// How long a client may take to send a request's headers, from its first byte. Short stops slow-header attacks, long
    /// serves bad radio links. The same for a TLS handshake. Above zero. Default `10s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "10s"))]
    pub header_timeout: Duration,

    /// How long a connection may stand idle between requests before it is closed. Long saves handshakes, short saves memory. Within a
    /// request: how long an HTTP/1 client may send nothing of a body it owes, which is answered with 408 (Request Timeout), and how long any
    /// client may take nothing of an answer, which is cut off then. With `tcp`: how long both sides may be silent. Above zero. Default `60s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "60s"))]
    pub idle_timeout: Duration,

    /// How many bytes in a second a client must send of a request body at least, on average and after the first 10 s, counting only the
    /// time in which the node waits for it; a slower one is answered with 408 (Request Timeout), and its connection ends. Stops clients that
    /// hold connections to the origin with bodies that never end. Over HTTP/2 each stream is judged, by all of the time; one that sends
    /// nothing any more is reset, and calls of gRPC are not judged. Not with `tcp`. `0B/s`: no minimum. Default `240B/s`.
    #[schemars(with = "Option<ByteRate>", extend("default" = "240B/s"))]
    pub upload_rate: ByteRate,

    /// How long a client may take to send a whole request, from its first byte to the last one of its body; after that it is answered with
    /// 408 and its connection ends. Time the origin makes it wait counts too, and so does a stream that is open on purpose (gRPC). On HTTP/2 a
    /// stream that sends nothing is reset instead. Not with `tcp`. Above zero. Default: no limit.
    #[schemars(with = "Option<DurationText>")]
    pub request_time: Option<Duration>,

    /// How many connections there may be at once; one more is closed as soon as it is accepted, and counted. 1 to 65535. Default `50000`.
    #[schemars(with = "Option<u16>", range(min = 1), extend("default" = 50000))]
    pub connections: u16,

    /// How many of them one client may have: an IPv4 address, or an IPv6 network of 64 bits. `node.trusted_proxies` are not counted, since
    /// they connect for many. 1 to 65535. Low stops one client from taking all places, and shuts out people who share an address. Default:
    /// no limit.
    #[schemars(range(min = 1))]
    pub connections_per_client: Option<u16>,

    /// How many requests a connection may carry: the answer to the last one says `Connection: close`, on HTTP/2 a GOAWAY goes out and what
    /// was opened before the client has read it is still answered. Low spreads long-lived clients over the nodes behind a balancer, and
    /// costs handshakes. Not with `tcp`. 1 to 65535. Default: no limit.
    #[schemars(range(min = 1))]
    pub requests_per_connection: Option<u16>,

    /// How many HTTP/2 streams a client may have open at once on a connection; one more is refused (REFUSED_STREAM), which clients know from
    /// the settings they are sent. Not with `tcp`. 1 to 65535. Default `100`.
    #[schemars(with = "Option<u16>", range(min = 1), extend("default" = 100))]
    pub h2_streams: u16,

    /// How many HTTP/2 streams of a connection a client may give up before their answers begin, less those it has waited for: one more ends
    /// the connection. Stops clients that open streams only to reset them (rapid reset, CVE-2023-44487), each of which may be a request to
    /// the origin. Not with `tcp`. 1 to 65535. Default `200`.
    #[schemars(with = "Option<u16>", range(min = 1), extend("default" = 200))]
    pub h2_resets: u16,
}

/// Those that have no meaning where HTTP is not spoken.
pub(crate) const OF_HTTP: [&str; 9] = [
    "body",
    "header_size",
    "header_count",
    "uri_length",
    "upload_rate",
    "request_time",
    "requests_per_connection",
    "h2_streams",
    "h2_resets",
];

/// What is read of a request's header at most, whatever the limit.
const HEADER_SIZE_MAX: u64 = 1 << 20;
/// How many fields are read at most.
const HEADER_COUNT_MAX: u16 = 256;
/// The longest target that can be held.
const URI_LENGTH_MAX: u64 = 65_534;

impl Default for ListenerLimits {
    fn default() -> Self {
        Self {
            body: ByteSize::mib(16),
            header_size: ByteSize::kib(64),
            header_count: 100,
            uri_length: ByteSize::kib(8),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            upload_rate: ByteRate(240),
            request_time: None,
            connections: 50_000,
            connections_per_client: None,
            requests_per_connection: None,
            h2_streams: 100,
            h2_resets: 200,
        }
    }
}

impl ListenerLimits {
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let default = Self::default();
        let count = |cx: &mut Cx<'_>, at: &At<'_>| whole(cx, at, 1, u16::MAX);
        let mut fields = Fields::open(cx, at, "ListenerLimits")?;
        let body = fields.read(cx, "body", size);
        let header_size = fields.read(cx, "header_size", |cx, at| size_to(cx, at, HEADER_SIZE_MAX));
        let header_count = fields.read(cx, "header_count", |cx, at| whole(cx, at, 1, HEADER_COUNT_MAX));
        let uri_length = fields.read(cx, "uri_length", |cx, at| size_to(cx, at, URI_LENGTH_MAX));
        let header_timeout = fields.read(cx, "header_timeout", duration);
        let idle_timeout = fields.read(cx, "idle_timeout", duration);
        let upload_rate = fields.read(cx, "upload_rate", byte_rate);
        let request_time = fields.read(cx, "request_time", duration);
        let connections = fields.read(cx, "connections", count);
        let connections_per_client = fields.read(cx, "connections_per_client", count);
        let requests_per_connection = fields.read(cx, "requests_per_connection", count);
        let h2_streams = fields.read(cx, "h2_streams", count);
        let h2_resets = fields.read(cx, "h2_resets", count);
        fields.close(cx);
        Some(Self {
            body: body.unwrap_or(default.body),
            header_size: header_size.unwrap_or(default.header_size),
            header_count: header_count.unwrap_or(default.header_count),
            uri_length: uri_length.unwrap_or(default.uri_length),
            header_timeout: header_timeout.unwrap_or(default.header_timeout),
            idle_timeout: idle_timeout.unwrap_or(default.idle_timeout),
            upload_rate: upload_rate.unwrap_or(default.upload_rate),
            request_time,
            connections: connections.unwrap_or(default.connections),
            connections_per_client,
            requests_per_connection,
            h2_streams: h2_streams.unwrap_or(default.h2_streams),
            h2_resets: h2_resets.unwrap_or(default.h2_resets),
        })
    }
}

/// A size above zero, up to `max` bytes.
fn size_to(cx: &mut Cx<'_>, at: &At<'_>, max: u64) -> Option<ByteSize> {
    let size = size(cx, at)?;
    if size.bytes() > max {
        cx.refuse(at.fault(format!("this size must be at most {}", ByteSize(max))))
    } else {
        Some(size)
    }
}
