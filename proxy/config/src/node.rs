//! `node`: the process itself.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use schemars::JsonSchema;

use crate::{
    decode::{At, Cx, Fields, NAME_HELP, beside, check_name, choice, duration_or_zero, parsed, truth, whole},
    tree::{Data, Kind},
    trusted::TrustedProxies,
    values::DurationText,
};

/// Settings of the process.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Node {
    /// What this node calls itself in logs and in headers that name a proxy (`Via`, `Cache-Status`, `Proxy-Status`).
    /// Letters, digits, `-`, `_` and `.`, because it stands in those headers unquoted; at most 64 characters. Default `selvedge`.
    #[schemars(with = "Option<String>", extend("default" = "selvedge"))]
    pub name: String,

    /// How many threads serve requests: `auto` for one per core, or 1 to 1024. More threads than cores cost memory (each
    /// has its own filter instances) and seldom help. Default `auto`.
    #[schemars(with = "Option<WorkersForm>", extend("default" = "auto"))]
    pub workers: Workers,

    /// How long requests that are under way may take to end after the node is told to stop. Longer lets slow downloads
    /// finish, shorter restarts faster. `0s` cuts them off at once. Default `10s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "10s"))]
    pub shutdown_grace: Duration,

    /// Where compiled filter modules are kept between starts, so that a restart does not compile again: `auto` for
    /// `selvedge` in the user's cache directory (`$XDG_CACHE_HOME`, else `~/.cache`), `off`, or a directory. Whoever can
    /// write to that directory can run code in the proxy. Default `auto`.
    #[schemars(with = "Option<String>", extend("default" = "auto"))]
    pub module_cache: ModuleCache,

    /// Who may say for whom a request is: proxies and load balancers in front of this node, as addresses and ranges (`10.0.0.0/8`), and
    /// `unix` for whoever comes at a listener on a Unix socket. From them, `X-Forwarded-For` names the client (the last address in it that is no such proxy), `X-Forwarded-Proto` says whether it came
    /// over TLS, and both go on, with `X-Forwarded-Host`, extended by this hop. From everybody else these fields are replaced. Name only
    /// what you run: a client in these ranges can pose as any other. Default: nobody.
    #[schemars(with = "Option<Vec<String>>")]
    pub trusted_proxies: TrustedProxies,

    /// How the paths of requests are read, before routes, filters and cache keys see them.
    #[schemars(with = "Option<Paths>", extend("default" = {}))]
    pub paths: Paths,
}

/// How the paths of requests are read, before routes, filters and cache keys see them: what an origin would read as one path should be one
/// here. Whatever is written here, a path with a control character (encoded or not) or a `%` without two hexadecimal digits is refused
/// with 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Paths {
    /// Whether `.` and `..` segments are resolved and percent-encoding has one form (RFC 3986, 6.2.2): `/a/%2e%2e/%62` is `/b`. A path
    /// that leads out of the root, and a dot segment with a parameter (`/..;/`), is refused then. `false` sends paths on as they came,
    /// for origins that check signatures over them; what a route or filter is to keep out can then be reached under other spellings.
    /// Default `true`.
    #[schemars(with = "Option<bool>", extend("default" = true))]
    pub normalize: bool,

    /// Whether several slashes are one: `/a//b` is `/a/b`. Needs `normalize`. Origins mostly read them so; `false` is for those that
    /// have paths such as `/fetch/https://..`. Default `true`.
    #[schemars(with = "Option<bool>", extend("default" = true))]
    pub merge_slashes: bool,

    /// What becomes of `%2F`: `keep` it as part of a segment; `decode` it to a slash before dot segments are resolved, for origins that
    /// do that; or `reject` the request with 400. Default `keep`.
    #[schemars(with = "Option<EncodedSlashes>", extend("default" = "keep"))]
    pub encoded_slashes: EncodedSlashes,
}

/// What becomes of `%2F` in a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum EncodedSlashes {
    /// It is part of a segment.
    #[default]
    Keep,
    /// It is a slash.
    Decode,
    /// The request is refused.
    Reject,
}

impl Default for Paths {
    fn default() -> Self {
        Self { normalize: true, merge_slashes: true, encoded_slashes: EncodedSlashes::Keep }
    }
}

