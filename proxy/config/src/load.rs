//! From a file to a [`Config`]: includes, environment, secret files.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ffi::OsStr,
    fmt,
    fs::File,
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use glob::MatchOptions;
use schemars::JsonSchema;

#[cfg(doc)]
use crate::REDACTED;
use crate::{
    admin::Admin,
    bind::Bind,
    cache::Cache,
    cases::{self, Test},
    cluster::Cluster,
    decode::{At, Cx, Fields, beside, brief, check_key, list, mapping, parsed, whole},
    effective::{self, Effective, Sources},
    filters::{Declared, Filter},
    geo::Geo,
    listeners::{self, Listener},
    node::Node as Process,
    redis::Redis,
    report::{Fault, Position, Report},
    sites::{Names, Site},
    telemetry::Telemetry,
    tree::{self, Data, Kind, MAX_NODES, Node},
    upstreams::{self, Draft, Upstream},
};

/// The largest file that is read: a configuration written by people is a thousandth of it.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// What all files together may hold.
const MAX_TOTAL_BYTES: usize = 32 << 20;

/// How many values may be copied to where they are used: a filter's configuration to each route.
const MAX_COPIES: usize = 1_000_000;

/// How many files make one configuration.
const MAX_FILES: usize = 256;

/// How deep files may include files.
const MAX_INCLUDE_DEPTH: usize = 8;

/// The configuration of a node: every name resolves, every value is in range.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields, title = "Selvedge configuration")]
pub struct Config {
    /// The version of this grammar: `1`. Required, in the first file only.
    #[schemars(range(min = 1, max = 1))]
    pub version: u16,

    /// Files that are part of this configuration: paths or patterns such as `conf.d/*.yaml`, relative to the file that
    /// names them. They have the same grammar without `version` and `node`; `admin`, `telemetry`, `geo`, `cache` and `cluster` may stand once
    /// over all files. Each file is read once. A pattern may match nothing, a plain path may not. Here as in the first file.
    #[schemars(with = "Option<Vec<String>>")]
    pub include: Vec<String>,

    /// The process itself. In the first file only.
    #[schemars(with = "Option<Process>", extend("default" = {}))]
    pub node: Process,

    /// Where the node is asked and told. Absent: nobody can.
    pub admin: Option<Admin>,

    /// What the node tells its operator.
    #[schemars(with = "Option<Telemetry>", extend("default" = {}))]
    pub telemetry: Telemetry,

    /// The addresses the node answers on, by name. At least one over all files.
    #[schemars(with = "Option<BTreeMap<String, Listener>>")]
    pub listeners: BTreeMap<String, Listener>,

    /// Where clients are. Absent: not looked up.
    pub geo: Option<Geo>,

    /// The store of responses. Absent: no route may have `cache`.
    pub cache: Option<Cache>,

    /// The nodes that share their caches with this one. Absent: the node is alone.
    pub cluster: Option<Cluster>,

    /// `cluster.redis`: over what the nodes tell each other what is purged.
    #[schemars(skip)]
    pub redis: Option<Redis>,

    /// Named groups of servers.
    #[schemars(with = "Option<BTreeMap<String, Upstream>>")]
    pub upstreams: BTreeMap<String, Upstream>,

    /// WebAssembly modules, declared once, used by name.
    #[schemars(with = "Option<BTreeMap<String, Filter>>")]
    pub filters: BTreeMap<String, Filter>,

    /// Which hosts are served, and by which routes. At least one over all files, unless every listener has `tcp`.
    #[schemars(with = "Option<Vec<Site>>")]
    pub sites: Vec<Site>,

    /// Requests and what is expected of them: `selvedge test` runs them. A node does not.
    #[schemars(with = "Option<Vec<Test>>")]
    pub tests: Vec<Test>,
}

/// A configuration and the files it was made of.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// All files that were read: the first, its includes, and secret files. When one changes, load again.
    pub files: Vec<PathBuf>,
    sources: Sources,
}

impl Loaded {
    /// The configuration as it is in effect, for people to read: all files in one, `like` followed, the settings of filters merged, defaults filled
    /// in. Paths are as written. `tests` are left out.
    ///
    /// Secrets are not in it: what comes from the environment is shown as it is written (`${NAME}`), secret files by their names, and
    /// what is written in the files themselves is [redacted](REDACTED) where the name of its key says that it is a secret, or where
    /// such a secret is written once more.
    #[must_use]
    pub fn effective(&self) -> Effective {
        effective::of(&self.sources)
    }
}

