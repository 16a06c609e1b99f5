//! `filters`: WebAssembly modules, declared once and used by name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use schemars::JsonSchema;
use serde_json::Value;

use crate::{
    decode::{
        At, Cx, Fields, beside, brief, choice, duration, mapping, parsed, reference, settings, size, suggest, text,
        unknown_name, whole,
    },
    isolation::{Compat, Isolation, IsolationForm, Snapshot, Tick, sha256},
    report::{Fault, Position},
    tree::{Data, Place, Settings},
    values::{ByteSize, DurationText},
};

/// A filter as declared: a module, its limits and its configuration.
#[derive(Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Filter {
    /// The module: `builtin:NAME` for one that comes with the node, or `file:PATH`. Required.
    #[schemars(with = "String", regex(pattern = r"^(builtin|file):|\$\{"))]
    pub wasm: WasmSource,

    /// The SHA-256 of the module's bytes, in hexadecimal. With it, a module that is not the very one it was when this was written is a
    /// fault. Default: any.
    #[schemars(with = "Option<String>", regex(pattern = r"^[0-9a-fA-F]{64}$|\$\{"))]
    pub sha256: Option<[u8; 32]>,

    /// Which requests share an instance of the module: `worker` all of one worker thread, as on other hosts; `{ pool: N }` as well, but
    /// with N instances on each worker; `request` none, each gets a fresh instance that is gone with it. What a request can do to an
    /// instance, a trap for example, is felt by those who share it. `request` costs each request some microseconds, and the filter
    /// keeps nothing in its memory from one request to the next (shared data and metrics it keeps). Default `worker`.
    #[schemars(with = "Option<IsolationForm>", extend("default" = "worker"))]
    pub isolation: Isolation,

    /// Where the instances of `isolation: request` begin: `auto` takes a snapshot of the configured module when starting it takes long,
    /// `always` takes one in any case, `never` starts the module for each request. What a module has drawn by lot while it started is
    /// the same in all instances of a snapshot. Default `auto`.
    #[schemars(with = "Option<Snapshot>", extend("default" = "auto"))]
    pub snapshot: Snapshot,

    /// Who ticks when the module asks for ticks: `each_worker`, as on other hosts, or `once_per_node`. Default `each_worker`.
    #[schemars(with = "Option<Tick>", extend("default" = "each_worker"))]
    pub tick: Tick,

    /// Which host the module was written for, where hosts differ and one answer cannot serve both: `envoy`, or `ngx` for filters of
    /// Kong's ngx_wasm_module, to which properties are text and paths may have dots, and which mean something else by writes to bodies
    /// and to shared data. The page on the ABI lists it. Default `envoy`.
    #[schemars(with = "Option<Compat>", extend("default" = "envoy"))]
    pub compat: Compat,

    /// Which filter of a module that holds several, as the property `plugin_root_id`. Default: empty.
    #[schemars(with = "Option<String>")]
    pub root_id: String,

    /// The key space of shared data and queues, as the property `plugin_vm_id`: filters with the same one share them. Default: the
    /// filter's name.
    #[schemars(with = "Option<String>")]
    pub vm_id: Option<String>,

    /// What the module is given when its VM starts, before its configuration: any YAML, as `config`. Default: nothing.
    #[schemars(with = "Option<Value>")]
    pub vm_config: Value,

    /// The environment variables the module sees, names and values. It sees no others. Default: none.
    #[schemars(with = "Option<BTreeMap<String, String>>")]
    pub environment: BTreeMap<String, String>,

    /// What a request gets when the filter traps or runs out of a limit: `closed` answers 503 (Service Unavailable),
    /// `open` goes on without the filter. Choose `open` only where the filter guards nothing. Default `closed`.
    #[schemars(with = "Option<OnFailure>", extend("default" = "closed"))]
    pub on_failure: OnFailure,

    /// How the filter sees the body of a request: `stream` chunk by chunk, as its own pauses say; `buffer` as a whole, at most
    /// `limits.body` of it (beyond that 413, Content Too Large), before anything of the request goes on; `{ peek: SIZE }` its
    /// beginning, before anything goes on, after which the rest passes unseen. The node holds the header for the last two, whatever
    /// the filter says to it. Choose them for filters that judge bodies: what a filter sees chunk by chunk may reach the origin before
    /// its verdict. Default `stream`.
    #[schemars(with = "Option<BodyModeForm>", extend("default" = "stream"))]
    pub request_body: BodyMode,

    /// How the filter sees the body of a response: as `request_body` says. A response that is larger than `limits.body` and is to be
    /// buffered is answered with 502 (Bad Gateway). Do not buffer responses that never end, such as event streams. Default `stream`.
    #[schemars(with = "Option<BodyModeForm>", extend("default" = "stream"))]
    pub response_body: BodyMode,

    /// What a filter that pauses at a header is shown of the body meanwhile: `spec` all of it, as the text of the ABI says, so that it
    /// may hold the header until it has seen the body; `stop_all` nothing, until it resumes, as Envoy does it. Default `spec`.
    #[schemars(with = "Option<OnPause>", extend("default" = "spec"))]
    pub on_pause: OnPause,

    /// How the filter sees header values that are not UTF-8, which many guest SDKs die over. `escape`: bytes that are no UTF-8 as `%XX`,
    /// while the message keeps the real ones; a filter that writes back what it was shown changes nothing. `reject`: a request with
    /// such a value is answered with 400 (Bad Request) before the filter sees it, a response with 502 (Bad Gateway). `pass`: the bytes
    /// as they are, for filters that take any, such as those that come with the node. Default `escape`.
    #[schemars(with = "Option<HeaderEncoding>", extend("default" = "escape"))]
    pub header_encoding: HeaderEncoding,

    /// What one instance of the filter may use.
    #[schemars(with = "Option<FilterLimits>", extend("default" = {}))]
    pub limits: FilterLimits,

    /// What the filter is configured with: any YAML, handed to the module as JSON. The key `X_file: path` becomes `X:
    /// <content of the file>`, one trailing newline removed. Default `{}`.
    #[schemars(with = "Option<Value>")]
    pub config: Value,

    /// Where its name is written.
    #[schemars(skip)]
    pub position: Position,

    /// Where `wasm` is written.
    #[schemars(skip)]
    pub wasm_position: Position,

    #[schemars(skip)]
    pub(crate) places: BTreeMap<String, Place>,
}

