//! Does what the script says.
//!
//! The first line of a script is `case NAME`, every other one a step:
//!
//! ```text
//! LINE CALLBACK NTH EOS CALL ARGUMENT...
//! ```
//!
//! `NTH` is the how-manieth run of that callback for this filter (0 = each), `EOS` is `1`, `0` or `-` (either). Arguments:
//!
//! | argument | pushes |
//! |---|---|
//! | `-5` | the number |
//! | `xHEX` | pointer and length of these bytes |
//! | `pHEX` | the pointer alone |
//! | `rCOUNT:HEX` | pointer and length of these bytes, so many times |
//! | `e-5` | the end of linear memory, minus 5 |
//! | `>b`, `>4`, `>8` | pointers to a returned pointer and size, to 4 bytes, to 8 bytes; `>b=name` keeps the value |
//! | `%name` | a kept value: a number, or pointer and length |
//!
//! Besides hostcalls there are `return N`, `set name ARGUMENT`, `same ARGUMENT ARGUMENT`, `show ARGUMENT`, `arg N` (of the callback),
//! `context` (this callback's), `allocator good|null|outside` and `trap`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::rc::Rc;

use crate::calls::common;

/// Makes a hostcall; `None` when there is none of this name with so many arguments.
pub(crate) type Call = fn(&str, &[i64]) -> Option<i32>;

/// What an out parameter holds until a host writes to it.
const UNTOUCHED: u32 = 0xa5a5_a5a5;

/// So many bytes of a value are written down.
const SHOWN: usize = 1500;

const VM_CONFIGURATION: i64 = 6;
const PLUGIN_CONFIGURATION: i64 = 7;

thread_local! {
    static PROBE: RefCell<Probe> = RefCell::default();
    static ALLOCATOR: Cell<Allocator> = const { Cell::new(Allocator::Good) };
}

/// What the guest's allocator answers.
#[derive(Clone, Copy)]
enum Allocator {
    Good,
    Null,
    /// A pointer whose memory would end outside.
    Outside,
}

#[derive(Default)]
struct Probe {
    /// Tells VMs apart: when this one was started, in nanoseconds.
    vm: u64,
    /// How many callbacks are running: more than one is a fault of the host.
    depth: u32,
    roots: BTreeMap<u32, Root>,
    /// The root of every stream.
    parents: BTreeMap<u32, u32>,
    kept: BTreeMap<String, Value>,
}

/// A filter: its script, and how often each of its callbacks has run.
#[derive(Default)]
struct Root {
    case: Option<String>,
    steps: Rc<[Step]>,
    runs: BTreeMap<&'static str, u32>,
    /// What happened before the script could be read.
    early: Vec<String>,
}

struct Step {
    line: String,
    callback: String,
    nth: u32,
    end: Option<bool>,
    call: String,
    arguments: Vec<Argument>,
}

enum Argument {
    Number(i64),
    Bytes(Vec<u8>),
    Pointer(Vec<u8>),
    MemoryEnd(i64),
    Out(Out, Option<String>),
    Kept(String),
    Word(String),
}

#[derive(Clone, Copy)]
enum Out {
    Bytes,
    U32,
    U64,
}

#[derive(Clone, PartialEq)]
enum Value {
    Number(i64),
    Bytes(Vec<u8>),
}

/// The guest's allocator. What it hands out is never freed: a probe lives for a few calls.
pub(crate) fn allocate(size: u32) -> u32 {
    match ALLOCATOR.get() {
        Allocator::Good => Vec::<u8>::with_capacity(size as usize).leak().as_mut_ptr() as u32,
        Allocator::Null => 0,
        Allocator::Outside => memory_end() as u32 - 1,
    }
}

/// Runs the steps of one callback, and answers what they say it answers.
pub(crate) fn run(call: Call, callback: &'static str, context: u32, arguments: &[u32], default: u32) -> u32 {
    let root = enter(callback, context, arguments);
    load(root, callback);

    let (steps, nth, nested) = PROBE.with_borrow_mut(|probe| {
        probe.depth += 1;
        let nested = probe.depth > 1;
        let root = probe.roots.entry(root).or_default();
        let nth = root.runs.entry(callback).or_default();
        *nth += 1;
        (Rc::clone(&root.steps), *nth, nested)
    });
    let mut entry = format!("+ {context} {callback}");
    for argument in arguments {
        let _ = write!(entry, " {argument}");
    }
    if nested {
        entry.push_str(" nested");
    }
    record(root, entry);

    let mut answer = default;
    for step in steps.iter().filter(|step| step.applies(callback, nth, arguments)) {
        if step.call == "return" {
            answer = step.number(0) as u32;
            continue;
        }
        let result = perform(call, step, context, arguments);
        if !result.is_empty() {
            record(root, format!("= {context} {} {result}", step.line));
        }
    }
    PROBE.with_borrow_mut(|probe| probe.depth -= 1);
    answer
}