/// Gives the value of a variable.
type Env = dyn Fn(&str) -> Option<String> + Send + Sync;

/// Reads configurations.
#[derive(Clone)]
pub struct Loader {
    builtin_filters: Vec<String>,
    env: Arc<Env>,
}

impl Loader {
    /// A loader that knows no built-in filters and takes variables from the process's environment.
    #[must_use]
    pub fn new() -> Self {
        Self { builtin_filters: Vec::new(), env: Arc::new(|name| std::env::var(name).ok()) }
    }

    /// The names that `wasm: builtin:NAME` may use.
    #[must_use]
    pub fn builtin_filters(mut self, names: &[&str]) -> Self {
        self.builtin_filters = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// Takes variables from `env` instead of the process's environment.
    #[must_use]
    pub fn env(mut self, env: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        self.env = Arc::new(env);
        self
    }

    /// Reads the configuration in this file and all files it includes.
    ///
    /// # Errors
    /// A report of everything that is wrong, in all files.
    pub fn load(&self, path: &Path) -> Result<Loaded, Report> {
        let file: Arc<Path> = path.into();
        self.run(&file, read_text(path))
    }

    /// Reads a configuration from text. `name` stands for it in faults; paths in it are relative to `name`'s directory.
    ///
    /// # Errors
    /// A report of everything that is wrong, in the text and all files it includes.
    pub fn load_str(&self, name: &str, text: &str) -> Result<Loaded, Report> {
        let file: Arc<Path> = Path::new(name).into();
        let mut loaded = self.run(&file, Ok(text.to_owned()));
        // The text itself was read from no file.
        let files = match &mut loaded {
            Ok(loaded) => &mut loaded.files,
            Err(report) => &mut report.files,
        };
        files.retain(|read| **read != *file);
        loaded
    }

    fn run(&self, file: &Arc<Path>, text: Result<String, Unreadable>) -> Result<Loaded, Report> {
        let mut cx = self.cx(file);
        let config = self.read(&mut cx, file, text);
        let Cx { faults, mut files, sources, .. } = cx;
        files.sort();
        files.dedup();
        match config {
            Some(config) if faults.is_empty() => Ok(Loaded { config, files, sources }),
            _ => Err(Report { files, ..Report::new(file, faults) }),
        }
    }

    pub(crate) fn cx(&self, file: &Arc<Path>) -> Cx<'_> {
        Cx {
            faults: Vec::new(),
            files: vec![file.to_path_buf()],
            sources: Sources::default(),
            builtin_filters: &self.builtin_filters,
            has_geo: false,
            read_secret: |path| regular_file(path).and_then(|()| read_text(path)).map_err(|unreadable| unreadable.why),
            incomplete: false,
            secret_bytes_left: MAX_TOTAL_BYTES,
            copies_left: MAX_COPIES,
            #[cfg(test)]
            asked: BTreeMap::new(),
        }
    }

    /// All files, then all sections of all files, then what refers to what.
    pub(crate) fn read(&self, cx: &mut Cx<'_>, file: &Arc<Path>, text: Result<String, Unreadable>) -> Option<Config> {
        let mut reading = Reading { nodes_left: MAX_NODES, bytes_left: MAX_TOTAL_BYTES, seen: HashSet::new() };
        let text = match text {
            Ok(text) => text,
            Err(unreadable) => {
                let start = Position::start_of(file, &"".into());
                return cx.refuse(unreadable.fault(&start));
            }
        };
        reading.first_time(file);
        let root = self.parse(cx, &mut reading, file, text)?;
        let mut documents = vec![Document { root, include: Vec::new(), depth: 0 }];
        let mut next = 0;
        while next < documents.len() {
            let included = self.include(cx, &mut reading, &mut documents, next);
            if let Some(document) = documents.get_mut(next) {
                document.include = included;
            }
            next += 1;
        }
        let source = |root: &Node| (Arc::clone(&root.position.file), Arc::clone(&root.position.text));
        cx.sources = Sources(documents.iter().map(|document| source(&document.root)).collect());
        Sections::gather(cx, &documents).into_config(cx)
    }

