//! What a request costs on a warm VM. Run by hand, in release: `cargo test -p selvedge-wasm --release -- --ignored --nocapture warm`.

use std::time::Instant;

use super::fakes::*;

#[test]
#[ignore = "a measurement, not a claim"]
fn warm_vm_request() {
    for (name, config) in [("noop", ""), ("headers", "request set x-a 1")] {
        let rig = guest(name, config);
        let mut x = FakeExchange::get("/");
        x.respond();
        let mut best = u128::MAX;
        for _ in 0..200 {
            let started = Instant::now();
            for _ in 0..1000 {
                let mut stream = rig.stream();
                stream.on_request_headers(&mut x, true).unwrap();
                stream.on_response_headers(&mut x, true).unwrap();
                stream.finish(&mut x).unwrap();
            }
            best = best.min(started.elapsed().as_nanos() / 1000);
        }
        println!("{name}: {best} ns per request");
    }
}
