//! `/echo`: the request as it arrived.

use std::time::Duration;

use http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::{Body as _, Incoming};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use crate::answer::{self, Body, Refusal, hex};
use crate::origin::Client;

/// A longer body is refused. It is hashed as it comes, so this bounds time, not memory.
const LONGEST_BODY: u64 = 1 << 30;
/// A longer body is not shown.
const LONGEST_TEXT: usize = 64 << 10;
/// The longest wait for the next piece of the body.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) async fn answer(request: Request<Incoming>, client: &Client) -> Result<Response<Body>, Refusal> {
    let (head, body) = request.into_parts();
    let received = receive(body).await?;
    let text = if received.is_cut { None } else { String::from_utf8(received.start).ok() };
    Ok(answer::json(
        "no-store",
        &json!({
            "method": head.method.as_str(),
            "version": format!("{:?}", head.version),
            "authority": head.uri.authority().map(|authority| authority.as_str()),
            "path": head.uri.path(),
            "query": head.uri.query(),
            "headers": pairs(&head.headers),
            "trailers": pairs(&received.trailers),
            "body_length": received.length,
            "body_sha256": received.sha256,
            "body": text,
            "client": client.address.to_string(),
        }),
    ))
}

/// A body, of which only the start is kept.
struct Received {
    start: Vec<u8>,
    is_cut: bool,
    length: u64,
    sha256: String,
    trailers: HeaderMap,
}

async fn receive(mut body: Incoming) -> Result<Received, Refusal> {
    let too_long = || {
        let sentence = format!("A body has at most {LONGEST_BODY} bytes here.");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, sentence)
    };
    if body.size_hint().lower() > LONGEST_BODY {
        return Err(too_long());
    }

    let mut received =
        Received { start: Vec::new(), is_cut: false, length: 0, sha256: String::new(), trailers: HeaderMap::new() };
    let mut hash = Sha256::new();
    loop {
        let next = timeout(PIECE_TIMEOUT, body.frame())
            .await
            .map_err(|_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "The body stopped coming."))?;
        let Some(frame) = next else { break };
        let frame = frame.map_err(|fault| Refusal::bad_request(format!("The body cannot be read: {fault}.")))?;
        match frame.into_data() {
            Ok(data) => {
                received.length += data.len() as u64;
                if received.length > LONGEST_BODY {
                    return Err(too_long());
                }
                hash.update(&data);
                received.is_cut |= received.start.len() + data.len() > LONGEST_TEXT;
                if !received.is_cut {
                    received.start.extend_from_slice(&data);
                }
            }
            Err(frame) => received.trailers.extend(frame.into_trailers().unwrap_or_default()),
        }
    }
    received.sha256 = hex(&hash.finalize());
    Ok(received)
}

/// Fields in the order they came, names in lower case, values as text with what is not UTF-8 replaced.
fn pairs(headers: &HeaderMap) -> Vec<[Value; 2]> {
    headers
        .iter()
        .map(|(name, value)| [name.as_str().into(), String::from_utf8_lossy(value.as_bytes()).into()])
        .collect()
}
