//! A gRPC client and server of others (tonic) with a node between them: every kind of call, statuses, metadata and compression, with and
//! without filters, over h2c and TLS.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use selvedge_tests::{Client, Edge, soon};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codec::CompressionEncoding;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

/// What `google.protobuf.StringValue` is in Rust.
type Text = String;
type Codec = ProstCodec<Text, Text>;
type Texts = Pin<Box<dyn Stream<Item = Result<Text, Status>> + Send>>;

/// A server with one method of each kind, and one that fails.
async fn server() -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let service =
                    hyper::service::service_fn(|request| async { Ok::<_, Infallible>(answer(request).await) });
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    (address, task)
}

async fn answer(request: http::Request<Incoming>) -> http::Response<Body> {
    let path = request.uri().path().to_owned();
    let request = request.map(Body::new);
    let mut grpc = tonic::server::Grpc::new(Codec::default())
        .accept_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Gzip);
    match path.as_str() {
        "/test.Echo/Unary" => grpc.unary(service_fn(unary), request).await,
        "/test.Echo/Split" => grpc.server_streaming(service_fn(split), request).await,
        "/test.Echo/Join" => grpc.client_streaming(service_fn(join), request).await,
        "/test.Echo/Talk" => grpc.streaming(service_fn(talk), request).await,
        "/test.Echo/Never" => grpc.unary(service_fn(never), request).await,
        _ => Status::unimplemented("no such method").into_http(),
    }
}

async fn unary(request: Request<Text>) -> Result<Response<Text>, Status> {
    let asked = request.metadata().get("x-asked").cloned();
    match request.into_inner().as_str() {
        "fail" => Err(Status::with_details(Code::FailedPrecondition, "not ready: ä", vec![1, 2, 255].into())),
        text => {
            let mut response = Response::new(format!("{text}!"));
            if let Some(asked) = asked {
                response.metadata_mut().insert("x-answered", asked);
            }
            Ok(response)
        }
    }
}

async fn split(request: Request<Text>) -> Result<Response<Texts>, Status> {
    let words: Vec<_> = request.into_inner().split(' ').map(|word| Ok(word.to_owned())).collect();
    // The end of a stream may be a failure, after messages.
    let end = [Err(Status::data_loss("that is all"))];
    Ok(Response::new(Box::pin(futures::stream::iter(words.into_iter().chain(end)))))
}

async fn join(request: Request<Streaming<Text>>) -> Result<Response<Text>, Status> {
    let words: Vec<_> = request.into_inner().collect::<Vec<_>>().await.into_iter().collect::<Result<_, _>>()?;
    Ok(Response::new(words.join(" ")))
}

async fn talk(request: Request<Streaming<Text>>) -> Result<Response<Texts>, Status> {
    let answers = request.into_inner().map(|word| word.map(|word| word.to_uppercase()));
    Ok(Response::new(Box::pin(answers)))
}

async fn never(_: Request<Text>) -> Result<Response<Text>, Status> {
    std::future::pending().await
}