/// Finds the root of a context, and remembers new contexts.
fn enter(callback: &str, context: u32, arguments: &[u32]) -> u32 {
    let (mut now, slot) = (0, Slot::new(Out::U64));
    if common("get_current_time_nanoseconds", &slot.words()) == Some(0) {
        now = slot.u64();
    }
    PROBE.with_borrow_mut(|probe| {
        if probe.vm == 0 {
            probe.vm = now.max(1);
        }
        if callback == "context_create" {
            match arguments {
                [0] => drop(probe.roots.insert(context, Root::default())),
                [parent] => drop(probe.parents.insert(context, *parent)),
                _ => {}
            }
        }
        probe.parents.get(&context).copied().unwrap_or(context)
    })
}

/// Reads the script as soon as some configuration can be read, and again when the plugin is configured.
fn load(root: u32, callback: &str) {
    let known = PROBE.with_borrow(|probe| probe.roots.get(&root).is_some_and(|root| root.case.is_some()));
    if known && callback != "configure" {
        return;
    }
    let Some(text) = configuration(PLUGIN_CONFIGURATION).or_else(|| configuration(VM_CONFIGURATION)) else { return };
    let mut lines = text.lines();
    let Some(case) = lines.next().and_then(|line| line.strip_prefix("case ")) else { return };
    let steps = lines.filter_map(Step::parse).collect();
    let early = PROBE.with_borrow_mut(|probe| {
        let root = probe.roots.entry(root).or_default();
        (root.case, root.steps) = (Some(case.to_owned()), steps);
        std::mem::take(&mut root.early)
    });
    early.into_iter().for_each(|line| record(root, line));
}

fn configuration(buffer: i64) -> Option<String> {
    let slot = Slot::new(Out::Bytes);
    let words = [&[buffer, 0, 1 << 20], slot.words().as_slice()].concat();
    let status = common("get_buffer_bytes", &words);
    let text = slot.bytes().filter(|bytes| status == Some(0) && !bytes.is_empty())?;
    String::from_utf8(text).ok()
}

/// Writes one line to the filter's log.
fn record(root: u32, line: String) {
    let line = PROBE.with_borrow_mut(|probe| {
        let vm = probe.vm;
        let root = probe.roots.entry(root).or_default();
        match &root.case {
            Some(case) => Some(format!("@@ {case} {vm} {line} @@")),
            None => {
                root.early.push(line);
                None
            }
        }
    });
    if let Some(line) = line {
        let _ = common("log", &[2, line.as_ptr() as i64, line.len() as i64]);
    }
}

fn perform(call: Call, step: &Step, context: u32, arguments: &[u32]) -> String {
    match step.call.as_str() {
        "set" => {
            if let (Some(Argument::Word(name)), Some(value)) = (step.arguments.first(), step.arguments.get(1)) {
                keep(name, value.value());
            }
            String::new()
        }
        "context" => {
            if let Some(Argument::Word(name)) = step.arguments.first() {
                keep(name, Value::Number(context.into()));
            }
            String::new()
        }
        "same" => {
            let values: Vec<Value> = step.arguments.iter().map(Argument::value).collect();
            format!("{}", values.len() == 2 && values[0] == values[1])
        }
        "show" => step.arguments.first().map_or_else(|| "script-error".into(), |argument| show(&argument.value())),
        "arg" => arguments.get(step.number(0) as usize).map_or_else(|| "none".into(), |value| format!("i{value}")),
        "allocator" => {
            ALLOCATOR.set(match step.arguments.first() {
                Some(Argument::Word(word)) if word == "null" => Allocator::Null,
                Some(Argument::Word(word)) if word == "outside" => Allocator::Outside,
                _ => Allocator::Good,
            });
            String::new()
        }
        "trap" => core::arch::wasm32::unreachable(),
        name => hostcall(call, name, step),
    }
}

fn hostcall(call: Call, name: &str, step: &Step) -> String {
    let mut words = Vec::new();
    let mut slots = Vec::new();
    let mut values = Vec::new(); // keeps what the words point to
    for argument in &step.arguments {
        match argument {
            Argument::Out(out, keep) => {
                let slot = Slot::new(*out);
                words.extend(slot.words());
                slots.push((slot, keep));
            }
            Argument::Pointer(bytes) => words.push(bytes.as_ptr() as i64),
            other => match other.value() {
                Value::Number(number) => words.push(number),
                Value::Bytes(bytes) => {
                    words.extend([bytes.as_ptr() as i64, bytes.len() as i64]);
                    values.push(bytes);
                }
            },
        }
    }
    let Some(status) = call(name, &words) else { return "script-error".into() };
    drop(values);

    let mut line = status.to_string();
    for (slot, name) in slots {
        let _ = write!(line, " {}", slot.show());
        if let Some(name) = name {
            keep(name, slot.value());
        }
    }
    line
}

fn keep(name: &str, value: Value) {
    PROBE.with_borrow_mut(|probe| drop(probe.kept.insert(name.to_owned(), value)));
}

fn show(value: &Value) -> String {
    match value {
        Value::Number(number) => format!("i{number}"),
        Value::Bytes(bytes) if bytes.is_empty() => "e".into(),
        Value::Bytes(bytes) => {
            let mut text = format!("b{}:", bytes.len());
            for byte in bytes.iter().take(SHOWN) {
                let _ = write!(text, "{byte:02x}");
            }
            text
        }
    }
}

