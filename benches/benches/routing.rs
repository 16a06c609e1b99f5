//! Finding the route of a request, in plans of different sizes: many sites, and one site with many routes.

use std::fmt::Write as _;
use std::hint::black_box;

use anyhow::{Result, anyhow, ensure};
use criterion::{BenchmarkId, Criterion};
use pingora_http::RequestHeader;
use selvedge::plan::{self, Plan, Resources, Selected};
use selvedge_config::{Loader, ModuleCache};

/// How many routes the measured site has.
const ROUTES: [usize; 3] = [1, 10, 100];
/// How many sites stand beside it.
const SITES: usize = 1000;

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("routing");
    for routes in ROUTES {
        let plan = plan(routes)?;
        let last = format!("/area-{}/page", routes - 1);
        for (what, host, path) in [
            ("exact host, a route's path", "www.example.com", last.as_str()),
            ("exact host, any path", "www.example.com", "/somewhere/else"),
            ("wildcard host, any path", "tenant.example.net", "/somewhere/else"),
        ] {
            let request = request(host, path)?;
            ensure!(matches!(plan.select(0, &request), Some(Selected::Route(_))), "no route for {host}{path}");
            group.bench_function(BenchmarkId::new(what, format!("{routes} routes, {SITES} sites")), |b| {
                b.iter(|| plan.select(0, black_box(&request)).is_some());
            });
        }
    }
    group.finish();
    Ok(())
}

/// A plan whose measured site has `routes` prefixes and one route for everything else.
fn plan(routes: usize) -> Result<Plan> {
    let mut yaml = String::from(
        "version: 1\n\
         listeners: { web: { bind: 127.0.0.1:0 } }\n\
         upstreams: { app: { endpoints: [127.0.0.1:9] } }\n\
         sites:\n  - hosts: [www.example.com, \"*.example.net\"]\n    routes:\n",
    );
    for route in 0..routes {
        writeln!(yaml, "      - {{ match: {{ path: /area-{route}/* }}, to: app }}")?;
    }
    writeln!(yaml, "      - {{ to: app }}")?;
    for site in 0..SITES {
        writeln!(yaml, "  - {{ hosts: [site-{site}.example.org], routes: [{{ to: app }}] }}")?;
    }
    let loaded = Loader::new().load_str("bench.yaml", &yaml)?;
    let resources = Resources::new(1, &ModuleCache::Off)?;
    match plan::build(&resources, loaded) {
        Ok(built) => Ok(built.plan),
        Err(faults) => Err(anyhow!("the plan has {} faults", faults.len())),
    }
}

fn request(host: &str, path: &str) -> Result<RequestHeader> {
    let mut request = RequestHeader::build("GET", path.as_bytes(), None)?;
    request.insert_header("host", host)?;
    Ok(request)
}
