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

    /// The private key of RFC 7515, A.2.1, in PKCS #1.
    const RSA_PRIVATE: &str = "\
        308204a30201000282010100a1f8160ae2e3c9b465ce8d2d656263362b927dbe29e1f02477fc1625cc90a136e38bd93497c5b6ea63dd7711e67c7429\
        f956b0fb8a8f089adc4b69893cc1333f53edd019b87784252fec914fe4857769594bea4280d32c0f55bf62944f130396bc6e9bdf6ebdd2bda3678eec\
        a0c668f701b38dbffb38c8342ce2fe6d27fade4a5a4874979dd4b9cf9adec4c75b05852c2c0f5ef8a5c1750392f944e8ed64c110c6b647609aa4783a\
        eb9c6c9ad755313050638b83665c6f6f7a82a396702a1f641b82d3ebf2392219491fb686872c5716f50af8358d9a8b9d17c340728f7f87d89a18d8fc\
        ab67ad84590c2ecf759339363c07034d6f606f9e21e05456cae5e9a102030100010282010012ae71a469cd0a2bc37e526c4500571f1d61751d64e949\
        707b62590f9d0ba57c963c401e3fcf2f2cd3bdec88e503bfc6439b0b28c82f7d3797671f5213eed8c15a25d8d5cea0025ee3ab2e8b7f79216fc63bea\
        562753b40644c6a15127d9b2954540a0bbe1a30556982d4e9fde5f6425f14d4b713441b55dc73b9b4aedcc92ace3927e37f57d0cfd5e7581fa512c8f\
        4961a9eb0b80f8a80746728a55ff46471f3425063b9d53642f5ede1e84d613081afa5c22d051285bd63b943b565d898a05685413e53c3c6c6525ff1f\
        e34e3ddc70f0d56450fda48ba12e104e9deb9fb81881e1c4bdf25d9247f450c865927968e77334f4414f75a750e139546e3a8a739d02818100e01cc4\
        10eb48a6655d54464d0aa4bb6da0b872b774a6a9d11ffe480778f0ddb7311a7e902ef9c4b5f75476262ba8176cb35979f014372a1a2829e4136bd001\
        d07c3f3f2e4f25d4c934f63c7109fba2e67628a0dc9a73c6058e6def22dcd50950e711ddc16d5586f2a7fa75ea8494c18083e0b65742f8a0d5e73fb2\
        d970f0194702818100b903c47e0995b632f4532cb1f3c199145d5f3ae9c7dfeedc7a92a6b47e29c61b42a07aa95a64fc600999c5a7b01e01c08cb62c\
        a756527bbcc56078fb0baba5ed38de2d07990ff6300faeadeb6c039a97bf1e507e4e7040fa78db8257c8b112ed5e59c3cd092fe5d4e5b51275d41281\
        072a5e785ebaf3dae3709203133f5159d702818007029f577024ab9fcc1590c56429d6fb0ce5f820a8f375a866f9cb430093783bfcbb396e4529e6ef\
        52374022dd86ba84d9ef58931beec5d05fa53fcf23b633f8538a9eed51e87b097830a39f5d92937be6024b55db36f7e0c09dcbb72975387f615afbb6\
        cb36bbabe7793c2b03ceab66dbb931baf50b55ec9af9311d001d628d0281810087ff7afa62b547fee0961b2e9bcd5d6718d39d8ca73db6691f38998d\
        e78771762c5da68cc243a5383b166bb23dc570e84706ca801ef5f6bae6236a0aafa3770e8f54d1a8da1c5f8d2899f082331ddb0f5c8f3dfffa4c8d97\
        102bdafe082a118da6633988880e4b55599ce67af26ebfa5b2c14a9de7b2c4dd96abddd2d2224c7502818021877b0c73a1ad6bf19303d0b11336b4e8\
        2b8db72b7efb50262a5df8395cc7256eb8cf6c40b7608d5936a32dba174126a527062ead8ca305fb7e177f409437c9dcb9718ed82018bcef0f7720a2\
        c475f9db26da0e3cb516d084eb25178e828d5cabd49bb3161ac0181fa7f821e80e7ad37936f9943054ad092921ee2c592e4375";

    /// Its public key, as SubjectPublicKeyInfo.
    const RSA_PUBLIC: &str = "\
        30820122300d06092a864886f70d01010105000382010f003082010a0282010100a1f8160ae2e3c9b465ce8d2d656263362b927dbe29e1f02477fc16\
        25cc90a136e38bd93497c5b6ea63dd7711e67c7429f956b0fb8a8f089adc4b69893cc1333f53edd019b87784252fec914fe4857769594bea4280d32c\
        0f55bf62944f130396bc6e9bdf6ebdd2bda3678eeca0c668f701b38dbffb38c8342ce2fe6d27fade4a5a4874979dd4b9cf9adec4c75b05852c2c0f5e\
        f8a5c1750392f944e8ed64c110c6b647609aa4783aeb9c6c9ad755313050638b83665c6f6f7a82a396702a1f641b82d3ebf2392219491fb686872c57\
        16f50af8358d9a8b9d17c340728f7f87d89a18d8fcab67ad84590c2ecf759339363c07034d6f606f9e21e05456cae5e9a10203010001";

    /// What OpenSSL makes of `hello` and that key, with SHA-256.
    const RSA_SIGNATURE: &str = "\
        1756b4bcbf030ff09965baf8c0928fa563204c6271d962997b25180f80106f1516a217af9ba73c39e2fa3069b9e73f184ce04d622eadcb37bb3f87a3\
        5d0822ada3fd7766507ccef8edabe561096aeb64d29c3bf29308ef56e77db2503a71ecc594e45a934ae77b03641984e35b6e409a44d0b33889f99394\
        f39faad77ac81b82235023909622c212ba74f2cd518b44e9eae1e13120eafc02a6f17ade7599a5429c9e832817985b45f9ec5d37db9e5547e92f17fb\
        5b44578de27cf07e72cf06ef7c3ba04fe12408a1476bd442369a059e87420ec9f2d3ddb54f7075c541529a453da475a3ba3e03dd79bae71948f55c2d\
        4cb27376bded18f3a1052318a6425025";

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn rsa_signatures_are_those_of_openssl() {
        let (private, public, signature) = (bytes(RSA_PRIVATE), bytes(RSA_PUBLIC), bytes(RSA_SIGNATURE));
        let (good, rest) = read(&sign(&message(&[(1, b"sha256"), (2, &private), (3, b"hello")])).unwrap());
        assert_eq!((good, rest), (true, vec![(2, signature.clone())]));

        for (hash, text, good) in [("sha256", "hello", true), ("sha256", "Hello", false), ("sha384", "hello", false)] {
            let message = message(&[(1, hash.as_bytes()), (2, &public), (3, &signature), (4, text.as_bytes())]);
            assert_eq!(read(&verify(&message).unwrap()).0, good, "{hash} {text}");
        }
        for hash in ["sha384", "sha512"] {
            let (_, rest) = read(&sign(&message(&[(1, hash.as_bytes()), (2, &private), (3, b"hello")])).unwrap());
            let message = message(&[(1, hash.as_bytes()), (2, &public), (3, &rest[0].1), (4, b"hello")]);
            assert!(read(&verify(&message).unwrap()).0, "{hash}");
        }
    }
}
