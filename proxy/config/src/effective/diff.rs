//! How two effective configurations differ.
//!
//! What has a name is compared by it, wherever it stands: sites by their hosts, routes and filters by their names, endpoints by their addresses.
//! Other lists are compared as a whole.

use std::collections::{HashMap, HashSet};

use super::Effective;

/// One difference.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The path of the key, such as `sites[a.test].routes[home].match.path`.
    pub key: String,
    /// What there is, and what there will be.
    pub change: Change,
}

/// What becomes of a value.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// It was not there.
    Added(Effective),
    /// It is there no more.
    Removed(Effective),
    /// It is another.
    Changed(Effective, Effective),
    /// The members of a list, by name, stand in another order.
    Order(Vec<String>, Vec<String>),
}

impl Effective {
    /// What is different in `new`, in the order of the keys there; what is gone comes last in each mapping.
    #[must_use]
    pub fn differences(&self, new: &Self) -> Vec<Difference> {
        let mut found = Vec::new();
        compare("", self, new, &mut found);
        found
    }
}

fn compare(key: &str, old: &Effective, new: &Effective, found: &mut Vec<Difference>) {
    match (old, new) {
        (Effective::Map(before), Effective::Map(after)) => {
            let at = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
            members(before, after, at, found);
        }
        (Effective::List(before), Effective::List(after)) => match (named(key, before), named(key, after)) {
            (Some(before), Some(after)) => {
                members(&before, &after, |name| format!("{key}[{name}]"), found);
                order(key, &before, &after, found);
            }
            _ if old != new => found.push(changed(key, old, new)),
            _ => {}
        },
        _ if old != new => found.push(changed(key, old, new)),
        _ => {}
    }
}

fn changed(key: &str, old: &Effective, new: &Effective) -> Difference {
    Difference { key: key.to_owned(), change: Change::Changed(old.clone(), new.clone()) }
}

fn members(
    before: &[(String, Effective)],
    after: &[(String, Effective)],
    at: impl Fn(&str) -> String,
    found: &mut Vec<Difference>,
) {
    let by_name = |all: &'_ [(String, Effective)]| -> HashMap<String, usize> {
        all.iter().enumerate().map(|(place, (name, _))| (name.clone(), place)).collect()
    };
    let (places, kept) = (by_name(before), by_name(after));
    for (name, new) in after {
        match places.get(name) {
            Some(place) => compare(&at(name), &before[*place].1, new, found),
            None => found.push(Difference { key: at(name), change: Change::Added(new.clone()) }),
        }
    }
    for (name, old) in before.iter().filter(|(name, _)| !kept.contains_key(name)) {
        found.push(Difference { key: at(name), change: Change::Removed(old.clone()) });
    }
}

/// Whether those that are in both stand in another order. Of sites and endpoints nobody minds it.
fn order(key: &str, before: &[(String, Effective)], after: &[(String, Effective)], found: &mut Vec<Difference>) {
    if !(key.ends_with("filters") || key.ends_with("routes")) {
        return;
    }
    let both = |all: &[(String, Effective)], other: &[(String, Effective)]| -> Vec<String> {
        let other: HashSet<&str> = other.iter().map(|(name, _)| name.as_str()).collect();
        all.iter().map(|(name, _)| name).filter(|name| other.contains(name.as_str())).cloned().collect()
    };
    let (old, new) = (both(before, after), both(after, before));
    if old != new {
        found.push(Difference { key: key.to_owned(), change: Change::Order(old, new) });
    }
}

/// The members of a list by their names; `None` = they have none, or one that is not theirs alone.
fn named(key: &str, items: &[Effective]) -> Option<Vec<(String, Effective)>> {
    let list = key.rsplit('.').next().unwrap_or_default();
    let name = |(index, item): (usize, &Effective)| -> Option<String> {
        match list {
            "sites" => match item.get("hosts")? {
                Effective::List(hosts) => hosts.first().map(Effective::brief),
                _ => None,
            },
            "routes" => Some(item.get("name").map_or_else(|| format!("routes[{index}]"), Effective::brief)),
            "endpoints" => Some(item.get("addr").unwrap_or(item).brief()),
            "filters" | "origin_filters" => match item {
                Effective::Map(entries) => entries.first().map(|(name, _)| name.clone()),
                name => Some(name.brief()),
            },
            _ => None,
        }
    };
    let mut all: Vec<(String, Effective)> = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let name = name((index, item))?;
        all.push((name, item.clone()));
    }
    let mut names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    let unique = names.windows(2).all(|pair| pair[0] != pair[1]);
    unique.then_some(all)
}

#[cfg(test)]
mod tests {
    use crate::Loader;

    use super::*;