/// Where a filter's module comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WasmSource {
    /// One that comes with the node, by name.
    Builtin(String),
    /// A file.
    File(PathBuf),
}

/// What a request gets when a filter fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum OnFailure {
    /// 503 (Service Unavailable).
    #[default]
    Closed,
    /// The request goes on without the filter.
    Open,
}

/// How a filter sees header values that are not UTF-8.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum HeaderEncoding {
    /// With `%XX` for each byte that is not UTF-8.
    #[default]
    Escape,
    /// Not at all: the message is refused.
    Reject,
    /// As they are.
    Pass,
}

/// How a filter sees a body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BodyMode {
    /// Chunk by chunk, as the filter's own pauses say.
    #[default]
    Stream,
    /// As a whole, before the header goes on.
    Buffer,
    /// At most this much of its beginning, before the header goes on; the rest passes unseen.
    Peek(ByteSize),
}

/// How a filter sees a body, as it is written.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "BodyMode")]
#[expect(dead_code, reason = "describes the grammar; never made")]
enum BodyModeForm {
    Word(BodyWord),
    Peek(Peek),
}

/// How a filter sees a body, in one word.
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[expect(dead_code, reason = "describes the grammar; never made")]
enum BodyWord {
    /// Chunk by chunk, as the filter's own pauses say.
    Stream,
    /// As a whole, before the header goes on.
    Buffer,
}

