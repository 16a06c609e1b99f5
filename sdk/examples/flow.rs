//! Bodies as they flow, and what runs outside of exchanges: every path of the request shows one thing.

use std::cell::RefCell;

use selvedge_sdk::prelude::*;
use serde_json::Value;

/// The settings.
#[derive(Config)]
pub struct Settings {
    /// Tells the word of the day.
    words: Upstream,
    /// The largest document that is changed.
    #[config(default = "1KiB")]
    max_document: ByteSize,
}

/// The filter.
pub struct Flowing {
    settings: Settings,
    /// What `words` has said last.
    word: RefCell<String>,
}

#[filter]
impl Filter for Flowing {
    type Config = Settings;
    /// The path that was asked for.
    type Stream = String;

    const TICK: Option<Duration> = Some(Duration::from_secs(60));

    fn new(settings: Settings) -> Result<Self, String> {
        Ok(Self { settings, word: RefCell::new("no word yet".into()) })
    }

    /// Requests do not wait for this: until it is done they see what `new` has set.
    async fn start(&self) {
        self.refresh("/first").await;
    }

    async fn tick(&self) {
        self.refresh("/next").await;
    }

    async fn request(&self, request: &mut Request, path: &mut String) -> Flow {
        *path = request.path().to_owned();
        match path.as_str() {
            // A document, changed: its length and its type follow.
            "/document" => {
                let mut document: Value = request.json(self.settings.max_document).await?;
                document["word"] = self.word.borrow().as_str().into();
                request.set_json(&document)?;
            }
            "/text" => {
                let text = request.text(self.settings.max_document).await?;
                request.set_text(text.replace("word", &self.word.borrow()));
            }
            // Problem documents, and what gRPC clients are told.
            "/problem" => return Err(Reply::new(403).grpc_status(7).problem("not for you", "only words are let in")),
            _ => {}
        }
        Ok(Next)
    }

    async fn response(&self, response: &mut Response, path: &mut String) -> Flow {
        match path.as_str() {
            // Piece by piece, however long the body is. What a piece of text cannot be cut at waits for the next one.
            "/words" => {
                let mut rest = Vec::new();
                response
                    .transform(|piece, last| {
                        rest.extend_from_slice(&piece);
                        let whole =
                            if last { rest.len() } else { rest.iter().rposition(|byte| *byte == b' ').unwrap_or(0) };
                        let kept = rest.split_off(whole);
                        shouted(&std::mem::replace(&mut rest, kept))
                    })
                    .await?;
            }

            // Each piece waits for an answer, and the message with it.
            "/ask" => {
                response.remove_header("content-length");
                while let Some(piece) = response.chunk().await? {
                    let answer = self.settings.words.post("/say").body(piece).send().await.or_deny(503, "no words")?;
                    response.set_chunk(answer.body());
                }
                response.set_chunk("|end");
            }

            // Looks at what passes, and says behind it what it has seen.
            "/sum" => {
                let mut sum = 0_u64;
                while let Some(piece) = response.chunk().await? {
                    sum += piece.iter().map(|byte| u64::from(*byte)).sum::<u64>();
                }
                response.trailers().await.set("x-sum", sum.to_string());
            }

            // Only what stands behind the body.
            "/status" => {
                let mut trailers = response.trailers().await;
                let status = trailers.get("grpc-status").and_then(|status| status.as_str().map(str::to_owned));
                info!("gRPC status {}", status.as_deref().unwrap_or("none"));
                trailers.remove("x-internal");
                trailers.add("x-seen", "1");
            }

            // Changing a length that has been announced is refused.
            "/announced" => {
                response.chunk().await?;
                response.set_chunk("another length");
            }
            _ => {}
        }
        Ok(Next)
    }

    fn done(&self, exchange: &Exchange) {
        let status = exchange.status().map_or_else(|| "no answer".to_owned(), |status| status.to_string());
        let method = exchange.method().map(|method| method.to_string()).unwrap_or_default();
        let kind = exchange.response_header("content-type").map(|kind| kind.len());
        debug!("{method} {} {status} {kind:?} {}", exchange.path().unwrap_or_default(), self.word.borrow());
    }
}

impl Flowing {
    async fn refresh(&self, path: &str) {
        match self.settings.words.get(path).send().await {
            Ok(answer) => *self.word.borrow_mut() = String::from_utf8_lossy(answer.body()).into_owned(),
            Err(error) => warn!("the old word stays: {error}"),
        }
    }
}

fn shouted(text: &[u8]) -> Vec<u8> {
    text.split(|byte| *byte == b' ')
        .map(|word| if word.is_empty() { Vec::new() } else { [word, b"!"].concat() })
        .collect::<Vec<_>>()
        .join(&b' ')
}
