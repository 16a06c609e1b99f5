//! What a certificate says: about whom, by whom, how long. Read once, when it is loaded or first asked for.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Whom it is about (RFC 4514).
    pub subject: String,
    /// Who has issued it (RFC 4514).
    pub issuer: String,
    /// The DNS names of its subject, in lower case, as they stand in it.
    pub dns: Vec<String>,
    /// The URIs of its subject.
    pub uris: Vec<String>,
    /// The addresses of its subject.
    pub addresses: Vec<IpAddr>,
    /// From when on it is valid, in seconds since 1970.
    pub not_before: i64,
    /// The last second in which it is valid, in seconds since 1970.
    pub not_after: i64,
    /// Its number, in lower-case hexadecimal.
    pub serial: String,
    /// SHA-256 of the whole.
    pub fingerprint: [u8; 32],
    /// SHA-256 of its subject's public key, as a SubjectPublicKeyInfo (RFC 5280, 4.1.2.7).
    pub key_hash: [u8; 32],
}

impl Certificate {
    /// Reads one.
    ///
    /// # Errors
    /// It is not a certificate: why.
    pub fn of(der: &[u8]) -> Result<Self, String> {
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
        if !rest.is_empty() {
            return Err("more than a certificate".into());
        }
        let mut certificate = Self {
            subject: distinguished(parsed.subject()),
            issuer: distinguished(parsed.issuer()),
            dns: Vec::new(),
            uris: Vec::new(),
            addresses: Vec::new(),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            serial: serial(parsed.raw_serial()),
            fingerprint: Sha256::digest(der).into(),
            key_hash: Sha256::digest(parsed.public_key().raw).into(),
        };
        let names = parsed.subject_alternative_name().map_err(|error| error.to_string())?;
        for name in names.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::DNSName(name) => certificate.dns.push(name.to_ascii_lowercase()),
                GeneralName::URI(uri) => certificate.uris.push((*uri).to_owned()),
                GeneralName::IPAddress(bytes) => certificate.addresses.extend(address(bytes)),
                _ => {}
            }
        }
        Ok(certificate)
    }

    /// What it is called in logs and metrics: its first name.
    #[must_use]
    pub fn title(&self) -> &str {
        self.dns.first().map_or(&self.subject, String::as_str)
    }
}

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A number without the zero that DER puts before high bits.
fn serial(bytes: &[u8]) -> String {
    match bytes {
        [0, rest @ ..] if !rest.is_empty() => hex(rest),
        bytes => hex(bytes),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes)));
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes)))).ok()
}

/// A name as RFC 4514 writes it (and RFC 2253 did, which filters know from other hosts): the most special part first.
pub(super) fn distinguished(name: &X509Name<'_>) -> String {
    let mut text = String::new();
    let parts: Vec<_> = name.iter_rdn().collect();
    for (index, part) in parts.iter().rev().enumerate() {
        for (place, attribute) in part.iter().enumerate() {
            match (index, place) {
                (0, 0) => {}
                (_, 0) => text.push(','),
                _ => text.push('+'),
            }
            write_attribute(&mut text, attribute);
        }
    }
    text
}

/// The short names of RFC 4514, 3, and those that everybody writes besides.
const SHORT: [(&str, &str); 13] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

fn write_attribute(text: &mut String, attribute: &AttributeTypeAndValue<'_>) {
    let id = attribute.attr_type().to_id_string();
    let short = SHORT.iter().find(|(known, _)| *known == id).map(|(_, short)| *short);
    text.push_str(short.unwrap_or(&id));
    text.push('=');
    match attribute.as_str() {
        Ok(value) if short.is_some() => write_value(text, value),
        // RFC 4514, 2.4: what has no name or is no text is shown as it is encoded.
        _ => {
            let value = attribute.attr_value();
            text.push('#');
            text.push_str(&hex(value.header.raw_tag().unwrap_or_default()));
            text.push_str(&hex(&length(value.data.len())));
            text.push_str(&hex(value.data));
        }
    }
}

/// A length in DER (X.690, 10.1): itself if it is short, else how many bytes it takes and those.
fn length(length: usize) -> Vec<u8> {
    match u8::try_from(length) {
        Ok(short @ 0..=127) => vec![short],
        _ => {
            let bytes: Vec<u8> = length.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
            let count = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
            [&[0x80 | count], &bytes[..]].concat()
        }
    }
}