fn memory_end() -> usize {
    core::arch::wasm32::memory_size::<0>() << 16
}

impl Step {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let mut next = || words.next();
        let (line, callback, nth, end, call) = (next()?, next()?, next()?, next()?, next()?);
        Some(Self {
            line: line.into(),
            callback: callback.into(),
            nth: nth.parse().ok()?,
            end: (end != "-").then_some(end == "1"),
            call: call.into(),
            arguments: words.map(Argument::parse).collect(),
        })
    }

    fn applies(&self, callback: &str, nth: u32, arguments: &[u32]) -> bool {
        self.callback == callback
            && (self.nth == 0 || self.nth == nth)
            && self.end.is_none_or(|end| arguments.get(1).is_some_and(|given| (*given != 0) == end))
    }

    fn number(&self, index: usize) -> i64 {
        match self.arguments.get(index).map(Argument::value) {
            Some(Value::Number(number)) => number,
            _ => 0,
        }
    }
}

impl Argument {
    fn parse(word: &str) -> Self {
        let named = |rest: &str| rest.strip_prefix('=').map(String::from);
        let out = |rest: &str| {
            let kind = match rest.chars().next()? {
                'b' => Out::Bytes,
                '4' => Out::U32,
                '8' => Out::U64,
                _ => return None,
            };
            Some(Self::Out(kind, named(&rest[1..])))
        };
        let special = match word.split_at_checked(1) {
            Some((">", rest)) => out(rest),
            Some(("%", rest)) => Some(Self::Kept(rest.into())),
            Some(("x", rest)) => unhex(rest).map(Self::Bytes),
            Some(("p", rest)) => unhex(rest).map(Self::Pointer),
            Some(("r", rest)) => rest
                .split_once(':')
                .and_then(|(count, bytes)| Some(Self::Bytes(unhex(bytes)?.repeat(count.parse().ok()?)))),
            Some(("e", rest)) => rest.parse().ok().map(Self::MemoryEnd),
            _ => None,
        };
        let number = || word.parse().ok().map(Self::Number);
        special.or_else(number).unwrap_or_else(|| Self::Word(word.into()))
    }

    fn value(&self) -> Value {
        match self {
            Self::Number(number) => Value::Number(*number),
            Self::Bytes(bytes) | Self::Pointer(bytes) => Value::Bytes(bytes.clone()),
            Self::MemoryEnd(offset) => Value::Number(memory_end() as i64 + offset),
            Self::Kept(name) => PROBE.with_borrow(|probe| probe.kept.get(name).cloned()).unwrap_or(Value::Number(-1)),
            Self::Out(..) | Self::Word(_) => Value::Number(0),
        }
    }
}

/// A place for what a host returns.
struct Slot {
    out: Out,
    place: Box<[Cell<u32>; 2]>,
}

impl Slot {
    fn new(out: Out) -> Self {
        Self { out, place: Box::new([Cell::new(UNTOUCHED), Cell::new(UNTOUCHED)]) }
    }

    /// The pointers a hostcall gets.
    fn words(&self) -> Vec<i64> {
        let first = self.place.as_ptr() as i64;
        match self.out {
            Out::Bytes => vec![first, first + 4],
            Out::U32 | Out::U64 => vec![first],
        }
    }

    fn read(&self) -> [u32; 2] {
        [self.place[0].get(), self.place[1].get()]
    }

    fn u64(&self) -> u64 {
        let [low, high] = self.read();
        u64::from(low) | u64::from(high) << 32
    }

    /// The returned bytes, when they lie in memory.
    fn bytes(&self) -> Option<Vec<u8>> {
        let [pointer, len] = self.read();
        let end = (pointer as usize).checked_add(len as usize)?;
        if pointer == UNTOUCHED || end > memory_end() {
            return None;
        }
        if pointer == 0 || len == 0 {
            return Some(Vec::new());
        }
        let mut bytes = vec![0; len as usize];
        // SAFETY: it lies within linear memory, and what is read is plain bytes.
        unsafe { std::ptr::copy_nonoverlapping(pointer as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Some(bytes)
    }

    fn value(&self) -> Value {
        match self.out {
            Out::Bytes => Value::Bytes(self.bytes().unwrap_or_default()),
            Out::U32 => Value::Number(self.read()[0].into()),
            Out::U64 => Value::Number(self.u64() as i64),
        }
    }

    /// `u` untouched, `n` null and no size, `!` outside of memory, otherwise the value.
    fn show(&self) -> String {
        let [first, second] = self.read();
        match self.out {
            _ if first == UNTOUCHED && second == UNTOUCHED => "u".into(),
            Out::Bytes if first == 0 && second == 0 => "n".into(),
            Out::Bytes => self.bytes().map_or_else(|| format!("!{first}:{second}"), |bytes| show(&Value::Bytes(bytes))),
            Out::U32 | Out::U64 => show(&self.value()),
        }
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}
