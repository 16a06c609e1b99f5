//! gRPC calls: what a fake upstream sees of one, and what its answer means.

use selvedge_sdk::{GrpcCode, Reply};

use crate::guest::NoAnswer;

/// The headers of a call, before its metadata.
pub(crate) fn headers<'a>(upstream: &'a str, path: &'a str) -> [(&'a str, &'a [u8]); 5] {
    [
        (":method", b"POST"),
        (":path", path.as_bytes()),
        (":authority", upstream.as_bytes()),
        ("content-type", b"application/grpc"),
        ("te", b"trailers"),
    ]
}

/// The message that an answer is, or how the call failed. The hosts say the same of a connection that fails and of time that is up.
pub(crate) fn outcome(answer: Result<&Reply, NoAnswer>) -> Result<&[u8], (GrpcCode, String)> {
    let reply = match answer {
        Ok(reply) => reply,
        Err(NoAnswer::Lost) => return Err((GrpcCode::Unavailable, "the test gives no answer".into())),
        Err(NoAnswer::Late) => return Err((GrpcCode::DeadlineExceeded, "timeout".into())),
    };
    let header = |name: &str| {
        let value = reply.headers().iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        value.and_then(|(_, value)| std::str::from_utf8(value).ok()).unwrap_or_default()
    };
    let words = header("grpc-message").to_owned();
    match header("grpc-status") {
        "" | "0" if reply.status() == 200 => Ok(reply.bytes()),
        "" => Err((by_http_status(reply.status()), format!("HTTP status {}", reply.status()))),
        code => Err((code.parse::<usize>().map_or(GrpcCode::Unknown, GrpcCode::from), words)),
    }
}

/// For servers that do not speak gRPC, as its documentation of HTTP status codes says.
fn by_http_status(status: u16) -> GrpcCode {
    match status {
        400 => GrpcCode::Internal,
        401 => GrpcCode::Unauthenticated,
        403 => GrpcCode::PermissionDenied,
        404 => GrpcCode::Unimplemented,
        429 | 502..=504 => GrpcCode::Unavailable,
        _ => GrpcCode::Unknown,
    }
}
