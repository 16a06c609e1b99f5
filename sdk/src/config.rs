//! Reading a filter's configuration.

use serde::de::DeserializeOwned;

/// Reads JSON, or says which field is wrong. No configuration at all reads as `{}`, and `{}` reads as `null` for a filter
/// without settings (`type Config = ()`).
pub(crate) fn parse<C: DeserializeOwned>(json: &[u8]) -> Result<C, String> {
    let json = json.trim_ascii();
    let empty = json.is_empty() || json == b"{}";
    match read(if empty { b"{}" } else { json }) {
        Err(error) if empty => read(b"null").map_err(|_| error),
        result => result,
    }
}

/// The same for `type Config = ()`: a filter without settings need not carry a JSON parser.
///
/// # Errors
/// There are settings after all.
pub fn parse_nothing(json: &[u8]) -> Result<(), String> {
    match json.trim_ascii() {
        b"" | b"{}" | b"null" => Ok(()),
        _ => Err("this filter has no settings".into()),
    }
}

fn read<C: DeserializeOwned>(json: &[u8]) -> Result<C, String> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let config = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        // The path of the root is ".": the message alone is clearer then.
        if path == "." { error.into_inner().to_string() } else { format!("`{path}`: {}", error.inner()) }
    })?;
    deserializer.end().map_err(|error| error.to_string())?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        #[serde(default)]
        limit: Limit,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Limit {
        burst: u32,
    }

    #[test]
    fn names_the_field_at_fault() {
        let table = [
            (r#"{"limit": {"burst": "many"}}"#, "limit.burst"),
            (r#"{"limit": {"bust": 1}}"#, "bust"),
            (r#"{"limit": {}}"#, "burst"),
            (r#"{"other": 1}"#, "other"),
            (r#"{"limit": {"burst": 1}} trailing"#, "trailing characters"),
        ];
        for (json, expected) in table {
            let error = parse::<Config>(json.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }

    #[test]
    fn nothing_reads_as_an_empty_object() {
        assert_eq!(parse::<Config>(b"").unwrap().limit.burst, 0);
        for (json, valid) in [(&b""[..], true), (b" {} ", true), (b"null", true), (br#"{"a":1}"#, false), (b"{", false)]
        {
            assert_eq!(parse::<()>(json).is_ok(), valid);
            assert_eq!(parse_nothing(json).is_ok(), valid);
        }
    }
}
