//! `verify_signature` and `sign`, with the messages of Envoy's `verify_signature.proto` and `sign.proto`.
//!
//! Keys are RSA of 2048 bits and more (PKCS #1 v1.5) or ECDSA on P-256 and P-384 (signatures in DER). SHA-256, SHA-384 and SHA-512; on an
//! elliptic curve those that belong to it. SHA-1 and SHA-224, which Envoy has too, are refused: they are not safe any more.

use rustls::SignatureScheme;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use selvedge_wasm::ForeignError;
use webpki::RawPublicKeyEntity;
use webpki::ring::{
    ECDSA_P256_SHA256, ECDSA_P256_SHA384, ECDSA_P384_SHA256, ECDSA_P384_SHA384, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
};

use super::protobuf::{self, Value};
use super::{ARGUMENTS_MAX, Answer, bad};

/// A function that signatures are made over.
#[derive(Debug, Clone, Copy)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    fn named(name: &[u8]) -> Result<Self, String> {
        Ok(match name.to_ascii_lowercase().as_slice() {
            b"sha256" => Self::Sha256,
            b"sha384" => Self::Sha384,
            b"sha512" => Self::Sha512,
            _ => return Err(format!("{} is not a supported hash function", String::from_utf8_lossy(name))),
        })
    }

    fn to_verify(self) -> Vec<&'static dyn SignatureVerificationAlgorithm> {
        match self {
            Self::Sha256 => vec![RSA_PKCS1_2048_8192_SHA256, ECDSA_P256_SHA256, ECDSA_P384_SHA256],
            Self::Sha384 => vec![RSA_PKCS1_2048_8192_SHA384, ECDSA_P256_SHA384, ECDSA_P384_SHA384],
            Self::Sha512 => vec![RSA_PKCS1_2048_8192_SHA512],
        }
    }

    fn to_sign(self) -> &'static [SignatureScheme] {
        match self {
            Self::Sha256 => &[SignatureScheme::RSA_PKCS1_SHA256, SignatureScheme::ECDSA_NISTP256_SHA256],
            Self::Sha384 => &[SignatureScheme::RSA_PKCS1_SHA384, SignatureScheme::ECDSA_NISTP384_SHA384],
            Self::Sha512 => &[SignatureScheme::RSA_PKCS1_SHA512],
        }
    }
}

/// Says whether a signature is good. A bad key or message is an error; a bad signature, or a hash that is not served, is an answer.
pub(crate) fn verify(args: &[u8]) -> Answer {
    let [hash, der, signature, text, pem] = five(args)?;
    let key = match (der, pem) {
        ([], []) => return Err(bad("no public key")),
        (der, []) => SubjectPublicKeyInfoDer::from(der),
        ([], pem) => SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| bad("the public key is no PEM"))?,
        _ => return Err(bad("a public key in DER and one in PEM")),
    };
    let key = RawPublicKeyEntity::try_from(&key).map_err(|_| bad("the public key cannot be read"))?;

    let verified = Hash::named(hash).and_then(|hash| {
        let mut outcome = Err("the key is of a kind, or has a size, that is not served with this hash".to_owned());
        for algorithm in hash.to_verify() {
            match key.verify_signature(algorithm, text, signature) {
                Ok(()) => return Ok(()),
                Err(webpki::Error::InvalidSignatureForPublicKey) => outcome = Err("the signature is wrong".to_owned()),
                Err(_) => {} // The algorithm is for keys of another kind.
            }
        }
        outcome
    });
    let mut message = Vec::new();
    protobuf::put_bool(&mut message, 1, verified.is_ok());
    protobuf::put_bytes(&mut message, 2, verified.err().unwrap_or_default().as_bytes());
    Ok(message)
}

/// Signs. A bad key or message is an error; a hash that the key does not go with is an answer.
pub(crate) fn sign(args: &[u8]) -> Answer {
    let [hash, der, text, pem, _] = five(args)?;
    let key = match (der, pem) {
        ([], []) => return Err(bad("no private key")),
        (der, []) => PrivateKeyDer::try_from(der.to_vec()).map_err(|_| bad("the private key cannot be read"))?,
        ([], pem) => PrivateKeyDer::from_pem_slice(pem).map_err(|_| bad("the private key is no PEM"))?,
        _ => return Err(bad("a private key in DER and one in PEM")),
    };
    let key = any_supported_type(&key).map_err(|_| bad("the private key is of no kind that is served"))?;

    let signed = Hash::named(hash).and_then(|hash| {
        let signer = key.choose_scheme(hash.to_sign()).ok_or("the key does not go with this hash function")?;
        signer.sign(text).map_err(|error| error.to_string())
    });
    let mut message = Vec::new();
    protobuf::put_bool(&mut message, 1, signed.is_ok());
    match &signed {
        Ok(signature) => protobuf::put_bytes(&mut message, 2, signature),
        Err(why) => protobuf::put_bytes(&mut message, 3, why.as_bytes()),
    }
    Ok(message)
}

