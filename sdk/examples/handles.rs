//! The handles of the SDK: every path uses one of them. Read it as a cookbook, next to `tour`.

use selvedge_sdk::prelude::*;
use selvedge_sdk::{facts, serde_json::json};
use serde::{Deserialize, Serialize};

#[derive(Metrics)]
#[metrics(prefix = "handles_")]
struct Stats {
    /// Requests, by what they ask for and for whom.
    #[labels("path", "tenant")]
    requests: Counter<2>,
    /// Exchanges under way.
    under_way: Gauge,
    /// How long exchanges take.
    #[labels("status")]
    exchange_microseconds: Histogram<1>,
}

#[derive(Deserialize, Serialize)]
struct Note {
    text: String,
    #[serde(default)]
    edits: u32,
}

/// The filter.
pub struct Handles {
    stats: Stats,
    notes: Kv<Note>,
    visits: SharedCounter,
    questions: RateLimit,
}

#[filter(body = "none")]
impl Filter for Handles {
    type Stream = Option<metrics::Timer>;

    fn new() -> Result<Self, String> {
        Ok(Self {
            stats: Stats::define(),
            notes: Kv::new("notes"),
            visits: SharedCounter::new("visits").window(Duration::from_secs(60)),
            questions: RateLimit::per_minute("questions", 60).burst(3),
        })
    }

    async fn request(&self, request: &mut Request, timer: &mut Option<metrics::Timer>) -> Flow {
        self.stats.under_way.add(1);
        *timer = Some(self.stats.exchange_microseconds.with(["started"]).start());
        self.stats.requests.inc([request.path(), &request.query_value("tenant").unwrap_or_default()]);

        let key = request.query_value("key").unwrap_or_default();
        match request.path() {
            // A value that is forgotten after a minute.
            "/note/put" => {
                let text = request.query_value("text").or_deny(400, "no text")?;
                self.notes.put_ttl(&key, &Note { text, edits: 0 }, Duration::from_secs(60))?;
                Err(Reply::new(204))
            }

            // `?` answers 500 where the shared data is not what it should be.
            "/note/get" => {
                let note = self.notes.get(&key)?.or_deny(404, "no such note")?;
                Err(Reply::new(200).json(&note))
            }

            // Changed without losing a write of another worker.
            "/note/edit" => {
                let text = request.query_value("text").or_deny(400, "no text")?;
                let note = self.notes.update_ttl(&key, Duration::from_secs(60), |note| Note {
                    text: text.clone(),
                    edits: note.map_or(0, |note| note.edits + 1),
                })?;
                Err(Reply::new(200).json(&note))
            }

            "/note/delete" => {
                self.notes.delete(&key)?;
                Err(Reply::new(204))
            }

            "/note/list" => match self.notes.keys(&key, 100) {
                Ok(keys) => Err(Reply::new(200).json(&keys)),
                Err(error) => Err(Reply::new(501).text(&error.to_string())),
            },

            // Asked of an upstream once a minute; failures are not remembered.
            "/note/fetch" => {
                let fetched = self.notes.get_or_try_insert(&key, Duration::from_secs(60), async || {
                    upstream("a").get(&format!("/{key}")).send().await?.ok()?.json()
                });
                let note = fetched.await.map_err(|error: CallError| Reply::new(502).text(&error.to_string()))?;
                Err(Reply::new(200).json(&note))
            }

            "/visit" => {
                let sum = self.visits.increment(&key, 1)?;
                Err(Reply::new(200).json(&(sum, self.visits.get(&key)?)))
            }

            // 429 with Retry-After when there are too many.
            "/question" => {
                let left = self.questions.take(&key)?.or_too_many()?;
                Err(Reply::new(200).json(&left))
            }

            "/random" => {
                let number = random::below(6) + 1;
                let measured = clock::monotonic() <= clock::monotonic();
                Err(Reply::new(200).json(&(random::uuid_v4(), random::uuid_v7(), number, measured)))
            }

            // Compared in a time that tells nothing about the right one.
            "/signed" => {
                let sent = request.header("x-signature").or_deny(401, "not signed")?;
                let right = crypto::hex(&crypto::hmac_sha256("a secret", key));
                if crypto::same(&sent, right.as_bytes()) { Ok(Next) } else { Err(Reply::new(401)) }
            }

            // A signature that the host verifies.
            "/verified" => {
                let public = unhex(&request.header_str("x-public-key").or_deny(400, "no key")?);
                let signature = unhex(&request.header_str("x-signature").or_deny(400, "no signature")?);
                match crypto::verify(&crypto::PublicKey::der(public), crypto::Hash::Sha256, key, signature) {
                    Ok(()) => Ok(Next),
                    Err(error @ crypto::CryptoError::Unsupported(_)) => Err(Reply::new(501).text(&error.to_string())),
                    Err(error) => Err(Reply::new(401).text(&error.to_string())),
                }
            }

            // Several upstreams at once: all of them, the first answer, the first good one.
            "/all" => {
                let answers = join_all(["a", "b", "nowhere"].map(|name| upstream(name).get("/all").send())).await;
                let said = answers.into_iter().map(|answer| match answer.and_then(|answer| answer.ok()?.text()) {
                    Ok(text) => text,
                    Err(error) => error.to_string(),
                });
                Err(Reply::new(200).json(&said.collect::<Vec<_>>()))
            }
            "/race" => {
                let answer = race(["a", "b"].map(|name| upstream(name).get("/race").send())).await;
                let answer = answer.or_deny(500, "nobody was asked")?.or_deny(503, "the first to speak had nothing")?;
                Err(Reply::new(answer.status()).body(answer.body()))
            }
            "/first" => {
                let asked = ["a", "b"].map(|name| async move { upstream(name).get("/first").send().await?.ok() });
                match first_ok(asked).await {
                    Ok(answer) => Err(Reply::new(200).body(answer.body())),
                    Err(errors) => {
                        let errors = errors.iter().map(CallError::to_string).collect::<Vec<_>>();
                        Err(Reply::new(502).json(&errors))
                    }
                }
            }

            // What the host knows about the request.
            "/facts" => Err(Reply::new(200).json(&facts_of(request))),

            // Left for later filters, and for the response.
            "/props" => {
                request.props().set("handles_tenant", &key);
                Ok(Next)
            }

            _ => Ok(Next),
        }
    }