/// How much of a body's beginning a filter sees.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "describes the grammar; never made")]
struct Peek {
    /// The size of the beginning; all of a shorter body. Above zero, at most `limits.body`. Required.
    peek: ByteSize,
}

/// What a filter that pauses at a header is shown of the body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum OnPause {
    /// Every chunk, while the header is held.
    #[default]
    Spec,
    /// Nothing, until the filter resumes.
    StopAll,
}

/// What one instance of a filter may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct FilterLimits {
    /// The instance's linear memory. There is one instance per worker thread. Above zero. Default `32MiB`.
    #[schemars(with = "Option<ByteSize>", extend("default" = "32MiB"))]
    pub memory: ByteSize,

    /// CPU time that one call into the module may use. A call that runs for more than a few milliseconds goes on beside the worker's
    /// other requests, not in their way. Starting and configuring the module may take 20 times as much. Above zero. Default `50ms`.
    #[schemars(with = "Option<DurationText>", extend("default" = "50ms"))]
    pub cpu: Duration,

    /// How long one call into the module may take by the clock, whether it runs or waits for a core. Above zero. Default `1s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "1s"))]
    pub deadline: Duration,

    /// How many calls to upstreams (HTTP and gRPC) the filter may have under way on the node. From 1 to 65535. Default 1024.
    #[schemars(with = "Option<u16>", range(min = 1), extend("default" = 1024))]
    pub callouts: u16,

    /// How many calls to upstreams the filter may begin per second on the node, averaged; 0 means no limit. Up to 65535. Default 0.
    #[schemars(with = "Option<u16>", extend("default" = 0))]
    pub callouts_per_second: u16,

    /// How much of a request's or response's body may be held back for the filter. Above zero. Default `1MiB`.
    #[schemars(with = "Option<ByteSize>", extend("default" = "1MiB"))]
    pub body: ByteSize,

    /// How long a request may wait while the filter has paused it. Above zero. Default `10s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "10s"))]
    pub wait: Duration,
}

impl Default for FilterLimits {
    fn default() -> Self {
        Self {
            memory: ByteSize::mib(32),
            cpu: Duration::from_millis(50),
            deadline: Duration::from_secs(1),
            callouts: 1024,
            callouts_per_second: 0,
            body: ByteSize::mib(1),
            wait: Duration::from_secs(10),
        }
    }
}

/// One step of a chain: a filter, with the settings of this place merged over its declared configuration.
#[derive(Clone, PartialEq, JsonSchema)]
#[schemars(with = "FilterUseForm")]
pub struct FilterUse {
    /// The filter's name in [`Config::filters`](crate::Config::filters).
    pub name: String,
    /// Its configuration here. A top-level key of the settings replaces the declared key.
    pub config: Value,
    /// Where it is used.
    pub position: Position,
    pub(crate) places: BTreeMap<String, Place>,
}

/// A filter's name alone, or its name and the settings that are merged over its declared configuration.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "FilterUse")]
#[expect(dead_code, reason = "describes the grammar; never made")]
enum FilterUseForm {
    Name(String),
    #[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
    WithSettings(BTreeMap<String, BTreeMap<String, Value>>),
}

impl Filter {
    /// Where the value at a JSON pointer (RFC 6901) of [`Filter::config`] is written: that of the nearest value around it
    /// if it is not written itself, at last that of the filter.
    #[must_use]
    pub fn position_of(&self, pointer: &str) -> &Position {
        nearest(&self.places, pointer).map_or(&self.position, |place| &place.position)
    }

    /// Whether the value at a JSON pointer came from a file or from the environment, so that it must not be shown.
    #[must_use]
    pub fn is_secret(&self, pointer: &str) -> bool {
        is_secret(&self.places, pointer)
    }
}

impl FilterUse {
    pub(crate) fn new(name: String, settings: Settings, position: Position) -> Self {
        Self { name, config: settings.value, places: settings.places, position }
    }

