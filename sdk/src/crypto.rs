//! Hashes, and signatures: hashes are computed in the guest and run anywhere; signatures are verified by the host, which is many times
//! faster at it, through the function `verify_signature` that Selvedge and Envoy have.
//!
//! ```
//! use selvedge_sdk::prelude::*;
//!
//! # fn example(secret: &[u8], request: &Request) -> Result<(), Reply> {
//! let sent = request.header("x-signature").or_deny(401, "not signed")?;
//! let right = crypto::hex(&crypto::hmac_sha256(secret, request.path().as_bytes()));
//! if !crypto::same(&sent, right.as_bytes()) {
//!     return Err(Reply::new(401));
//! }
//! # Ok(()) }
//! ```
//!
//! Keys, secrets and what they are compared with are in no error and no log.

use sha2::{Digest as _, Sha256};

use crate::host::{self, Status};

/// The block of SHA-256, in bytes.
const BLOCK: usize = 64;

/// SHA-256 (FIPS 180-4).
pub fn sha256(bytes: impl AsRef<[u8]>) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// HMAC with SHA-256 (RFC 2104). Compare with [`same`], never with `==`.
pub fn hmac_sha256(key: impl AsRef<[u8]>, message: impl AsRef<[u8]>) -> [u8; 32] {
    let key = key.as_ref();
    let mut block = [0; BLOCK];
    if key.len() > BLOCK {
        block[..32].copy_from_slice(&sha256(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = Sha256::new().chain_update(block.map(|byte| byte ^ 0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(block.map(|byte| byte ^ 0x5c)).chain_update(inner).finalize().into()
}

/// Whether two secrets are the same, in a time that does not depend on where they differ. It does depend on their lengths.
pub fn same(left: &[u8], right: &[u8]) -> bool {
    let differ = left.iter().zip(right).fold(0, |differ, (left, right)| differ | (left ^ right));
    left.len() == right.len() && std::hint::black_box(differ) == 0
}

/// Hexadecimal, in lower case.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

/// A public key: RSA from 2048 bits (PKCS #1 v1.5) or ECDSA on P-256 and P-384.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// The field of `VerifySignatureArguments` that it goes into.
    field: u8,
    bytes: Vec<u8>,
}

/// A public key need not be hidden, but what is long need not be shown.
impl std::fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("PublicKey")
    }
}

impl PublicKey {
    /// A key as SubjectPublicKeyInfo in DER (RFC 5280, 4.1). It is read when it is first used.
    pub fn der(bytes: impl Into<Vec<u8>>) -> Self {
        Self { field: 2, bytes: bytes.into() }
    }

    /// The same in PEM: `-----BEGIN PUBLIC KEY-----`. Selvedge only: Envoy knows DER alone.
    pub fn pem(text: impl Into<String>) -> Self {
        Self { field: 5, bytes: text.into().into_bytes() }
    }
}

/// The hash that a signature is made over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256: RSA, P-256, P-384.
    Sha256,
    /// SHA-384: RSA, P-256, P-384.
    Sha384,
    /// SHA-512: RSA.
    Sha512,
}

/// Why a signature was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// It is not the signature of this message with this key, or the hash does not go with the key.
    #[error("the signature is wrong")]
    Wrong,
    /// The key cannot be read, or there is more than 1 MiB.
    #[error("the key cannot be read")]
    BadKey,
    /// The host cannot do this; the function of the host that it takes.
    #[error("the host has no function {0}")]
    Unsupported(&'static str),
}

/// Verifies a signature: of RSA as it is, of ECDSA in DER (RFC 3279, 2.2.3); [`ecdsa_der`] makes one of the two numbers that JWS has.
///
/// # Errors
/// Anything but a good signature; see [`CryptoError`].
pub fn verify(
    key: &PublicKey,
    hash: Hash,
    message: impl AsRef<[u8]>,
    signature: impl AsRef<[u8]>,
) -> Result<(), CryptoError> {
    const FUNCTION: &str = "verify_signature";
    let name = match hash {
        Hash::Sha256 => "sha256",
        Hash::Sha384 => "sha384",
        Hash::Sha512 => "sha512",
    };
    let mut argument = Vec::with_capacity(key.bytes.len() + message.as_ref().len() + signature.as_ref().len() + 32);
    put(&mut argument, 1, name.as_bytes());
    put(&mut argument, key.field, &key.bytes);
    put(&mut argument, 3, signature.as_ref());
    put(&mut argument, 4, message.as_ref());
    match host::current().foreign(FUNCTION, &argument) {
        // `VerifySignatureResult`: field 1 is true, or it is not there.
        Ok(result) if result.starts_with(&[1 << 3, 1]) => Ok(()),
        Ok(_) => Err(CryptoError::Wrong),
        Err(Status::NotFound) => Err(CryptoError::Unsupported(FUNCTION)),
        Err(_) => Err(CryptoError::BadKey),
    }
}

/// The signature in DER of the two numbers of an ECDSA signature, one after the other, as JWS writes them (RFC 7518, 3.4): 64 bytes for
/// P-256, 96 for P-384. `None` for any other length.
pub fn ecdsa_der(numbers: &[u8]) -> Option<Vec<u8>> {
    if ![64, 96].contains(&numbers.len()) {
        return None;
    }
    let (r, s) = numbers.split_at(numbers.len() / 2);
    let mut content = Vec::with_capacity(numbers.len() + 8);
    for number in [r, s] {
        let zeros = number.iter().take_while(|byte| **byte == 0).count().min(number.len() - 1);
        let number = &number[zeros..];
        // A first bit that is set would make it negative.
        let sign: &[u8] = if number[0] & 0x80 == 0 { &[] } else { &[0] };
        content.push(2);
        content.extend(u8::try_from(sign.len() + number.len()).ok());
        content.extend_from_slice(sign);
        content.extend_from_slice(number);
    }
    // Two numbers of 49 bytes at most and their heads: under 128, so one byte holds the length.
    let mut der = vec![0x30, u8::try_from(content.len()).ok()?];
    der.append(&mut content);
    Some(der)
}

/// A field of bytes, as protobuf has it.
fn put(message: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    message.push(field << 3 | 2);
    let mut length = bytes.len();
    while length >= 0x80 {
        message.extend(u8::try_from(length & 0x7f | 0x80));
        length >>= 7;
    }
    message.extend(u8::try_from(length));
    message.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;
    use crate::host::Host;

    #[test]
    fn hashes_are_those_of_the_standards() {
        assert_eq!(hex(&sha256("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        // RFC 4231, test cases 1, 2 and 6 (a key longer than a block).
        let table: [(&[u8], &[u8], &str); 3] = [
            (&[0x0b; 20], b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
            (
                b"Jefe",
                b"what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                &[0xaa; 131],
                b"Test Using Larger Than Block-Size Key - Hash Key First",
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
        ];
        for (key, message, want) in table {
            assert_eq!(hex(&hmac_sha256(key, message)), want);
        }
    }

    #[test]
    fn secrets_are_the_same_or_not() {
        for (left, right, want) in [
            ("", "", true),
            ("a", "a", true),
            ("a", "b", false),
            ("a", "aa", false),
            ("aa", "a", false),
            ("", "a", false),
        ] {
            assert_eq!(same(left.as_bytes(), right.as_bytes()), want, "{left} {right}");
        }
    }

    #[test]
    fn numbers_become_der() {
        let mut numbers = [0; 64];
        (numbers[0], numbers[31], numbers[63]) = (0x80, 1, 5);
        let der = ecdsa_der(&numbers).unwrap();
        let r: Vec<u8> = [&[2, 33, 0][..], &numbers[..32]].concat();
        assert_eq!(der, [&[0x30, 38][..], &r, &[2, 1, 5]].concat());
        assert_eq!(ecdsa_der(&[0; 64]).unwrap(), [0x30, 6, 2, 1, 0, 2, 1, 0]);
        assert_eq!(ecdsa_der(&[0xff; 96]).unwrap().len(), 2 + 2 * (2 + 49));
        assert_eq!((ecdsa_der(&[1; 63]), ecdsa_der(&[])), (None, None));
    }

    /// Answers as it is told, and remembers what it was asked.
    struct Answering(Result<Vec<u8>, Status>, RefCell<Vec<u8>>);

    impl Host for Answering {
        fn foreign(&self, name: &str, argument: &[u8]) -> Result<Vec<u8>, Status> {
            assert_eq!(name, "verify_signature");
            *self.1.borrow_mut() = argument.to_vec();
            self.0.clone()
        }
    }

    #[test]
    fn the_host_is_asked_and_understood() {
        let wrong = CryptoError::Wrong;
        for (answer, want) in [
            (Ok(vec![8, 1]), Ok(())),
            (Ok(vec![]), Err(wrong.clone())),
            (Ok(vec![8, 0]), Err(wrong.clone())),
            (Ok(vec![0x12, 1, b'x']), Err(wrong)),
            (Err(Status::BadArgument), Err(CryptoError::BadKey)),
            (Err(Status::NotFound), Err(CryptoError::Unsupported("verify_signature"))),
        ] {
            let host = Rc::new(Answering(answer, RefCell::default()));
            let _installed = host::install(host.clone());
            let key = PublicKey::der(vec![7; 200]);
            assert_eq!(verify(&key, Hash::Sha256, "m", "s"), want);
            let asked = host.1.borrow();
            let expected = [b"\x0a\x06sha256\x12\xc8\x01".as_slice(), &[7; 200], b"\x1a\x01s\x22\x01m"].concat();
            assert_eq!(*asked, expected);
        }
        assert_eq!(format!("{:?}", PublicKey::pem("secret")), "PublicKey");
    }
}
