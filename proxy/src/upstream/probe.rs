//! One health check over the network. Each has a connection of its own, so that it also says whether connections can be made.

use std::sync::OnceLock;

use bytes::{Buf, Bytes, BytesMut};
use http::{Request, header};
use pingora::connectors::TransportConnector;
use pingora::http::RequestHeader;
use pingora::protocols::Stream;
use pingora::protocols::http::v1::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;
use selvedge_config::{GrpcProbe, HttpProbe, Probe};

use super::endpoint::Endpoint;

/// How much of an answer is looked at.
const BODY_MAX: usize = 64 << 10;

/// Asks the endpoint how it is. Takes as long as it takes: the caller has a deadline.
pub(super) async fn ask(endpoint: &Endpoint, probe: &Probe) -> Result<(), String> {
    let peer = endpoint.peer();
    let http2 = peer.options.alpn.get_max_http_version() == 2;
    let scheme = if peer.is_tls() { "https" } else { "http" };
    let stream = connect(peer).await?;
    match probe {
        Probe::Tcp(_) => Ok(()),
        Probe::Http(probe) => {
            let host = probe.host.as_deref().unwrap_or(endpoint.authority());
            let (status, body) = if http2 {
                http2_get(stream, probe, &format!("{scheme}://{host}")).await?
            } else {
                http1_get(stream, probe, host).await?
            };
            judge(probe, status, &body)
        }
        Probe::Grpc(probe) => grpc(stream, probe, &format!("{scheme}://{}", endpoint.authority())).await,
    }
}

async fn connect(peer: HttpPeer) -> Result<Stream, String> {
    /// Reads the system's certificates when it is made, and keeps no connections.
    static CONNECTOR: OnceLock<TransportConnector> = OnceLock::new();
    let connector = CONNECTOR.get_or_init(|| TransportConnector::new(None));
    connector.new_stream(&peer).await.map_err(|error| format!("no connection: {error}"))
}

fn judge(probe: &HttpProbe, status: u16, body: &[u8]) -> Result<(), String> {
    if !probe.status.iter().any(|(first, last)| (*first..=*last).contains(&status)) {
        return Err(format!("status {status}"));
    }
    match &probe.body {
        Some(text) if !text.is_empty() && !body.windows(text.len()).any(|window| window == text.as_bytes()) => {
            Err("the body does not contain what it should".into())
        }
        _ => Ok(()),
    }
}

const AGENT: &str = concat!("selvedge/", env!("CARGO_PKG_VERSION"), " (health check)");

async fn http1_get(stream: Stream, probe: &HttpProbe, host: &str) -> Result<(u16, BytesMut), String> {
    let said = |error: Box<pingora::Error>| error.to_string();
    let mut session = HttpSession::new(stream);
    let mut request = RequestHeader::build("GET", probe.path.as_bytes(), Some(3)).map_err(said)?;
    request.insert_header(header::HOST, host).map_err(said)?;
    request.insert_header(header::USER_AGENT, AGENT).map_err(said)?;
    request.insert_header(header::CONNECTION, "close").map_err(said)?;
    session.write_request_header(Box::new(request)).await.map_err(said)?;
    let status = loop {
        session.read_response().await.map_err(said)?;
        let status = session.resp_header().map_or(0, |header| header.status.as_u16());
        if !(100..200).contains(&status) {
            break status;
        }
    };
    let mut body = BytesMut::new();
    while probe.body.is_some() && body.len() < BODY_MAX {
        let Some(chunk) = session.read_body_bytes().await.map_err(said)? else { break };
        body.extend_from_slice(&chunk);
    }
    Ok((status, body))
}

async fn http2_get(stream: Stream, probe: &HttpProbe, origin: &str) -> Result<(u16, BytesMut), String> {
    let request = Request::get(format!("{origin}{}", probe.path)).header(header::USER_AGENT, AGENT);
    let request = request.body(()).map_err(|error| error.to_string())?;
    let reads_body = probe.body.is_some();
    exchange(stream, request, None, reads_body).await.map(|answer| (answer.status, answer.body))
}

/// What came back on HTTP/2.
struct Answer {
    status: u16,
    body: BytesMut,
    /// `grpc-status`, from the trailers or, when there is nothing else, the header.
    grpc: Option<String>,
}