    /// How many values its configuration has, itself counted.
    pub(crate) fn weight(&self) -> usize {
        self.places.len() + 1
    }

    /// Where the value at a JSON pointer (RFC 6901) of [`FilterUse::config`] is written, which may be at this use or at the
    /// filter's declaration: that of the nearest value around it if it is not written itself, at last that of this use.
    #[must_use]
    pub fn position_of(&self, pointer: &str) -> &Position {
        nearest(&self.places, pointer).map_or(&self.position, |place| &place.position)
    }

    /// Where the key of the value at a JSON pointer is written; where the value itself is, if it has no key.
    #[must_use]
    pub fn key_position_of(&self, pointer: &str) -> &Position {
        let key = self.places.get(pointer).and_then(|place| place.key.as_ref());
        key.unwrap_or_else(|| self.position_of(pointer))
    }

    /// Whether the value at a JSON pointer came from a file or from the environment, so that it must not be shown.
    #[must_use]
    pub fn is_secret(&self, pointer: &str) -> bool {
        is_secret(&self.places, pointer)
    }
}

fn nearest<'p>(places: &'p BTreeMap<String, Place>, pointer: &str) -> Option<&'p Place> {
    let mut pointer = pointer;
    loop {
        if let Some(place) = places.get(pointer) {
            return Some(place);
        }
        pointer = &pointer[..pointer.rfind('/')?];
    }
}

/// A value is secret if it, or anything inside it, is.
fn is_secret(places: &BTreeMap<String, Place>, pointer: &str) -> bool {
    let inside = format!("{pointer}/");
    nearest(places, pointer).is_some_and(|place| place.secret)
        || places.range(inside.clone()..).take_while(|(key, _)| key.starts_with(&inside)).any(|(_, place)| place.secret)
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter")
            .field("wasm", &self.wasm)
            .field("sha256", &self.sha256)
            .field("isolation", &self.isolation)
            .field("snapshot", &self.snapshot)
            .field("tick", &self.tick)
            .field("compat", &self.compat)
            .field("root_id", &self.root_id)
            .field("vm_id", &self.vm_id)
            .field("vm_config", &format_args!("<not shown>"))
            .field("environment", &format_args!("<not shown>"))
            .field("on_failure", &self.on_failure)
            .field("request_body", &self.request_body)
            .field("response_body", &self.response_body)
            .field("on_pause", &self.on_pause)
            .field("header_encoding", &self.header_encoding)
            .field("limits", &self.limits)
            .field("config", &format_args!("<not shown>"))
            .field("position", &self.position)
            .finish()
    }
}

impl fmt::Debug for FilterUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilterUse")
            .field("name", &self.name)
            .field("config", &format_args!("<not shown>"))
            .field("position", &self.position)
            .finish()
    }
}

/// The declared filters, by name. `None`: declared, with a fault of its own.
pub(crate) type Declared = BTreeMap<String, Option<Filter>>;