const YAML: &str = "filters: { noop: { wasm: \"file:${GUESTS}/noop.wasm\", limits: { deadline: 10s } } }
upstreams:
  app: { endpoints: [\"127.0.0.1:${PORT_app}\"], protocol: h2, timeouts: { read: 20s } }
  dead: { endpoints: [\"127.0.0.1:1\"], protocol: h2 }
sites:
  - { hosts: [bare.test], routes: [{ name: bare, to: app }] }
  - { hosts: [filtered.test], routes: [{ name: filtered, filters: [noop], to: app }] }
  - { hosts: [dead.test], routes: [{ name: dead, to: dead }] }
";

/// A client over a connection to the node.
async fn client(edge: &Edge, host: &str, tls: bool) -> Grpc<Channel> {
    let (web, secure, name) = (edge.web(), edge.secure(), host.to_owned());
    let endpoint = Endpoint::try_from(format!("http://{host}")).unwrap().connect_timeout(Duration::from_secs(10));
    let channel = endpoint.connect_with_connector(service_fn(move |_| {
        let name = name.clone();
        async move {
            let client =
                if tls { Client::connect_tls(secure, &name, &["h2"]).await } else { Client::connect(web).await };
            Ok::<_, Infallible>(TokioIo::new(client.into_stream()))
        }
    }));
    let channel = soon("a connection", channel).await.expect("connected");
    let mut grpc = Grpc::new(channel);
    soon("room", grpc.ready()).await.expect("ready");
    grpc
}

fn path(method: &str) -> PathAndQuery {
    format!("/test.Echo/{method}").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_call_passes() {
    let (address, _server) = server().await;
    let edge = Edge::start(YAML, &[("app", address)]);
    for (host, tls) in [("bare.test", false), ("bare.test", true), ("filtered.test", false), ("filtered.test", true)] {
        let mut grpc = client(&edge, host, tls)
            .await
            .send_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Gzip);
        let mut request = Request::new("hello".to_owned());
        request.metadata_mut().insert("x-asked", "why".parse().unwrap());
        let answer = soon("unary", grpc.unary(request, path("Unary"), Codec::default())).await.expect(host);
        assert_eq!(answer.metadata().get("x-answered").unwrap(), "why", "{host}");
        assert_eq!(answer.into_inner(), "hello!", "{host}");

        soon("room", grpc.ready()).await.expect("ready");
        let refused = soon("unary", grpc.unary(Request::new("fail".to_owned()), path("Unary"), Codec::default())).await;
        let status = refused.expect_err("refused");
        assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "not ready: ä"), "{host}");
        assert_eq!(status.details(), [1, 2, 255], "{host}");

        soon("room", grpc.ready()).await.expect("ready");
        let words = grpc.server_streaming(Request::new("a b c".to_owned()), path("Split"), Codec::default());
        let mut words = soon("a stream", words).await.expect(host).into_inner();
        for word in ["a", "b", "c"] {
            assert_eq!(soon("a word", words.message()).await.expect(host).as_deref(), Some(word), "{host}");
        }
        let end = soon("the end", words.message()).await.expect_err("it ends with a failure");
        assert_eq!((end.code(), end.message()), (Code::DataLoss, "that is all"), "{host}");

        soon("room", grpc.ready()).await.expect("ready");
        let words = futures::stream::iter(["one", "two", "three"].map(String::from));
        let joined = grpc.client_streaming(Request::new(words), path("Join"), Codec::default());
        assert_eq!(soon("an answer", joined).await.expect(host).into_inner(), "one two three", "{host}");

        soon("room", grpc.ready()).await.expect("ready");
        let (say, said) = tokio::sync::mpsc::unbounded_channel::<Text>();
        let said = futures::stream::unfold(said, |mut said| async { said.recv().await.map(|word| (word, said)) });
        let heard = grpc.streaming(Request::new(said), path("Talk"), Codec::default());
        say.send("first".into()).unwrap();
        let mut heard = soon("a stream", heard).await.expect(host).into_inner();
        assert_eq!(soon("an answer", heard.message()).await.expect(host).as_deref(), Some("FIRST"), "{host}");
        // One waits for the other: nothing may be held back on the way.
        for word in ["second", "third"] {
            say.send(word.into()).unwrap();
            let answer = soon("an answer", heard.message()).await.expect(host);
            assert_eq!(answer, Some(word.to_uppercase()), "{host}");
        }
        drop(say);
        assert_eq!(soon("the end", heard.message()).await.expect(host), None, "{host}");

        soon("room", grpc.ready()).await.expect("ready");
        let unknown = grpc.unary(Request::new(String::new()), path("None"), Codec::default());
        let status = soon("an answer", unknown).await.expect_err("there is no such method");
        assert_eq!(status.code(), Code::Unimplemented, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_own_answers_are_statuses() {
    let (address, _server) = server().await;
    let edge = Edge::start(YAML, &[("app", address)]);
    for (host, code) in [("dead.test", Code::Unavailable), ("nobody.test", Code::Unimplemented)] {
        let mut grpc = client(&edge, host, false).await;
        let answer = grpc.unary(Request::new(String::new()), path("Unary"), Codec::default());
        assert_eq!(soon("an answer", answer).await.expect_err("an error").code(), code, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_gives_up_is_heard_at_the_server() {
    let (address, _server) = server().await;
    let edge = Edge::start(YAML, &[("app", address)]);
    for host in ["bare.test", "filtered.test"] {
        let mut grpc = client(&edge, host, false).await;
        let mut request = Request::new(String::new());
        request.set_timeout(Duration::from_millis(200));
        let answer = grpc.unary(request, path("Never"), Codec::default());
        let status = soon("an end", answer).await.expect_err("nobody answers");
        assert!(matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded), "{host}: {status:?}");
        let upstream = std::sync::Arc::clone(edge.plan().upstreams.get("app").unwrap());
        selvedge_tests::until("the node has given it up too", || upstream.endpoints()[0].in_flight == 0).await;
    }
}
