//! Which status an exchange has ended with, whichever layer ended it.

use h2::Reason;
use http::{HeaderMap, StatusCode, header};
use selvedge_wasm::GrpcStatus;

/// The trailer with the status.
pub(super) const GRPC_STATUS: &str = "grpc-status";
/// The trailer with its text.
pub(super) const GRPC_MESSAGE: &str = "grpc-message";

/// The status in trailers, or, when there is none, what the HTTP status says.
pub(super) fn of_trailers(trailers: &HeaderMap, http: StatusCode) -> GrpcStatus {
    let Some(code) = trailers.get(GRPC_STATUS) else {
        return GrpcStatus::new(of_http(http), format!("no grpc-status, HTTP status {}", http.as_u16()));
    };
    let message = trailers.get(GRPC_MESSAGE).map(|message| percent_decode(message.as_bytes())).unwrap_or_default();
    let code = code.to_str().ok().and_then(|code| code.parse::<u32>().ok());
    match code.filter(|code| *code <= GrpcStatus::UNAUTHENTICATED) {
        Some(code) => GrpcStatus::new(code, message),
        None => GrpcStatus::new(GrpcStatus::UNKNOWN, message),
    }
}

/// The response is not one of gRPC: a proxy's error page, usually.
pub(super) fn not_grpc(http: StatusCode, headers: &HeaderMap) -> GrpcStatus {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("none");
    let message = format!("not a gRPC response: HTTP status {}, content-type {content_type}", http.as_u16());
    GrpcStatus::new(of_http(http), message)
}

/// `http-grpc-status-mapping`: for responses that do not say it themselves.
pub(super) fn of_http(http: StatusCode) -> u32 {
    match http.as_u16() {
        400 => GrpcStatus::INTERNAL,
        401 => GrpcStatus::UNAUTHENTICATED,
        403 => GrpcStatus::PERMISSION_DENIED,
        404 => GrpcStatus::UNIMPLEMENTED,
        429 | 502 | 503 | 504 => GrpcStatus::UNAVAILABLE,
        _ => GrpcStatus::UNKNOWN,
    }
}

/// The exchange broke: by the reason of a reset as `PROTOCOL-HTTP2` maps it, anything else is a lost connection.
pub(super) fn of_error(error: &pingora::Error) -> GrpcStatus {
    let reset = error.root_cause().downcast_ref::<h2::Error>().filter(|h2| h2.is_reset());
    let code = reset.and_then(h2::Error::reason).map_or(GrpcStatus::UNAVAILABLE, of_reset);
    GrpcStatus::new(code, error.to_string())
}

fn of_reset(reason: Reason) -> u32 {
    match reason {
        Reason::REFUSED_STREAM => GrpcStatus::UNAVAILABLE,
        Reason::CANCEL => GrpcStatus::CANCELLED,
        Reason::ENHANCE_YOUR_CALM => GrpcStatus::RESOURCE_EXHAUSTED,
        Reason::INADEQUATE_SECURITY => GrpcStatus::PERMISSION_DENIED,
        Reason::STREAM_CLOSED => GrpcStatus::UNKNOWN,
        _ => GrpcStatus::INTERNAL,
    }
}

/// `grpc-message` is UTF-8 with what is no plain ASCII as `%XX`. What is malformed stays as it is: it is text for people.
fn percent_decode(text: &[u8]) -> String {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%'
            && let [high, low, after @ ..] = after
            && let (Some(high), Some(low)) = (digit(*high), digit(*low))
        {
            decoded.push(high << 4 | low);
            rest = after;
            continue;
        }
        decoded.push(byte);
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn trailers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn the_status_is_in_the_trailers_and_its_text_is_decoded() {
        for (pairs, code, message) in [
            (&[("grpc-status", "0")][..], 0, ""),
            (&[("grpc-status", "7"), ("grpc-message", "not%20you%2C %E2%82%AC")], 7, "not you, \u{20ac}"),
            (&[("grpc-status", "5"), ("grpc-message", "50% off, %zz, %4")], 5, "50% off, %zz, %4"),
            (&[("grpc-status", "5"), ("grpc-message", "%ff")], 5, "\u{fffd}"),
            (&[("grpc-status", "17"), ("grpc-message", "new")], 2, "new"),
            (&[("grpc-status", "many")], 2, ""),
        ] {
            assert_eq!(of_trailers(&trailers(pairs), StatusCode::OK), GrpcStatus::new(code, message), "{pairs:?}");
        }
    }

    #[test]
    fn without_a_grpc_status_the_http_status_counts() {
        for (http, code) in
            [(200, 2), (400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (500, 2), (502, 14), (503, 14), (504, 14)]
        {
            let http = StatusCode::from_u16(http).unwrap();
            assert_eq!(of_trailers(&HeaderMap::new(), http).code, code, "{http}");
            assert_eq!(not_grpc(http, &HeaderMap::new()).code, code, "{http}");
        }
    }

    #[test]
    fn resets_have_their_statuses() {
        for (reason, code) in [
            (Reason::NO_ERROR, 13),
            (Reason::PROTOCOL_ERROR, 13),
            (Reason::INTERNAL_ERROR, 13),
            (Reason::REFUSED_STREAM, 14),
            (Reason::CANCEL, 1),
            (Reason::ENHANCE_YOUR_CALM, 8),
            (Reason::INADEQUATE_SECURITY, 7),
        ] {
            assert_eq!(of_reset(reason), code, "{reason}");
        }
    }
}
