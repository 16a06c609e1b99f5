//! Public keys in PEM (RFC 7468).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::DecodingKey;
use pkcs1::RsaPublicKey;
use spki::der::Decode as _;
use spki::{ObjectIdentifier, SubjectPublicKeyInfoRef};

use super::{p256_key, rsa_key};
use crate::algorithm::Algorithm;

/// rsaEncryption (RFC 8017, C).
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// id-ecPublicKey (RFC 5480, 2.1.1).
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
/// secp256r1 (RFC 5480, 2.1.1.1).
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");

/// Reads the one key in this text.
pub(super) fn read(text: &str) -> Result<(Algorithm, DecodingKey), String> {
    let (label, der) = armour(text)?;
    match label {
        "PUBLIC KEY" => {
            let info = SubjectPublicKeyInfoRef::from_der(&der).map_err(|_| "the PEM holds no public key")?;
            let bits = info.subject_public_key.as_bytes().ok_or("the PEM holds no public key")?;
            match info.algorithm.oid {
                RSA => rsa(bits),
                EC if info.algorithm.parameters_oid() == Ok(P256) => ec(bits),
                EC => Err("the PEM's key is on another curve than P-256".into()),
                other => Err(format!("the PEM's key is of a type ({other}) that is not supported: RSA and P-256 are")),
            }
        }
        "RSA PUBLIC KEY" => rsa(&der),
        // Whoever has the private key can make tokens: it has no place in a proxy.
        label if label.ends_with("PRIVATE KEY") => Err("the PEM holds a private key: give the public one".into()),
        "CERTIFICATE" => {
            Err("the PEM holds a certificate: take out its key (`openssl x509 -pubkey -noout -in FILE`)".into())
        }
        other => Err(format!("the PEM holds {other:?}, not a PUBLIC KEY")),
    }
}

/// The label and what is in the armour; exactly one.
fn armour(text: &str) -> Result<(&str, Vec<u8>), String> {
    const NONE: &str = "not a public key in PEM (`-----BEGIN PUBLIC KEY-----`)";
    let (label, rest) =
        text.trim().strip_prefix("-----BEGIN ").and_then(|rest| rest.split_once("-----")).ok_or(NONE)?;
    let (body, behind) = rest.split_once(&format!("-----END {label}-----")).ok_or("the PEM has no end")?;
    if !behind.trim().is_empty() {
        return Err("something stands behind the PEM's key: give one key".into());
    }
    let body: String = body.split_ascii_whitespace().collect();
    let der = STANDARD.decode(body).map_err(|_| "the PEM is not base64")?;
    Ok((label, der))
}

fn rsa(der: &[u8]) -> Result<(Algorithm, DecodingKey), String> {
    let key = RsaPublicKey::from_der(der).map_err(|_| "the PEM holds no RSA public key")?;
    let key = rsa_key(key.modulus.as_bytes(), key.public_exponent.as_bytes())
        .map_err(|fault| format!("the PEM's key: {fault}"))?;
    Ok((Algorithm::RS256, key))
}

fn ec(point: &[u8]) -> Result<(Algorithm, DecodingKey), String> {
    // SEC 1, 2.3.3: uncompressed.
    let [4, rest @ ..] = point else { return Err("the PEM's point is compressed: write it uncompressed".into()) };
    let (x, y) = rest.split_at(rest.len() / 2);
    let key = p256_key(x, y).map_err(|fault| format!("the PEM's key: {fault}"))?;
    Ok((Algorithm::ES256, key))
}

#[cfg(test)]
mod tests {
    use p256::pkcs8::EncodePublicKey as _;
    use rsa::pkcs1::EncodeRsaPublicKey as _;
    use serde_json::Value;

    use super::*;
    use crate::keys::{KeySet, SignatureError};
    use crate::mint;

    fn number(jwk: &Value, name: &str) -> Vec<u8> {
        base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap()
    }

    fn rsa_public() -> rsa::RsaPublicKey {
        let part = |name| rsa::BigUint::from_bytes_be(&number(&mint::rsa_jwk(), name));
        rsa::RsaPublicKey::new(part("n"), part("e")).unwrap()
    }

    fn ec_public() -> p256::PublicKey {
        let jwk = mint::ec_jwk();
        p256::PublicKey::from_sec1_bytes(&[vec![4], number(&jwk, "x"), number(&jwk, "y")].concat()).unwrap()
    }

    /// As other tools write them.
    #[test]
    fn keys_in_pem_verify() {
        use p256::pkcs8::LineEnding::{CRLF, LF};
        for (pem, algorithm) in [
            (rsa_public().to_public_key_pem(LF).unwrap(), Algorithm::RS256),
            (rsa_public().to_public_key_pem(CRLF).unwrap(), Algorithm::RS256),
            (rsa_public().to_pkcs1_pem(LF).unwrap(), Algorithm::RS256),
            (ec_public().to_public_key_pem(LF).unwrap(), Algorithm::ES256),
        ] {
            let keys = KeySet::from_pem(&format!("\n{pem}\n")).unwrap();
            let signature = mint::sign(algorithm, b"input");
            assert_eq!(keys.verify(Some("any"), algorithm, b"input", &signature), Ok(()), "{pem}");
            assert_eq!(keys.verify(None, algorithm, b"other", &signature), Err(SignatureError::Mismatch), "{pem}");
            assert_eq!(
                keys.verify(None, Algorithm::HS256, b"input", &mint::hmac(pem.as_bytes(), b"input")),
                Err(SignatureError::UnknownKey),
                "a public key is no secret"
            );
        }
    }

    #[test]
    fn what_is_no_public_key_says_what_it_is() {
        let good = ec_public().to_public_key_pem(p256::pkcs8::LineEnding::LF).unwrap();
        let armoured = |label: &str, der: &[u8]| {
            format!("-----BEGIN {label}-----\n{}\n-----END {label}-----", STANDARD.encode(der))
        };
        for (text, part) in [
            (String::new(), "not a public key in PEM"),
            ("secret".to_owned(), "not a public key in PEM"),
            ("-----BEGIN PUBLIC KEY-----\nAA".to_owned(), "no end"),
            (format!("{good}{good}"), "give one key"),
            (good.replace("MFk", "!!!"), "not base64"),
            (armoured("PUBLIC KEY", b"\x30\x00"), "holds no public key"),
            (armoured("RSA PUBLIC KEY", b"\x30\x00"), "holds no RSA public key"),
            (armoured("PRIVATE KEY", b"x"), "give the public one"),
            (armoured("EC PRIVATE KEY", b"x"), "give the public one"),
            (armoured("CERTIFICATE", b"x"), "openssl x509"),
            (armoured("X", b"x"), "holds \"X\""),
        ] {
            let error = read(&text).err().unwrap();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