    fn parse(&self, cx: &mut Cx<'_>, reading: &mut Reading, file: &Arc<Path>, text: String) -> Option<Node> {
        let text: Arc<str> = text.strip_prefix('\u{feff}').map_or_else(|| text.as_str().into(), Into::into);
        let faults_before = cx.faults.len();
        let mut faults = Vec::new();
        let root = tree::parse(file, &text, &*self.env, &mut reading.nodes_left, &mut faults);
        for fault in faults {
            cx.report(fault);
        }
        let empty = || Node { position: Position::start_of(file, &text), data: Data::Map(Vec::new()) };
        match root {
            None if cx.faults.len() > faults_before => None,
            // Nothing but comments: a file without keys.
            None => Some(empty()),
            Some(node) if matches!(&node.data, Data::Scalar(scalar) if scalar.kind() == Kind::Null) => Some(empty()),
            Some(node) => Some(node),
        }
    }

    /// Reads the files that a document includes, and returns the patterns as written.
    fn include(
        &self,
        cx: &mut Cx<'_>,
        reading: &mut Reading,
        documents: &mut Vec<Document>,
        index: usize,
    ) -> Vec<String> {
        let mut found: Vec<(Arc<Path>, Position)> = Vec::new();
        let Some(document) = documents.get(index) else { return Vec::new() };
        let depth = document.depth + 1;
        let Data::Map(entries) = &document.root.data else { return Vec::new() };
        let Some(entry) = entries.iter().find(|entry| entry.key == "include") else { return Vec::new() };
        let at = At::root(&document.root).entry(entry);
        let patterns = list(cx, &at, |cx, at| {
            let pattern = parsed(cx, at, "a path or a pattern", |text| check_pattern(text).map(|()| text.to_owned()))?;
            if depth > MAX_INCLUDE_DEPTH {
                cx.incomplete = true;
                return cx.refuse(at.fault(format!("files include files more than {MAX_INCLUDE_DEPTH} deep")));
            }
            match expand(&at.node.position.file, &pattern) {
                Ok(files) => found.extend(files.into_iter().map(|file| (file.into(), at.node.position.clone()))),
                Err(why) => {
                    cx.incomplete = true;
                    cx.report(at.fault(why));
                }
            }
            Some(pattern)
        });

        let documents_before = documents.len();
        let mut files = 0;
        for (file, position) in found {
            if !reading.first_time(&file) {
                continue;
            }
            cx.files.push(file.to_path_buf());
            files += 1;
            if reading.seen.len() > MAX_FILES {
                cx.report(Fault::at(&position, format!("more than {MAX_FILES} files")).with_key("include"));
                break;
            }
            let text = match regular_file(&file).and_then(|()| read_text(&file)) {
                Ok(text) => text,
                Err(unreadable) if unreadable.line.is_some() => {
                    cx.report(unreadable.fault(&Position::start_of(&file, &"".into())));
                    continue;
                }
                Err(unreadable) => {
                    // The name is shown as the pattern says it: a variable may have had a part in it.
                    cx.report(Fault::at(&position, format!("cannot include: {}", unreadable.why)).with_key("include"));
                    continue;
                }
            };
            let Some(bytes_left) = reading.bytes_left.checked_sub(text.len()) else {
                cx.report(Fault::at(&position, "all files together are larger than 32MiB").with_key("include"));
                break;
            };
            reading.bytes_left = bytes_left;
            if let Some(root) = self.parse(cx, reading, &file, text) {
                documents.push(Document { root, include: Vec::new(), depth });
            }
        }
        cx.incomplete |= documents.len() - documents_before < files;
        patterns.unwrap_or_default()
    }
}

/// What is left of the limits.
struct Reading {
    nodes_left: usize,
    bytes_left: usize,
    /// The real paths of the files that were read.
    seen: HashSet<PathBuf>,
}

impl Reading {
    /// Whether the file was not read before, under whatever name.
    fn first_time(&mut self, file: &Path) -> bool {
        self.seen.insert(file.canonicalize().unwrap_or_else(|_| file.to_owned()))
    }
}

/// One file.
struct Document {
    root: Node,
    /// Its `include`, as written.
    include: Vec<String>,
    /// How many includes lead to it; 0 for the first file.
    depth: usize,
}

