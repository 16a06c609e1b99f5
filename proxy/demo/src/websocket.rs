//! `/ws`: a WebSocket that sends back what it gets (RFC 6455).

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use http::header::{CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::Error;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

use crate::answer::{Body, Refusal, text, whole};
use crate::content::set;
use crate::origin::Client;
use crate::serve::stop_requested;

/// A longer message closes the connection with 1009.
const LONGEST_MESSAGE: usize = 1 << 20;
/// After as long without a frame, pings included, the connection is closed.
const SILENCE: Duration = Duration::from_secs(60);
/// A client that does not read what comes back is let go after this.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Answers the opening handshake (RFC 6455, 4.2); the echo begins when the connection has been handed over.
pub(crate) fn answer(request: &mut Request<Incoming>, client: Client) -> Result<Response<Body>, Refusal> {
    let headers = request.headers();
    let is_upgrade = request.version() == Version::HTTP_11
        && request.method() == Method::GET
        && has_token(headers, CONNECTION, "upgrade")
        && has_token(headers, UPGRADE, "websocket");
    if !is_upgrade {
        let mut response = text(
            StatusCode::UPGRADE_REQUIRED,
            "This is a WebSocket; ask for it with GET and Upgrade: websocket over HTTP/1.1.\n".to_owned(),
        );
        response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        return Ok(response);
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Refusal::bad_request("The WebSocket version has to be 13."));
    }
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY) else {
        return Err(Refusal::bad_request("The header Sec-WebSocket-Key is missing."));
    };

    let mut response = Response::new(whole(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    set(response.headers_mut(), SEC_WEBSOCKET_ACCEPT, &derive_accept_key(key.as_bytes()));
    tokio::spawn(echo(hyper::upgrade::on(request), client));
    Ok(response)
}

fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|found| found.trim().eq_ignore_ascii_case(token))
}

async fn echo(upgrade: OnUpgrade, mut client: Client) {
    let Ok(upgraded) = upgrade.await else { return };
    let limits =
        WebSocketConfig::default().max_message_size(Some(LONGEST_MESSAGE)).max_frame_size(Some(LONGEST_MESSAGE));
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(limits)).await;
    loop {
        let next = tokio::select! {
            next = timeout(SILENCE, socket.next()) => next,
            () = stop_requested(&mut client.stopped) => return close(socket, CloseCode::Away, "the origin stops").await,
        };
        match next {
            Ok(Some(Ok(message @ (Message::Text(_) | Message::Binary(_))))) => {
                if !matches!(timeout(SEND_TIMEOUT, socket.send(message)).await, Ok(Ok(()))) {
                    return;
                }
            }
            // Pings and closes are answered inside; the stream ends when both sides have closed.
            Ok(Some(Ok(_))) => {}
            Ok(Some(Err(Error::Capacity(_)))) => return close(socket, CloseCode::Size, "at most 1 MiB").await,
            Ok(Some(Err(_)) | None) => return,
            Err(_) => return close(socket, CloseCode::Normal, "a minute of silence").await,
        }
    }
}

async fn close(mut socket: WebSocketStream<TokioIo<Upgraded>>, code: CloseCode, reason: &'static str) {
    let frame = CloseFrame { code, reason: reason.into() };
    // Said once; whether the client still listens is its own affair.
    let _said = timeout(SEND_TIMEOUT, socket.close(Some(frame))).await;
}