    const BEFORE: &str = "version: 1
listeners: { web: { bind: 127.0.0.1:80 } }
upstreams:
  a: { endpoints: [10.0.0.1:80, { addr: 10.0.0.2:80, weight: 2 }] }
  b: { endpoints: [10.0.0.1:80] }
filters: { f: { wasm: file:f, config: { secret: one-secret-0, rate: 1 } }, g: { wasm: file:g } }
sites:
- hosts: [a.test]
  routes:
  - { name: x, match: { path: /x, method: [GET] }, filters: [f, g], to: a }
  - { name: y, to: a }
- { hosts: [b.test], routes: [{ to: b }] }
";

    fn differences(new: &str) -> Vec<String> {
        let load = |text: &str| {
            Loader::new().load_str("a.yaml", text).unwrap_or_else(|report| panic!("{report}\\n{text}")).effective()
        };
        let line = |difference: &Difference| match &difference.change {
            Change::Added(new) => format!("+ {} {}", difference.key, new.brief()),
            Change::Removed(old) => format!("- {} {}", difference.key, old.brief()),
            Change::Changed(old, new) => format!("{} {} -> {}", difference.key, old.brief(), new.brief()),
            Change::Order(old, new) => format!("{} {old:?} -> {new:?}", difference.key),
        };
        load(BEFORE).differences(&load(new)).iter().map(line).collect()
    }

    #[test]
    fn what_is_named_is_compared_by_its_name() {
        assert_eq!(differences(BEFORE), Vec::<String>::new());
        let cases: &[(&str, &str, &[&str])] = &[
            ("127.0.0.1:80 }", "127.0.0.1:81 }", &["listeners.web.bind 127.0.0.1:80 -> 127.0.0.1:81"]),
            (
                "127.0.0.1:80 }",
                "127.0.0.1:80, limits: { connections: 7 } }",
                &["listeners.web.limits.connections 50000 -> 7"],
            ),
            ("weight: 2", "weight: 3", &["upstreams.a.endpoints[10.0.0.2:80].weight 2 -> 3"]),
            (
                "endpoints: [10.0.0.1:80] }",
                "endpoints: [10.0.0.9:80] }",
                &[
                    "+ upstreams.b.endpoints[10.0.0.9:80] 10.0.0.9:80",
                    "- upstreams.b.endpoints[10.0.0.1:80] 10.0.0.1:80",
                ],
            ),
            ("rate: 1", "rate: 2", &["filters.f.config.rate 1 -> 2"]),
            ("one-secret-0", "two-secret-0", &["filters.f.config.secret <redacted> -> <redacted>"]),
            (
                "method: [GET]",
                "method: [GET, PUT]",
                &[r#"sites[a.test].routes[x].match.method ["GET"] -> ["GET","PUT"]"#],
            ),
            ("[f, g]", "[g, f]", &[r#"sites[a.test].routes[x].filters ["f", "g"] -> ["g", "f"]"#]),
            (
                "[f, g]",
                "[f: { rate: 2 }, g]",
                &[r#"sites[a.test].routes[x].filters[f] f -> {"f":{"rate":2,"secret":"<redacted>"}}"#],
            ),
            (
                "name: y,",
                "name: y, origin_filters: [f: { secret: two-secret-0 }],",
                &[r#"+ sites[a.test].routes[y].origin_filters [{"f":{"rate":1,"secret":"<redacted>"}}]"#],
            ),
            (
                "name: y",
                "name: z",
                &[
                    r#"+ sites[a.test].routes[z] {"grpc_web":false,"match":{"path":"/*"},"name":"z","to":"a"}"#,
                    r#"- sites[a.test].routes[y] {"grpc_web":false,"match":{"path":"/*"},"name":"y","to":"a"}"#,
                ],
            ),
            ("[{ to: b }]", "[{ to: a }]", &["sites[b.test].routes[routes[0]].to b -> a"]),
        ];
        for (old, new, expected) in cases {
            let text = BEFORE.replace(old, new);
            assert_ne!(text, BEFORE, "{old}");
            assert_eq!(differences(&text), *expected, "{old} -> {new}");
        }
    }

    #[test]
    fn the_order_of_sites_and_a_default_that_is_written_are_no_difference() {
        let (head, sites) = BEFORE.split_once("sites:\n").unwrap();
        let (a, b) = sites.split_once("- { hosts: [b.test]").unwrap();
        assert_eq!(differences(&format!("{head}sites:\n- {{ hosts: [b.test]{b}{a}")), Vec::<String>::new());
        assert_eq!(differences(&BEFORE.replace("name: y,", "name: y, match: { path: \"/*\" },")), Vec::<String>::new());
        let like = BEFORE.replace("b: { endpoints: [10.0.0.1:80] }", "b: { endpoints: [10.0.0.1:80], like: a }");
        assert_eq!(differences(&like), Vec::<String>::new());
    }
}
