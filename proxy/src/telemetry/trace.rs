//! Traces of single requests: who may ask for one, and where it goes.

use std::sync::Arc;

use http::HeaderName;
use pingora::http::RequestHeader;
use selvedge_config::TraceRequests;
use selvedge_wasm::Trace;
use tracing::info;

use crate::request::RequestCtx;

/// The header that asks for a trace, and the secret that allows it.
pub(crate) struct TraceKey {
    header: HeaderName,
    value: Vec<u8>,
}

impl TraceKey {
    /// `None` for what is no header name, which the configuration has refused.
    pub(crate) fn of(settings: &TraceRequests) -> Option<Self> {
        let header = HeaderName::from_bytes(settings.header.as_bytes()).ok()?;
        Some(Self { header, value: settings.value.as_bytes().to_vec() })
    }

    /// Takes the header out of a request, whatever it says: neither filters nor the origin are to learn the secret, or guesses of it.
    pub(crate) fn take(&self, request: &mut RequestHeader) -> Option<Arc<Trace>> {
        let value = request.remove_header(&self.header)?;
        same(value.as_bytes(), &self.value).then(Arc::default)
    }
}

/// Compares in a time that does not tell where the first difference is.
fn same(given: &[u8], secret: &[u8]) -> bool {
    given.len() == secret.len() && given.iter().zip(secret).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

/// Writes the trace of a request that has ended.
pub(crate) fn write(trace: &Trace, ctx: &RequestCtx) {
    let route = ctx.route.as_deref().map(crate::plan::Route::name);
    info!(target: "selvedge::trace", request = ctx.number, route, events = trace.len(), "what the filters did\n{trace}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_secret_asks_and_the_header_is_gone_either_way() {
        let settings = TraceRequests { header: "x-trace".into(), value: "0123456789abcdef".into() };
        let key = TraceKey::of(&settings).unwrap();
        for (value, traced) in
            [("0123456789abcdef", true), ("0123456789abcdeX", false), ("0123456789abcde", false), ("", false)]
        {
            let mut request = RequestHeader::build("GET", b"/", None).unwrap();
            request.insert_header("x-trace", value).unwrap();
            assert_eq!(key.take(&mut request).is_some(), traced, "{value}");
            assert!(request.headers.get("x-trace").is_none());
        }
        assert!(key.take(&mut RequestHeader::build("GET", b"/", None).unwrap()).is_none());
    }
}