    async fn response(&self, response: &mut Response) -> Flow {
        if let Some(tenant) = response.props().text("handles_tenant") {
            response.set_header("x-tenant", tenant);
        }
        if let Some(name) = response.upstream().name() {
            response.set_header("x-upstream", name);
        }
        Ok(Next)
    }

    fn done(&self, _: &Option<metrics::Timer>) {
        self.stats.under_way.add(-1);
        info!("{} {}", exchange().status().unwrap_or(0), exchange().details().unwrap_or_default());
    }
}

/// What is no hexadecimal is nothing.
fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks_exact(2).filter_map(|pair| std::str::from_utf8(pair).ok());
    digits.filter_map(|pair| u8::from_str_radix(pair, 16).ok()).collect()
}

fn facts_of(request: &Request) -> serde_json::Value {
    let (client, route) = (request.client(), request.route());
    let certificate = client.tls().and_then(|tls| tls.certificate());
    json!({
        "address": client.address().map(|address| address.to_string()),
        "port": client.port().is_some(),
        "country": client.country(),
        "city": client.city(),
        "asn": client.asn(),
        "coordinates": client.coordinates(),
        "tls": client.tls().map(|tls| (tls.version().to_owned(), tls.sni(), tls.cipher().is_some())),
        "subject": certificate.and_then(|certificate| certificate.subject()),
        "id": request.exchange().id(),
        "protocol": request.exchange().protocol(),
        "started": request.exchange().started().is_some(),
        "route": route.name(),
        "site": route.site(),
        "listener": route.listener(),
        "upstream": route.upstream(),
        "node": facts::node_name(),
        "plugin": facts::plugin_name(),
        "query": request.query_pairs().collect::<Vec<_>>(),
        "cookies": request.cookies(),
    })
}