async fn exchange(stream: Stream, request: Request<()>, message: Option<Bytes>, read: bool) -> Result<Answer, String> {
    let said = |error: h2::Error| error.to_string();
    let (sender, connection) = h2::client::handshake(stream).await.map_err(said)?;
    let talk = async move {
        let mut sender = sender.ready().await.map_err(said)?;
        let (response, mut sending) = sender.send_request(request, message.is_none()).map_err(said)?;
        if let Some(message) = message {
            sending.send_data(message, true).map_err(said)?;
        }
        let response = response.await.map_err(said)?;
        let status = response.status().as_u16();
        let text = |headers: &http::HeaderMap| Some(headers.get("grpc-status")?.to_str().ok()?.to_owned());
        let mut grpc = text(response.headers());
        let mut receiving = response.into_body();
        let mut body = BytesMut::new();
        while read && body.len() < BODY_MAX {
            let Some(chunk) = receiving.data().await else { break };
            let chunk = chunk.map_err(said)?;
            let _ = receiving.flow_control().release_capacity(chunk.len()); // fails when the stream is over
            body.extend_from_slice(&chunk);
        }
        if read && let Some(trailers) = receiving.trailers().await.map_err(said)? {
            grpc = grpc.or_else(|| text(&trailers));
        }
        Ok(Answer { status, body, grpc })
    };
    // The connection is driven for as long as the exchange takes, and dropped with it.
    tokio::select! {
        biased;
        answer = talk => answer,
        ended = connection => Err(ended.err().map_or("the connection was closed".into(), |error| error.to_string())),
    }
}

/// `grpc.health.v1.Health/Check` (the gRPC health checking protocol).
async fn grpc(stream: Stream, probe: &GrpcProbe, origin: &str) -> Result<(), String> {
    let request = Request::post(format!("{origin}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, AGENT)
        .body(())
        .map_err(|error| error.to_string())?;
    let answer = exchange(stream, request, Some(check_request(&probe.service)), true).await?;
    match (answer.status, answer.grpc.as_deref()) {
        (200, Some("0")) => serving(&answer.body),
        (200, Some(status)) => Err(format!("gRPC status {status}")),
        (200, None) => Err("no gRPC status".into()),
        (status, _) => Err(format!("status {status}")),
    }
}

/// `HealthCheckRequest { string service = 1; }` in a frame of gRPC.
fn check_request(service: &str) -> Bytes {
    let mut message = Vec::with_capacity(service.len() + 4);
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
            length >>= 7;
        }
        message.push(u8::try_from(length).unwrap_or(0));
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(&message);
    frame.into()
}

/// Whether a framed `HealthCheckResponse { ServingStatus status = 1; }` says SERVING, which is 1.
fn serving(frame: &[u8]) -> Result<(), String> {
    let mut rest = frame;
    if rest.len() < 5 || rest.get_u8() != 0 {
        return Err("no answer of the health service".into());
    }
    rest.advance(4);
    match rest {
        [0x08, 1, ..] => Ok(()),
        [0x08, 2, ..] => Err("not serving".into()),
        [0x08, 3, ..] => Err("the service is unknown".into()),
        _ => Err("its health is unknown".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_health_service_is_asked_and_understood() {
        assert_eq!(&check_request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&check_request("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(check_request(&"x".repeat(300))[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 0x02]);
        assert_eq!(serving(&[0, 0, 0, 0, 2, 8, 1]), Ok(()));
        for (frame, why) in [
            (&[0, 0, 0, 0, 2, 8, 2][..], "not serving"),
            (&[0, 0, 0, 0, 0], "its health is unknown"),
            (&[0, 0, 0, 0, 2, 8, 3], "the service is unknown"),
            (&[1, 0, 0, 0, 2, 8, 1], "no answer of the health service"),
            (&[0, 0], "no answer of the health service"),
            (&[], "no answer of the health service"),
        ] {
            assert_eq!(serving(frame), Err(why.to_owned()), "{frame:?}");
        }
    }

    #[test]
    fn statuses_and_bodies_are_judged() {
        let probe = HttpProbe {
            path: "/".into(),
            host: None,
            status: vec![(200, 299), (404, 404)],
            body: Some("ready".into()),
        };
        for (status, body, well) in [
            (200, "all ready", true),
            (404, "ready", true),
            (200, "read", false),
            (300, "ready", false),
            (200, "", false),
        ] {
            assert_eq!(judge(&probe, status, body.as_bytes()).is_ok(), well, "{status} {body}");
        }
    }
}