/// The sections of all files, by name, each where it stands.
#[derive(Default)]
struct Sections<'t> {
    version: Option<u16>,
    include: Vec<String>,
    node: Option<At<'t>>,
    admin: Option<At<'t>>,
    telemetry: Option<At<'t>>,
    geo: Option<At<'t>>,
    cache: Option<At<'t>>,
    cluster: Option<At<'t>>,
    listeners: BTreeMap<&'t str, At<'t>>,
    upstreams: BTreeMap<&'t str, At<'t>>,
    filters: BTreeMap<&'t str, At<'t>>,
    sites: Vec<At<'t>>,
    tests: Vec<At<'t>>,
    /// Where to say that something is missing.
    start: Option<At<'t>>,
    /// Whether `listeners` or `sites` is written somewhere, so that it is not missing, whatever is wrong with it.
    has_listeners: bool,
    has_sites: bool,
}

impl<'t> Sections<'t> {
    fn gather(cx: &mut Cx<'_>, documents: &'t [Document]) -> Self {
        let mut all = Self::default();
        for document in documents {
            let at = At::root(&document.root);
            let Some(mut fields) = Fields::open(cx, &at, "Config") else { continue };
            if document.depth == 0 {
                all.version = fields.need(cx, "version", read_version);
                all.node = fields.get("node");
                all.include.clone_from(&document.include);
                all.start = Some(at);
            } else {
                for key in ["version", "node"] {
                    if let Some(at) = fields.get(key) {
                        let fault = Fault::at(at.name_position(), format!("`{key}` stands in an included file"));
                        cx.report(fault.with_key(key).with_help("it belongs in the first file"));
                    }
                }
            }
            let _ = fields.get("include");
            for (key, section) in [
                ("admin", &mut all.admin),
                ("telemetry", &mut all.telemetry),
                ("geo", &mut all.geo),
                ("cache", &mut all.cache),
                ("cluster", &mut all.cluster),
            ] {
                let Some(at) = fields.get(key) else { continue };
                match section {
                    None => *section = Some(at),
                    Some(first) => {
                        let fault =
                            Fault::at(at.name_position(), format!("`{key}` is written in two files")).with_key(key);
                        cx.report(fault.with_related("first here", first.name_position()));
                    }
                }
            }
            for (key, what, section) in [
                ("listeners", "listener", &mut all.listeners),
                ("upstreams", "upstream", &mut all.upstreams),
                ("filters", "filter", &mut all.filters),
            ] {
                let Some(at) = fields.get(key) else { continue };
                all.has_listeners |= key == "listeners";
                for entry in mapping(cx, &at).unwrap_or_default() {
                    let at = at.entry(entry);
                    if let Some(first) = section.get(entry.key.as_str()) {
                        let message = format!("the {what} `{}` is declared twice", brief(&entry.key));
                        let fault = Fault::at(&entry.key_position, message).with_key(at.path);
                        cx.report(fault.with_related("first here", first.name_position()));
                    } else {
                        // What refers to a wrong name is right to do so.
                        check_key(cx, &at, &entry.key);
                        section.insert(&entry.key, at);
                    }
                }
            }
            if let Some(at) = fields.get("sites") {
                all.has_sites = true;
                let sites = list(cx, &at, |_, at| Some(at.clone()));
                all.sites.extend(sites.unwrap_or_default());
            }
            if let Some(at) = fields.get("tests") {
                let tests = list(cx, &at, |_, at| Some(at.clone()));
                all.tests.extend(tests.unwrap_or_default());
            }
            fields.close(cx);
        }
        all
    }

