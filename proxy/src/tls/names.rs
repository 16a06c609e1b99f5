//! Which certificate is for a name: looked up in tables that are made when certificates are loaded, so that a handshake parses none.

use std::borrow::Cow;
use std::collections::HashMap;

use smallvec::SmallVec;

use super::Loaded;

/// The certificates for one name, in the order they are written: one for each kind of key.
type Places = SmallVec<[usize; 2]>;

/// From names to places in the list of certificates.
#[derive(Debug, Default)]
pub(super) struct Names {
    exact: HashMap<String, Places>,
    /// `*.example.com` stands here as `example.com`.
    wildcard: HashMap<String, Places>,
}

/// A name that two certificates with the same kind of key are for: the later one is not shown for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Overlap {
    pub(super) name: String,
    pub(super) shown: usize,
    pub(super) hidden: usize,
}

impl Names {
    /// Of these certificates; and what is hidden by others.
    pub(super) fn of(certificates: &[Loaded]) -> (Self, Vec<Overlap>) {
        let mut names = Self::default();
        let mut overlaps = Vec::new();
        let kind = |place: usize| certificates.get(place).map(|loaded| loaded.key.key.algorithm());
        for (place, loaded) in certificates.iter().enumerate() {
            for name in &loaded.facts.dns {
                // A wildcard is a whole first label (RFC 9525, 6.3); a `*` anywhere else means nothing.
                let (table, key) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut names.wildcard, parent),
                    None => (&mut names.exact, name.as_str()),
                };
                if key.is_empty() || key.contains('*') {
                    continue;
                }
                let places = table.entry(key.to_owned()).or_default();
                match places.iter().find(|earlier| kind(**earlier) == kind(place)) {
                    None => places.push(place),
                    Some(earlier) if *earlier == place => {} // it names it twice
                    Some(earlier) => overlaps.push(Overlap { name: name.clone(), shown: *earlier, hidden: place }),
                }
            }
        }
        (names, overlaps)
    }

    /// The certificates that name exactly this, wildcard or not.
    pub(super) fn written(&self, name: &str) -> Option<&[usize]> {
        let places = match name.strip_prefix("*.") {
            Some(parent) => self.wildcard.get(parent),
            None => self.exact.get(name),
        };
        places.map(|places| &places[..])
    }

    /// The certificates for a name, in whatever case it is written; an exact name goes before a wildcard.
    pub(super) fn find(&self, name: &str) -> Option<&[usize]> {
        let name = name.strip_suffix('.').unwrap_or(name);
        let name = match name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => Cow::Owned(name.to_ascii_lowercase()),
            false => Cow::Borrowed(name),
        };
        if let Some(places) = self.exact.get(&*name) {
            return Some(places);
        }
        let (label, parent) = name.split_once('.')?;
        if label.is_empty() { None } else { self.wildcard.get(parent).map(|places| &places[..]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::tests::loaded;

    fn index(certificates: &[(&[&str], &'static rcgen::SignatureAlgorithm)]) -> (Names, Vec<Overlap>) {
        let all: Vec<Loaded> = certificates.iter().map(|(names, kind)| loaded(names, kind)).collect();
        Names::of(&all)
    }

    const EC: &rcgen::SignatureAlgorithm = &rcgen::PKCS_ECDSA_P256_SHA256;
    const ED: &rcgen::SignatureAlgorithm = &rcgen::PKCS_ED25519;

    #[test]
    fn exact_names_go_before_wildcards_which_cover_one_label() {
        let (names, overlaps) =
            index(&[(&["*.a.test", "a.test"], EC), (&["www.a.test", "B.Test"], EC), (&["*.deep.a.test"], EC)]);
        assert_eq!(overlaps, []);
        for (name, expected) in [
            ("a.test", Some(0)),
            ("other.a.test", Some(0)),
            ("OTHER.A.test", Some(0)),
            ("www.a.test", Some(1)),
            ("WWW.a.TEST.", Some(1)),
            ("b.test", Some(1)),
            ("x.deep.a.test", Some(2)),
            ("deep.a.test", Some(0)),
            ("y.x.deep.a.test", None),
            ("x.y.a.test", None),
            ("x.b.test", None),
            (".a.test", None),
            ("*.a.test", Some(0)), // a label like any other
            ("test", None),
            ("", None),
        ] {
            assert_eq!(names.find(name).map(|places| places[0]), expected, "{name}");
        }
    }

    #[test]
    fn the_first_of_a_kind_is_shown_and_others_are_told_of() {
        let (names, overlaps) = index(&[(&["a.test"], EC), (&["a.test"], ED), (&["a.test", "a.test", "b.test"], EC)]);
        assert_eq!(names.find("a.test"), Some(&[0, 1][..]), "one of each kind");
        assert_eq!(names.find("b.test"), Some(&[2][..]));
        let told = Overlap { name: "a.test".into(), shown: 0, hidden: 2 };
        assert_eq!(overlaps, [told.clone(), told]);
    }

    /// What clients make of names is what webpki makes of them. (It takes no `*.test`, which some clients take.)
    #[test]
    fn a_certificate_is_found_for_a_name_exactly_if_clients_take_it_for_that_name() {
        use rustls::pki_types::ServerName;
        let patterns = ["a.test", "*.a.test", "*.b.a.test", "x.a.test", "w*.a.test", "x.*.test"];
        let asked = ["a.test", "x.a.test", "y.a.test", "x.b.a.test", "b.a.test", "wx.a.test", "x.y.test", "test.test"];
        for pattern in patterns {
            let all = [loaded(&[pattern], EC)];
            let (names, _) = Names::of(&all);
            let certificate = webpki::EndEntityCert::try_from(&all[0].key.cert[0]).unwrap();
            for name in asked {
                let server = ServerName::try_from(name).unwrap();
                let taken = certificate.verify_is_valid_for_subject_name(&server).is_ok();
                assert_eq!(names.find(name).is_some(), taken, "{pattern} for {name}");
            }
        }
    }
}
