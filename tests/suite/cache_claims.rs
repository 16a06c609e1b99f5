//! Cache keys made of what filters establish: claims of verified tokens, variants of experiments.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use selvedge_tests::{Client, Edge, Origin};
use serde_json::{Value, json};

const SECRET: &str = "a secret of at least thirty-two bytes";

async fn node(key: &str, filters: &str) -> (Edge, Origin) {
    let count = AtomicUsize::new(0);
    let origin = Origin::start(move |request| {
        let variant = request.header("x-ab-shop").unwrap_or("-").to_owned();
        let number = count.fetch_add(1, Ordering::SeqCst) + 1;
        Origin::reply(200, &[("cache-control", "public, max-age=60")], format!("{number} {variant}"))
    })
    .await;
    let yaml = format!(
        "cache: {{ memory: {{ size: 16MiB }} }}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }} }}
filters:
  auth: {{ wasm: builtin:jwt-auth, limits: {{ deadline: 10s }}, config: {{ secret: \"{SECRET}\", ignore_audience: true, claims_to_headers: {{ tenant: x-tenant }} }} }}
  shop: {{ wasm: builtin:ab-routing, limits: {{ deadline: 10s }}, config: {{ experiment: shop, user: {{ header: x-user }}, variants: [{{ name: a, weight: 1 }}, {{ name: b, weight: 1 }}] }} }}
sites: [{{ hosts: [\"*\"], routes: [{{ name: \"page-${{ID}}\", filters: {filters}, cache: {{ key: {key}, show_key: true }}, to: app }}] }}]"
    );
    let edge = Edge::start(&yaml, &[("app", origin.address())]);
    (edge, origin)
}

fn token(claims: &Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let mut all = json!({ "exp": now + 600 });
    all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &all, &key).expect("a token");
    format!("authorization: Bearer {token}\r\n")
}

/// Clients share what is stored for their tenant, as their verified token says; what they write themselves is no tenant, and neither is a
/// token that nobody has signed.
#[tokio::test(flavor = "multi_thread")]
async fn a_verified_claim_is_part_of_the_key() {
    let (edge, origin) = node("{ claims: [tenant] }", "[auth]").await;
    let rows = [
        (token(&json!({ "sub": "ann", "tenant": "acme" })), "1 -"),
        (token(&json!({ "sub": "bob", "tenant": "acme" })), "1 -"),
        (token(&json!({ "sub": "cem", "tenant": "other" })), "2 -"),
        (token(&json!({ "sub": "dan", "tenant": "other" })) + "x-tenant: acme\r\n", "2 -"),
        (token(&json!({ "sub": "eve" })), "3 -"),
        (token(&json!({ "sub": "eve" })) + "x-tenant: acme\r\n", "3 -"),
    ];
    for (fields, expected) in &rows {
        let response = Client::get_with(edge.web(), "/page", fields).await;
        assert_eq!((response.status, response.text().as_str()), (200, *expected), "{fields}");
        let said = response.header("cache-status").unwrap_or_default();
        assert!(said.contains("claim.tenant=") && !said.contains("acme"), "{said}");
    }
    let mut forged = rows[0].0.clone();
    forged.insert(forged.len() - 4, 'x');
    for fields in ["x-tenant: acme\r\n", &forged] {
        assert_eq!(Client::get_with(edge.web(), "/page", fields).await.status, 401, "{fields}");
    }
    assert_eq!(origin.started(), 3);
}

/// Each variant has its own page, whoever sees it.
#[tokio::test(flavor = "multi_thread")]
async fn the_variant_of_an_experiment_is_part_of_the_key() {
    let (edge, origin) = node("{ variants: [shop] }", "[shop]").await;
    let mut pages = std::collections::BTreeMap::new();
    for user in 0..40 {
        let fields = format!("x-user: user-{user}\r\nx-ab-shop: b\r\n");
        let response = Client::get_with(edge.web(), "/page", &fields).await;
        let text = response.text();
        let (number, variant) = text.split_once(' ').expect("number and variant");
        let page = pages.entry(variant.to_owned()).or_insert_with(|| number.to_owned());
        assert_eq!(page, number, "user {user}");
        let said = response.header("cache-status").unwrap_or_default();
        assert!(said.contains(&format!("variant.shop={variant}")), "{said}");
    }
    assert_eq!(pages.keys().map(String::as_str).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(origin.started(), 2);
}
