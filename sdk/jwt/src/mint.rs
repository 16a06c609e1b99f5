//! Tokens and keys for tests: the examples of RFC 7515 (A.1 to A.3), and tokens signed with their private keys. Everybody knows these keys:
//! they protect nothing.
//!
//! ```
//! use selvedge_jwt::{Algorithm, mint};
//!
//! let token = mint::token(Algorithm::ES256, &mint::header(Algorithm::ES256), &serde_json::json!({ "sub": "ann", "exp": 1_900_000_000 }));
//! assert_eq!(token.split('.').count(), 3);
//! ```

#![allow(clippy::unwrap_used, missing_docs, reason = "for tests; the keys are constants that are known to be good")]

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use p256::ecdsa::signature::Signer;
use rsa::BigUint;
use rsa::pkcs1v15::SigningKey;
use rsa::signature::SignatureEncoding;
use serde_json::{Value, json};
use sha2::Sha256;

use crate::algorithm::Algorithm;

/// A secret as an operator writes it.
pub const TEXT_SECRET: &str = "correct horse battery staple correct horse";

const A1_K: &str = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
const A2_N: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
const A2_D: &str = "Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol2NXOoAJe46sui395IW_GO-pWJ1O0BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn439X0M_V51gfpRLI9JYanrC4D4qAdGcopV_0ZHHzQlBjudU2QvXt4ehNYTCBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8bGUl_x_jTj3ccPDVZFD9pIuhLhBOneufuBiB4cS98l2SR_RQyGWSeWjnczT0QU91p1DhOVRuOopznQ";
const A2_P: &str = "4BzEEOtIpmVdVEZNCqS7baC4crd0pqnRH_5IB3jw3bcxGn6QLvnEtfdUdiYrqBdss1l58BQ3KhooKeQTa9AB0Hw_Py5PJdTJNPY8cQn7ouZ2KKDcmnPGBY5t7yLc1QlQ5xHdwW1VhvKn-nXqhJTBgIPgtldC-KDV5z-y2XDwGUc";
const A2_Q: &str = "uQPEfgmVtjL0Uyyx88GZFF1fOunH3-7cepKmtH4pxhtCoHqpWmT8YAmZxaewHgHAjLYsp1ZSe7zFYHj7C6ul7TjeLQeZD_YwD66t62wDmpe_HlB-TnBA-njbglfIsRLtXlnDzQkv5dTltRJ11BKBBypeeF6689rjcJIDEz9RWdc";
const A3_X: &str = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
const A3_Y: &str = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";
const A3_D: &str = "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI";

/// RFC 7515, A.1: HS256.
pub const RFC_7515_A1: &str = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
/// RFC 7515, A.2: RS256.
pub const RFC_7515_A2: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
/// RFC 7515, A.3: ES256.
pub const RFC_7515_A3: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";

/// The key of A.1.
pub fn oct_jwk() -> Value {
    json!({ "kty": "oct", "kid": "oct", "k": A1_K })
}

/// The public key of A.2.
pub fn rsa_jwk() -> Value {
    json!({ "kty": "RSA", "kid": "rsa", "use": "sig", "alg": "RS256", "n": A2_N, "e": "AQAB" })
}

/// The public key of A.3.
pub fn ec_jwk() -> Value {
    json!({ "kty": "EC", "kid": "ec", "crv": "P-256", "key_ops": ["verify"], "x": A3_X, "y": A3_Y })
}

/// A set with the public key of A.2.
pub fn rsa_jwks() -> Value {
    json!({ "keys": [rsa_jwk()] })
}

/// A header that names the key.
pub fn header(algorithm: Algorithm) -> Value {
    let kid = match algorithm {
        Algorithm::HS256 => "oct",
        Algorithm::RS256 => "rsa",
        Algorithm::ES256 => "ec",
    };
    json!({ "alg": algorithm.to_string(), "kid": kid })
}

/// A token with a good signature.
pub fn token(algorithm: Algorithm, header: &Value, payload: &Value) -> String {
    raw_token(algorithm, &header.to_string(), &payload.to_string())
}

/// A token with a good signature over any text.
pub fn raw_token(algorithm: Algorithm, header: &str, payload: &str) -> String {
    let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let signature = sign(algorithm, input.as_bytes());
    format!("{input}.{signature}")
}

/// The signature of this text with the example's key, in base64url.
pub fn sign(algorithm: Algorithm, input: &[u8]) -> String {
    match algorithm {
        Algorithm::HS256 => hmac(&decode(A1_K), input),
        Algorithm::RS256 => {
            let number = |text| BigUint::from_bytes_be(&decode(text));
            let primes = vec![number(A2_P), number(A2_Q)];
            let key =
                rsa::RsaPrivateKey::from_components(number(A2_N), 65_537_u32.into(), number(A2_D), primes).unwrap();
            URL_SAFE_NO_PAD.encode(SigningKey::<Sha256>::new(key).sign(input).to_bytes())
        }
        Algorithm::ES256 => {
            let key = p256::ecdsa::SigningKey::from_slice(&decode(A3_D)).unwrap();
            let signature: p256::ecdsa::Signature = key.sign(input);
            URL_SAFE_NO_PAD.encode(signature.to_bytes())
        }
    }
}

/// HMAC-SHA-256 in base64url.
pub fn hmac(key: &[u8], input: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(input);
    URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())
}

fn decode(text: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text).unwrap()
}