    /// `None` if there is a fault.
    fn into_config(self, cx: &mut Cx<'_>) -> Option<Config> {
        if let Some(start) = &self.start {
            // Where something is wrong, what is missing may be what is wrong.
            let sound = cx.faults.is_empty();
            let whole = !cx.incomplete;
            let empty_listeners = self.has_listeners && self.listeners.is_empty() && sound;
            if whole && !self.has_listeners || empty_listeners {
                let fault = start.fault("there are no `listeners`").with_key("listeners");
                cx.report(fault.with_help("declare one: `listeners: { web: { bind: 127.0.0.1:8080 } }`"));
            }
            let empty_sites = self.has_sites && self.sites.is_empty() && sound;
            let no_sites = !self.listeners.is_empty()
                && self.listeners.values().all(|at| listeners::is_tcp(at) || listeners::redirects(at));
            if !no_sites && (whole && !self.has_sites || empty_sites) {
                let fault = start.fault("there are no `sites`").with_key("sites");
                cx.report(fault.with_help("declare one: `sites: [{ hosts: [\"*\"], routes: [{ to: UPSTREAM }] }]`"));
            }
        }

        let node = self.node.as_ref().and_then(|at| Process::read(cx, at)).unwrap_or_default();
        let telemetry = self.telemetry.as_ref().and_then(|at| Telemetry::read(cx, at)).unwrap_or_default();
        let admin = self.admin.as_ref().and_then(|at| Admin::read(cx, at));
        let geo = self.geo.as_ref().and_then(|at| Geo::read(cx, at));
        cx.has_geo = self.geo.is_some();
        let cache = self.cache.as_ref().and_then(|at| Cache::read(cx, at));
        let (cluster, redis) = self.cluster.as_ref().map(|at| Cluster::read(cx, at)).unwrap_or_default();

        let upstream_names: BTreeSet<&str> = self.upstreams.keys().copied().collect();
        let mut drafts = BTreeMap::new();
        for (name, at) in &self.upstreams {
            if let Some(draft) = Draft::read(cx, at, &upstream_names) {
                drafts.insert((*name).to_owned(), draft);
            }
        }
        let upstreams = upstreams::resolve(cx, &drafts);

        let mut filters: Declared = BTreeMap::new();
        for (name, at) in &self.filters {
            let filter = Filter::read(cx, at);
            filters.insert((*name).to_owned(), filter);
        }

        let mut listeners = BTreeMap::new();
        for (name, at) in &self.listeners {
            let names = listeners::Names {
                upstreams: &upstream_names,
                filters: &filters,
                has_proxies: node.trusted_proxies.any() || cx.incomplete,
            };
            if let Some(listener) = Listener::read(cx, at, &names) {
                listeners.insert((*name).to_owned(), listener);
            }
        }
        check_binds(cx, &listeners);
        if let Some(cluster) = &cluster {
            check_cluster(cx, cluster, &listeners, self.cache.is_some());
        }

        if let Some(redis) = redis.as_ref().filter(|_| self.cache.is_none() && cluster.is_none() && !cx.incomplete) {
            let fault =
                Fault::at(&redis.position, "there is no `cache` that could be purged").with_key("cluster.redis");
            cx.report(fault.with_help("write `cache: {}`"));
        }

        let redirecting = self.listeners.iter().filter(|(_, at)| listeners::redirects(at));
        let tcp_listeners = self.listeners.iter().filter(|(_, at)| listeners::is_tcp(at));
        let names = Names {
            listeners: self.listeners.keys().copied().collect(),
            tcp_listeners: tcp_listeners.map(|(name, _)| *name).collect(),
            redirecting: redirecting.map(|(name, _)| *name).collect(),
            upstreams: upstream_names,
            filters: &filters,
            cache: self.cache.is_some() || cx.incomplete,
        };
        let mut hosts = BTreeMap::new();
        let sites: Vec<Site> = self.sites.iter().filter_map(|at| Site::read(cx, at, &names, &mut hosts)).collect();

        let tests = {
            let all_read = sites.len() == self.sites.len() && !cx.incomplete;
            let names = cases::Names {
                listeners: &names.listeners,
                upstreams: &names.upstreams,
                sites: all_read.then_some(sites.as_slice()),
            };
            cases::read(cx, &self.tests, &names)
        };

        let filters = filters.into_iter().filter_map(|(name, filter)| Some((name, filter?))).collect();
        let include = self.include;
        let version = self.version?;
        Some(Config {
            version,
            include,
            node,
            admin,
            telemetry,
            listeners,
            geo,
            cache,
            cluster,
            redis,
            upstreams,
            filters,
            sites,
            tests,
        })
    }
}

/// Two listeners cannot have one address. Port 0 is a different free port each time.
fn check_binds(cx: &mut Cx<'_>, listeners: &BTreeMap<String, Listener>) {
    let mut in_order: Vec<_> = listeners.iter().filter(|(_, listener)| !listener.bind.is_any_port()).collect();
    in_order.sort_by_key(|(_, Listener { position, .. })| (&position.file, position.line, position.column));
    let mut bound: BTreeMap<&Bind, &Position> = BTreeMap::new();
    for (name, listener) in in_order {
        if let Some(first) = bound.get(&listener.bind) {
            let fault = Fault::at(&listener.position, "another listener has the same `bind`");
            cx.report(fault.with_key(format!("listeners.{name}.bind")).with_related("first here", first));
        } else {
            bound.insert(&listener.bind, &listener.position);
        }
    }
}

