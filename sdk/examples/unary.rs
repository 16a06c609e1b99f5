//! Asks a service over gRPC whether a request may pass, and for whom it is. Messages are bytes here; with feature `prost` they are types.

use selvedge_sdk::prelude::*;

/// The settings.
#[derive(Config)]
pub struct Settings {
    /// The upstream that knows; it speaks HTTP/2.
    authz: Upstream,
    /// The service's method.
    #[config(default = "demo.Access/Check")]
    method: String,
    /// How long it may take to say so.
    #[config(default = "250ms", max = "5s")]
    timeout: Duration,
}

/// The filter.
pub struct Unary {
    settings: Settings,
}

#[filter(body = "none")]
impl Filter for Unary {
    type Config = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        Ok(Self { settings })
    }

    async fn request(&self, request: &mut Request) -> Flow {
        let key = request.header("x-api-key").or_deny(401, "missing api key")?;
        let check = self.settings.authz.grpc(&self.settings.method).metadata("x-path", request.path());
        match check.message(key.into_bytes()).timeout(self.settings.timeout).send().await {
            Ok(answer) => request.set_header("x-tenant", answer.message()),
            Err(CallError { cause: CallFailure::Grpc(GrpcCode::PermissionDenied, why), .. }) => {
                return Err(Reply::new(403).text(&why));
            }
            Err(error) => {
                warn!("{error}");
                return Err(Reply::new(503).text("keys cannot be checked"));
            }
        }
        Ok(Next)
    }
}