impl Filter {
    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Filter")?;
        let wasm = fields.need(cx, "wasm", |cx, at| Some((WasmSource::read(cx, at)?, at.node.position.clone())));
        let on_failure = fields.read(cx, "on_failure", |cx, at| {
            choice(cx, at, &[("closed", OnFailure::Closed), ("open", OnFailure::Open)])
        });
        let limits = fields.read(cx, "limits", FilterLimits::read).unwrap_or_default();
        let request_body = fields.read(cx, "request_body", |cx, at| BodyMode::read(cx, at, limits.body));
        let response_body = fields.read(cx, "response_body", |cx, at| BodyMode::read(cx, at, limits.body));
        let on_pause = fields
            .read(cx, "on_pause", |cx, at| choice(cx, at, &[("spec", OnPause::Spec), ("stop_all", OnPause::StopAll)]));
        let header_encoding = fields.read(cx, "header_encoding", |cx, at| {
            let choices = [
                ("escape", HeaderEncoding::Escape),
                ("reject", HeaderEncoding::Reject),
                ("pass", HeaderEncoding::Pass),
            ];
            choice(cx, at, &choices)
        });
        let sha256 = fields.read(cx, "sha256", sha256);
        let isolation = fields.read(cx, "isolation", Isolation::read);
        let snapshot = fields.read(cx, "snapshot", Snapshot::read);
        let tick = fields.read(cx, "tick", Tick::read);
        let compat = fields.read(cx, "compat", Compat::read);
        let root_id = fields.read(cx, "root_id", text);
        let vm_id = fields.read(cx, "vm_id", text);
        let vm_config = fields.read(cx, "vm_config", settings);
        let environment = fields.read(cx, "environment", environment);
        let config_at = fields.get("config");
        let config = match &config_at {
            Some(at) => settings(cx, at),
            None => Some(Settings { value: Value::Object(serde_json::Map::new()), places: BTreeMap::new() }),
        };
        fields.close(cx);
        let ((wasm, wasm_position), config) = (wasm?, config?);
        Some(Self {
            wasm,
            sha256,
            isolation: isolation.unwrap_or_default(),
            snapshot: snapshot.unwrap_or_default(),
            tick: tick.unwrap_or_default(),
            compat: compat.unwrap_or_default(),
            root_id: root_id.unwrap_or_default(),
            vm_id,
            vm_config: vm_config.map(|settings| settings.value).unwrap_or_default(),
            environment: environment.unwrap_or_default(),
            on_failure: on_failure.unwrap_or_default(),
            request_body: request_body.unwrap_or_default(),
            response_body: response_body.unwrap_or_default(),
            on_pause: on_pause.unwrap_or_default(),
            header_encoding: header_encoding.unwrap_or_default(),
            limits,
            config: config.value,
            position: at.name_position().clone(),
            wasm_position,
            places: config.places,
        })
    }
}

fn environment(cx: &mut Cx<'_>, at: &At<'_>) -> Option<BTreeMap<String, String>> {
    let mut variables = BTreeMap::new();
    for entry in mapping(cx, at)? {
        let inner = at.entry(entry);
        if entry.key.is_empty() || entry.key.contains(['=', '\0']) {
            cx.report(inner.fault(format!("`{}` is not the name of a variable", brief(&entry.key))));
        } else if let Some(value) = text(cx, &inner) {
            variables.insert(entry.key.clone(), value);
        }
    }
    Some(variables)
}

impl WasmSource {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let builtin: Vec<String> = cx.builtin_filters.iter().map(|name| format!("builtin:{name}")).collect();
        let builtin: Vec<&str> = builtin.iter().map(String::as_str).collect();
        parsed(cx, at, "`builtin:NAME` or `file:PATH`", |text| {
            if let Some(name) = text.strip_prefix("builtin:") {
                return match builtin.contains(&text) {
                    true => Ok(Self::Builtin(name.into())),
                    false => Err(("does not come with the node".into(), Some(suggest("modules", text, &builtin)))),
                };
            }
            match text.strip_prefix("file:") {
                Some("") => Err(("names no file".into(), None)),
                Some(path) => Ok(Self::File(beside(&at.node.position.file, Path::new(path)))),
                None => Err((
                    "does not say where the module is".into(),
                    Some(format!("write `file:{text}` or `builtin:NAME`")),
                )),
            }
        })
    }
}

impl BodyMode {
    fn read(cx: &mut Cx<'_>, at: &At<'_>, held_max: ByteSize) -> Option<Self> {
        if !matches!(at.node.data, Data::Map(_)) {
            return choice(cx, at, &[("stream", Self::Stream), ("buffer", Self::Buffer)]);
        }
        let mut fields = Fields::open(cx, at, "Peek")?;
        let peek = fields.need(cx, "peek", |cx, at| {
            let peek = size(cx, at)?;
            if peek > held_max {
                return cx.refuse(
                    at.fault(format!("more than the filter may hold back, which is {held_max} (`limits.body`)")),
                );
            }
            Some(peek)
        });
        fields.close(cx);
        peek.map(Self::Peek)
    }
}

