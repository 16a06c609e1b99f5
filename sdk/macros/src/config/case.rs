//! Names in YAML.

use proc_macro2::Ident;

/// The name of a field, without what makes a keyword a name.
pub(super) fn plain(ident: &Ident) -> String {
    ident.to_string().trim_start_matches("r#").to_owned()
}

/// `InspectPrefix` -> `inspect_prefix`.
pub(super) fn snake(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for (at, letter) in name.char_indices() {
        if letter.is_uppercase() && at > 0 {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_written_in_snake_case() {
        for (name, expected) in [("Share", "share"), ("ClientIp", "client_ip"), ("A", "a"), ("Rs256", "rs256")] {
            assert_eq!(snake(name), expected);
        }
    }
}
