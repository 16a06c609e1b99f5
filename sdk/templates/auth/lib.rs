//! Lets requests with a known API key pass, and tells the origin whose it is.

use std::collections::BTreeMap;

use selvedge_sdk::prelude::*;

/// The settings.
#[derive(Config)]
pub struct Settings {
    /// The header that carries the key.
    #[config(default = "x-api-key")]
    header: HeaderName,
    /// Who has which key: name of the user, and the key.
    users: BTreeMap<String, String>,
}

/// The filter.
pub struct Auth {
    settings: Settings,
    refused: metrics::Counter,
}

#[filter]
impl Filter for Auth {
    type Config = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        if let Some((user, _)) = settings.users.iter().find(|(_, key)| key.len() < 8) {
            return Err(format!(
                "`users`: the key of {user} is shorter than 8 characters"
            ));
        }
        Ok(Self {
            settings,
            refused: metrics::counter("auth_refused_total"),
        })
    }

    async fn request(&self, request: &mut Request) -> Flow {
        // Whatever the client says about itself is not to reach the origin.
        request.remove_header("x-user");
        let key = request
            .header_str(&self.settings.header)
            .or_deny(401, "missing api key")?;
        let Some(user) = self.owner(&key) else {
            self.refused.inc(1);
            return Err(Reply::new(403).text("unknown api key"));
        };
        request.remove_header(&self.settings.header);
        request.set_header("x-user", user);
        Ok(Next)
    }
}

impl Auth {
    /// Looks at every key to its end: how long it takes does not tell how much of a key was right.
    fn owner(&self, key: &str) -> Option<&str> {
        let mut owner = None;
        for (user, known) in &self.settings.users {
            let differ = known
                .bytes()
                .zip(key.bytes())
                .fold(0, |differ, (a, b)| differ | (a ^ b));
            if differ == 0 && known.len() == key.len() {
                owner = Some(user.as_str());
            }
        }
        owner
    }
}