/// Escaped so that every byte is visible ASCII: no name can forge another one, or a line of a log.
fn write_value(text: &mut String, value: &str) {
    let last = value.len().saturating_sub(1);
    for (at, byte) in value.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => text.extend(['\\', char::from(byte)]),
            b'#' if at == 0 => text.push_str("\\#"),
            b' ' if at == 0 || at == last => text.push_str("\\ "),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => drop(write!(text, "\\{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair, PublicKeyData, SanType};

    #[test]
    fn a_certificate_is_read_as_it_was_made() {
        let mut params = CertificateParams::new(vec!["A.Example".into(), "*.b.example".into()]).unwrap();
        params.subject_alt_names.push(SanType::URI("spiffe://trust.test/a".try_into().unwrap()));
        params.subject_alt_names.push(SanType::IpAddress("2001:db8::1".parse().unwrap()));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CountryName, "DE");
        params.distinguished_name.push(DnType::OrganizationName, "M\u{fc}ller, \"Co\" ");
        params.distinguished_name.push(DnType::CommonName, "#a\nb");
        params.distinguished_name.push(DnType::CustomDnType(vec![1, 2, 3]), DnValue::Utf8String("ab".into()));
        params.serial_number = Some(rcgen::SerialNumber::from_slice(&[0xab, 0x01]));
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let key = KeyPair::generate().unwrap();
        let made = params.self_signed(&key).unwrap();

        let read = Certificate::of(made.der()).unwrap();
        assert_eq!(read.subject, "1.2.3=#0c026162,CN=\\#a\\0Ab,O=M\\C3\\BCller\\, \\\"Co\\\"\\ ,C=DE");
        assert_eq!(read.issuer, read.subject);
        assert_eq!(read.dns, ["a.example", "*.b.example"]);
        assert_eq!(read.uris, ["spiffe://trust.test/a"]);
        assert_eq!(read.addresses, ["2001:db8::1".parse::<IpAddr>().unwrap()]);
        assert_eq!((read.not_before, read.not_after), (1_577_836_800, 1_893_456_000));
        assert_eq!(read.serial, "ab01");
        assert_eq!(read.title(), "a.example");
        assert_eq!(read.fingerprint, <[u8; 32]>::from(Sha256::digest(made.der())));
        assert_eq!(read.key_hash, <[u8; 32]>::from(Sha256::digest(key.subject_public_key_info())));
    }

    #[test]
    fn a_value_without_a_name_is_shown_as_it_is_encoded() {
        for (bytes, expected) in
            [(0, "0c00"), (127, "0c7f"), (128, "0c8180"), (300, "0c82012c"), (70_000, "0c83011170")]
        {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.distinguished_name = rcgen::DistinguishedName::new();
            let value = DnValue::Utf8String("a".repeat(bytes));
            params.distinguished_name.push(DnType::CustomDnType(vec![1, 2, 3]), value);
            let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            let subject = Certificate::of(made.der()).unwrap().subject;
            assert_eq!(subject, format!("1.2.3=#{expected}{}", "61".repeat(bytes)));
        }
    }

    proptest::proptest! {
        /// Whoever sends it has nothing to gain: it is read, or refused.
        #[test]
        fn a_damaged_certificate_does_no_harm(
            changes in proptest::collection::vec((proptest::prelude::any::<usize>(), proptest::prelude::any::<u8>()), 0..8),
            cut in proptest::prelude::any::<usize>(),
        ) {
            static WHOLE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
            let whole = WHOLE.get_or_init(|| {
                let names = vec!["a.test".to_owned(), "192.0.2.1".to_owned()];
                let made = CertificateParams::new(names).unwrap().self_signed(&KeyPair::generate().unwrap()).unwrap();
                made.der().to_vec()
            });
            let mut der = whole.clone();
            for (place, byte) in changes {
                let place = place % der.len();
                der[place] = byte;
            }
            // One in two is cut.
            der.truncate(cut % (2 * der.len()));
            if let Ok(read) = Certificate::of(&der) {
                proptest::prop_assert!(read.subject.bytes().all(|byte| matches!(byte, b' '..=b'~')));
            }
        }
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        let made = CertificateParams::new(Vec::new()).unwrap().self_signed(&KeyPair::generate().unwrap()).unwrap();
        let der = made.der().to_vec();
        for broken in [&der[..der.len() - 1], &[&der[..], b"x"].concat(), b"", b"\x30\x00"] {
            assert!(Certificate::of(broken).is_err());
        }
    }
}