/// Its address is nobody else's, and there is something to share.
fn check_cluster(cx: &mut Cx<'_>, cluster: &Cluster, listeners: &BTreeMap<String, Listener>, has_cache: bool) {
    let taken = |listener: &&Listener| listener.bind.tcp() == Some(cluster.listen) && cluster.listen.port() != 0;
    if let Some(listener) = listeners.values().find(taken) {
        let fault = Fault::at(&cluster.position, "a listener has the address that is written as `listen`");
        cx.report(fault.with_key("cluster.listen").with_related("there", &listener.position));
    }
    if !has_cache && !cx.incomplete {
        let fault = Fault::at(&cluster.position, "there is no `cache` that could be shared").with_key("cluster");
        cx.report(fault.with_help("write `cache: {}`"));
    }
}

fn read_version(cx: &mut Cx<'_>, at: &At<'_>) -> Option<u16> {
    let version = whole(cx, at, 0, u16::MAX)?;
    if version == 1 {
        return Some(version);
    }
    cx.refuse(at.fault(format!("version {version} is not known")).with_help("write `version: 1`"))
}

/// A plain path, or one with wildcards in its last part only: anything more could walk over a whole file system.
fn check_pattern(pattern: &str) -> Result<(), (String, Option<String>)> {
    if pattern.is_empty() || pattern.contains('\0') {
        return Err(("is not a path".into(), None));
    }
    let (directory, last) = pattern.rsplit_once('/').unwrap_or(("", pattern));
    if is_wild(directory) || last.contains("**") {
        return Err((
            "has a wildcard before its last part".into(),
            Some("write each directory: `conf.d/*.yaml`".into()),
        ));
    }
    Ok(())
}

fn is_wild(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// The files that a pattern names, seen from the file it is written in, in the order of their names.
fn expand(from: &Path, pattern: &str) -> Result<Vec<PathBuf>, String> {
    let path = beside(from, Path::new(pattern));
    if !is_wild(pattern) {
        return Ok(vec![path]);
    }
    let directory = path.parent().unwrap_or(Path::new(""));
    let last = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let last = glob::Pattern::new(last).map_err(|error| format!("this pattern is wrong: {}", error.msg))?;
    // Editors and package tools leave hidden files behind, which nobody means to include.
    let options =
        MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };
    let here = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let entries = match std::fs::read_dir(here) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("cannot list this directory: {error}")),
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| last.matches_with(name, options)).collect();
    names.sort();
    names.truncate(MAX_FILES + 1);
    Ok(names.into_iter().map(|name| directory.join(name)).collect())
}

/// Why a file is not text that can be read.
pub(crate) struct Unreadable {
    why: String,
    /// Where in the file, if it could be opened: line and column of the first byte that is not UTF-8.
    line: Option<(usize, usize)>,
}

impl Unreadable {
    fn fault(&self, start: &Position) -> Fault {
        let (line, column) = self.line.unwrap_or((1, 1));
        Fault::at(&Position { line, column, ..start.clone() }, self.why.clone())
    }
}

/// A pipe or a device could block for ever or never end.
fn regular_file(path: &Path) -> Result<(), Unreadable> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(()),
        Ok(_) => Err(Unreadable { why: "this is not a regular file".into(), line: None }),
        Err(error) => Err(io_error(&error)),
    }
}

fn read_text(path: &Path) -> Result<String, Unreadable> {
    let file = File::open(path).map_err(|error| io_error(&error))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| io_error(&error))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_FILE_BYTES {
        return Err(Unreadable { why: "the file is larger than 4MiB".into(), line: None });
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]).into_owned();
        let last = valid.rsplit('\n').next().unwrap_or_default();
        let line = (valid.matches('\n').count() + 1, last.chars().count() + 1);
        Unreadable { why: "the file is not UTF-8".into(), line: Some(line) }
    })
}

/// The system's words alone: they hold no path, which a variable may have made.
fn io_error(error: &std::io::Error) -> Unreadable {
    let why = match error.kind() {
        ErrorKind::NotFound => "there is no such file".into(),
        ErrorKind::PermissionDenied => "permission denied".into(),
        _ => error.to_string(),
    };
    Unreadable { why, line: None }
}

impl Default for Loader {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader").field("builtin_filters", &self.builtin_filters).finish_non_exhaustive()
    }
}
