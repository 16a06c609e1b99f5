//! Finding the route of a request, in plans of different sizes: many sites, and one site with many routes.

use std::fmt::Write as _;
use std::hint::black_box;

use anyhow::{Result, anyhow, ensure};
use criterion::{BenchmarkId, Criterion};
use pingora_http::RequestHeader;
use selvedge::plan::{self, Asker, Plan, Resources, Selected};
use selvedge_config::{Loader, ModuleCache};

/// How many routes the measured site has.
const ROUTES: [usize; 3] = [1, 10, 100];
/// A large node: sites, and routes of each.
const LARGE: (usize, usize) = (10_000, 10);
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
            ensure!(
                matches!(plan.select(&Asker::new(0, &request)), Some(Selected::Route(_))),
                "no route for {host}{path}"
            );
            group.bench_function(BenchmarkId::new(what, format!("{routes} routes, {SITES} sites")), |b| {
                b.iter(|| plan.select(&Asker::new(0, black_box(&request))).is_some());
            });
        }
    }
    group.finish();
    large(&mut criterion)
}

/// Loading and asking a node of many sites, written over several files as one would.
fn large(criterion: &mut Criterion) -> Result<()> {
    let (sites, routes) = LARGE;
    let folder = tempfile::tempdir()?;
    let mut first = String::from(
        "version: 1\n\
         include: [\"sites-*.yaml\"]\n\
         listeners: { web: { bind: 127.0.0.1:0 } }\n\
         upstreams: { app: { endpoints: [127.0.0.1:9] } }\n",
    );
    writeln!(first, "node: {{ module_cache: off }}")?;
    std::fs::write(folder.path().join("config.yaml"), first)?;
    for part in 0..10 {
        let mut yaml = String::from("sites:\n");
        for site in (part * sites / 10)..((part + 1) * sites / 10) {
            writeln!(yaml, "  - hosts: [site-{site}.example.org]\n    routes:")?;
            for route in 1..routes {
                writeln!(yaml, "      - {{ name: area-{route}, match: {{ path: /area-{route}/* }}, to: app }}")?;
            }
            writeln!(yaml, "      - {{ name: rest, to: app }}")?;
        }
        std::fs::write(folder.path().join(format!("sites-{part}.yaml")), yaml)?;
    }
    let resources = Resources::new(1, &ModuleCache::Off)?;
    let load = || -> Result<Plan> {
        let loaded = Loader::new().load(&folder.path().join("config.yaml"))?;
        plan::build(&resources, loaded).map(|built| built.plan).map_err(|faults| anyhow!("{} faults", faults.len()))
    };
    let plan = load()?;
    ensure!(plan.router.routes().count() == sites * routes);
    let mut group = criterion.benchmark_group("10,000 sites of 10 routes");
    group.sample_size(10);
    group.bench_function("load", |b| b.iter(|| load().is_ok()));
    for (what, path) in [("a route's path", "/area-9/page"), ("any path", "/somewhere/else/and/further")] {
        // Another site each time, as requests are for.
        let requests: Vec<RequestHeader> = (0..sites)
            .map(|site| request(&format!("site-{}.example.org", site * 7919 % sites), path))
            .collect::<Result<_>>()?;
        let mut next = requests.iter().cycle();
        group.bench_function(BenchmarkId::new("select", what), |b| {
            b.iter(|| next.next().is_some_and(|request| plan.select(&Asker::new(0, request)).is_some()));
        });
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
