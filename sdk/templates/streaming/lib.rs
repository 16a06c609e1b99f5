//! Looks at the first bytes of an upload, and lets the rest stream past.

use selvedge_sdk::prelude::*;

/// The settings.
#[derive(Config)]
pub struct Settings {
    /// Kinds of files that may be uploaded.
    #[config(default = ["png", "jpeg", "gif", "webp"])]
    allow: Vec<String>,
}

/// The filter.
pub struct Streaming {
    settings: Settings,
    refused: metrics::Counter,
}

/// So many bytes tell what a file is.
const ENOUGH: usize = 16;

#[filter]
impl Filter for Streaming {
    type Config = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        if let Some(unknown) = settings
            .allow
            .iter()
            .find(|name| !KINDS.iter().any(|(known, _)| known == name))
        {
            return Err(format!(
                "`allow`: {unknown} is none of png, jpeg, gif, webp, pdf, zip"
            ));
        }
        Ok(Self {
            settings,
            refused: metrics::counter("uploads_refused_total"),
        })
    }

    async fn request(&self, request: &mut Request) -> Flow {
        if request.method() != Method::POST && request.method() != Method::PUT {
            return Ok(Next);
        }
        // The request waits until these bytes are there. However long the rest is, it is never held, nor copied into the filter.
        let start = request.body_prefix(ENOUGH).await?;
        let kind = kind(&start.bytes);
        if kind.is_some_and(|kind| self.settings.allow.iter().any(|allowed| allowed == kind)) {
            return Ok(Next);
        }
        self.refused.inc(1);
        Err(Reply::new(415).text("no such files here"))
    }
}

/// What files of a kind begin with.
const KINDS: [(&str, &[u8]); 6] = [
    ("png", b"\x89PNG\r\n\x1a\n"),
    ("jpeg", b"\xff\xd8\xff"),
    ("gif", b"GIF8"),
    ("webp", b"RIFF"),
    ("pdf", b"%PDF-"),
    ("zip", b"PK\x03\x04"),
];

fn kind(start: &[u8]) -> Option<&'static str> {
    KINDS
        .iter()
        .find(|(_, magic)| start.starts_with(magic))
        .map(|(name, _)| *name)
}