impl Paths {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        const SLASHES: [(&str, EncodedSlashes); 3] =
            [("keep", EncodedSlashes::Keep), ("decode", EncodedSlashes::Decode), ("reject", EncodedSlashes::Reject)];
        let mut fields = Fields::open(cx, at, "Paths")?;
        let normalize = fields.read(cx, "normalize", truth).unwrap_or(true);
        let merge_at = fields.get("merge_slashes");
        let merge_slashes = merge_at.as_ref().and_then(|at| truth(cx, at));
        let encoded_slashes = fields.read(cx, "encoded_slashes", |cx, at| choice(cx, at, &SLASHES)).unwrap_or_default();
        if let (false, Some(true), Some(at)) = (normalize, merge_slashes, &merge_at) {
            cx.report(
                at.fault("slashes are only merged in paths that are normalised")
                    .with_help("take `normalize: false` away"),
            );
        }
        fields.close(cx);
        Some(Self { normalize, merge_slashes: merge_slashes.unwrap_or(normalize), encoded_slashes })
    }
}

/// How many threads serve requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workers {
    /// One per core.
    Auto,
    /// Exactly so many, 1 to 1024.
    Count(u16),
}

impl Workers {
    /// The number of threads on a machine with so many cores; at least 1.
    #[must_use]
    pub fn count(self, cores: usize) -> usize {
        match self {
            Self::Auto => cores.max(1),
            Self::Count(count) => usize::from(count),
        }
    }
}

/// Where compiled filter modules are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModuleCache {
    /// The user's cache directory.
    Auto,
    /// Nowhere: every start compiles.
    Off,
    /// This directory; made when absent.
    At(PathBuf),
}

/// The two ways to write [`Workers`].
#[derive(JsonSchema)]
#[schemars(untagged, inline)]
#[expect(dead_code, reason = "describes the grammar; never made")]
enum WorkersForm {
    Word(AutoWord),
    Count(#[schemars(range(min = 1, max = 1024))] u16),
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase", inline)]
#[expect(dead_code, reason = "describes the grammar; never made")]
enum AutoWord {
    Auto,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            name: "selvedge".into(),
            workers: Workers::Auto,
            shutdown_grace: Duration::from_secs(10),
            module_cache: ModuleCache::Auto,
            trusted_proxies: TrustedProxies::default(),
            paths: Paths::default(),
        }
    }
}

impl Node {
    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let default = Self::default();
        let mut fields = Fields::open(cx, at, "Node")?;
        let name = fields.read(cx, "name", |cx, at| {
            parsed(cx, at, "a name", |text| {
                check_name(text).map(|()| text.to_owned()).map_err(|why| (why, Some(NAME_HELP.into())))
            })
        });
        let workers = fields.read(cx, "workers", read_workers);
        let shutdown_grace = fields.read(cx, "shutdown_grace", duration_or_zero);
        let module_cache = fields.read(cx, "module_cache", read_module_cache);
        let trusted_proxies = fields.read(cx, "trusted_proxies", TrustedProxies::read);
        let paths = fields.read(cx, "paths", Paths::read);
        fields.close(cx);
        Some(Self {
            name: name.unwrap_or(default.name),
            workers: workers.unwrap_or(default.workers),
            shutdown_grace: shutdown_grace.unwrap_or(default.shutdown_grace),
            module_cache: module_cache.unwrap_or(default.module_cache),
            trusted_proxies: trusted_proxies.unwrap_or_default(),
            paths: paths.unwrap_or(default.paths),
        })
    }
}

fn read_workers(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Workers> {
    match &at.node.data {
        Data::Scalar(scalar)
            if scalar.kind() == Kind::Text && !scalar.text.starts_with(|c: char| c.is_ascii_digit()) =>
        {
            choice(cx, at, &[("auto", Workers::Auto)])
        }
        _ => whole(cx, at, 1, 1024).map(Workers::Count),
    }
}

fn read_module_cache(cx: &mut Cx<'_>, at: &At<'_>) -> Option<ModuleCache> {
    parsed(cx, at, "`auto`, `off` or a path", |text| match text {
        "auto" => Ok(ModuleCache::Auto),
        "off" => Ok(ModuleCache::Off),
        "" => Err(("is not a path".into(), None)),
        path => Ok(ModuleCache::At(beside(&at.node.position.file, Path::new(path)))),
    })
}