impl FilterLimits {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let default = Self::default();
        let mut fields = Fields::open(cx, at, "FilterLimits")?;
        let memory = fields.read(cx, "memory", size);
        let cpu = fields.read(cx, "cpu", duration);
        let deadline = fields.read(cx, "deadline", duration);
        let callouts = fields.read(cx, "callouts", |cx, at| whole(cx, at, 1, u16::MAX));
        let callouts_per_second = fields.read(cx, "callouts_per_second", |cx, at| whole(cx, at, 0, u16::MAX));
        let body = fields.read(cx, "body", size);
        let wait = fields.read(cx, "wait", duration);
        fields.close(cx);
        Some(Self {
            memory: memory.unwrap_or(default.memory),
            cpu: cpu.unwrap_or(default.cpu),
            deadline: deadline.unwrap_or(default.deadline),
            callouts: callouts.unwrap_or(default.callouts),
            callouts_per_second: callouts_per_second.unwrap_or(default.callouts_per_second),
            body: body.unwrap_or(default.body),
            wait: wait.unwrap_or(default.wait),
        })
    }
}

impl FilterUse {
    /// Reads `name` or `name: settings`.
    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>, declared: &Declared) -> Option<Self> {
        if !matches!(at.node.data, Data::Map(_)) {
            let name = reference(cx, at, "filter", &names(declared))?;
            let filter = declared.get(&name)?.as_ref()?;
            cx.spend_copies(at, filter.places.len())?;
            let settings = Settings { value: filter.config.clone(), places: filter.places_below() };
            return Some(Self::new(name, settings, at.node.position.clone()));
        }

        let entries = mapping(cx, at)?;
        let [entry] = entries else {
            let fault = at.fault("one item of `filters` is one filter").with_help("write `- name: { .. }` for each");
            return cx.refuse(fault);
        };
        let inner = at.entry(entry);
        if !declared.contains_key(&entry.key) {
            return unknown_name(cx, &inner, &entry.key_position, "filter", &entry.key, &names(declared));
        }
        mapping(cx, &inner)?;
        let own = settings(cx, &inner)?;
        let filter = declared.get(&entry.key)?.as_ref()?;
        if !filter.config.is_object() {
            let message =
                format!("the `config` of `{}` is not a mapping, so that nothing can be merged over it", entry.key);
            let fault = Fault::at(&entry.key_position, message).with_key(inner.path);
            return cx.refuse(fault.with_related("declared here", filter.position_of("")));
        }
        cx.spend_copies(at, filter.places.len())?;
        Some(Self::new(entry.key.clone(), merge(filter, own), entry.key_position.clone()))
    }
}

impl Filter {
    /// The places of the values in its configuration, without that of the whole.
    fn places_below(&self) -> BTreeMap<String, Place> {
        let mut places = self.places.clone();
        places.remove("");
        places
    }
}

fn names(declared: &Declared) -> BTreeSet<&str> {
    declared.keys().map(String::as_str).collect()
}

/// The declared configuration with a use's settings over it: each top-level key is replaced as a whole.
fn merge(filter: &Filter, own: Settings) -> Settings {
    let mut places = filter.places_below();
    let mut value = filter.config.clone();
    if let (Some(merged), Value::Object(own)) = (value.as_object_mut(), own.value) {
        for (key, value) in own {
            let pointer = format!("/{}", key.replace('~', "~0").replace('/', "~1"));
            let below = format!("{pointer}/");
            places.retain(|place, _| *place != pointer && !place.starts_with(&below));
            merged.insert(key, value);
        }
    }
    places.extend(own.places.into_iter().filter(|(pointer, _)| !pointer.is_empty()));
    Settings { value, places }
}