/// The fields 1 to 5 of a message that has only bytes and strings.
fn five(args: &[u8]) -> Result<[&[u8]; 5], ForeignError> {
    if args.len() > ARGUMENTS_MAX {
        return Err(bad("more than 1 MiB of arguments"));
    }
    let mut fields = [&[][..]; 5];
    for field in protobuf::fields(args) {
        if let (number @ 1..=5, Value::Bytes(bytes)) = field?
            && let Some(place) = usize::try_from(number - 1).ok().and_then(|index| fields.get_mut(index))
        {
            *place = bytes;
        }
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData};

    use super::*;

    /// A message of bytes fields, by number.
    fn message(fields: &[(u8, &[u8])]) -> Vec<u8> {
        let mut message = Vec::new();
        fields.iter().for_each(|(number, value)| protobuf::put_bytes(&mut message, *number, value));
        message
    }

    /// The first field of an answer as a flag, and the others.
    fn read(answer: &[u8]) -> (bool, Vec<(u64, Vec<u8>)>) {
        let mut others = Vec::new();
        let mut flag = false;
        for field in protobuf::fields(answer) {
            match field.unwrap() {
                (1, Value::Number(number)) => flag = number == 1,
                (number, Value::Bytes(bytes)) => others.push((number, bytes.to_vec())),
                other => panic!("{other:?}"),
            }
        }
        (flag, others)
    }

    #[test]
    fn what_is_signed_is_verified_and_nothing_else() {
        for (kind, hash) in [(&PKCS_ECDSA_P256_SHA256, "sha256"), (&PKCS_ECDSA_P384_SHA384, "SHA384")] {
            let pair = KeyPair::generate_for(kind).unwrap();
            let (der, public) = (pair.serialize_der(), pair.subject_public_key_info());
            for private in [(2, &der[..]), (4, pair.serialize_pem().as_bytes())] {
                let signed = sign(&message(&[(1, hash.as_bytes()), (3, b"hello"), private])).unwrap();
                let (good, rest) = read(&signed);
                let [(2, signature)] = &rest[..] else { panic!("{rest:?}") };
                assert!(good && !signature.is_empty());

                for key in [(2, &public[..]), (5, pair.public_key_pem().as_bytes())] {
                    let verify = |text: &[u8]| {
                        verify(&message(&[(1, hash.as_bytes()), (3, signature), (4, text), key])).unwrap()
                    };
                    assert_eq!(read(&verify(b"hello")), (true, vec![]));
                    assert_eq!(read(&verify(b"Hello")), (false, vec![(2, b"the signature is wrong".to_vec())]));
                }
            }
        }
    }

    #[test]
    fn what_is_not_served_is_an_answer_and_what_cannot_be_read_an_error() {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let (der, pem, public) = (pair.serialize_der(), pair.serialize_pem(), pair.subject_public_key_info());
        for hash in ["sha1", "sha512", ""] {
            let (good, rest) = read(&sign(&message(&[(1, hash.as_bytes()), (2, &der)])).unwrap());
            assert!(!good && matches!(&rest[..], [(3, _)]), "{hash}: {rest:?}");
            let (good, rest) = read(&verify(&message(&[(1, hash.as_bytes()), (2, &public)])).unwrap());
            assert!(!good && matches!(&rest[..], [(2, _)]), "{hash}: {rest:?}");
        }
        let other = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let (good, _) = read(&sign(&message(&[(1, b"sha256"), (2, &other.serialize_der())])).unwrap());
        assert!(!good, "Ed25519 has no hash to choose");

        let refused: &[&[(u8, &[u8])]] = &[
            &[(1, b"sha256")],
            &[(1, b"sha256"), (2, b"rubbish")],
            &[(1, b"sha256"), (4, b"-----BEGIN"), (5, b"-----BEGIN")],
            &[(1, b"sha256"), (2, &der), (4, pem.as_bytes()), (5, pem.as_bytes())],
            &[(4, &vec![0; ARGUMENTS_MAX])],
        ];
        for fields in refused {
            let message = message(fields);
            assert!(matches!(sign(&message), Err(ForeignError::BadArgument(_))));
            assert!(matches!(verify(&message), Err(ForeignError::BadArgument(_))));
        }
        assert!(matches!(verify(b"\x0a\x09"), Err(ForeignError::BadArgument(_))));
    }
}
