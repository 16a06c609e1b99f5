//! What kind of device a client is, as far as it says.

use http::{HeaderMap, HeaderName, header};

/// Tells the origin.
pub(crate) const X_DEVICE_CLASS: HeaderName = HeaderName::from_static("x-device-class");
const SEC_CH_UA_MOBILE: HeaderName = HeaderName::from_static("sec-ch-ua-mobile");

/// What programs that fetch pages by themselves call themselves.
const BOTS: [&str; 7] =
    ["bot", "crawl", "spider", "slurp", "facebookexternalhit", "mediapartners-google", "bingpreview"];
const TABLETS: [&str; 5] = ["ipad", "tablet", "kindle", "silk/", "playbook"];
const MOBILES: [&str; 6] = ["mobi", "iphone", "ipod", "windows phone", "blackberry", "opera mini"];

/// `bot`, `tablet`, `mobile` or `desktop`, by the first rule that holds, words of `User-Agent` compared without case:
///
/// 1. one of [`BOTS`], but for the phones of Cubot: `bot`
/// 2. one of [`TABLETS`], or `Android` without `Mobile`: `tablet`
/// 3. `Sec-CH-UA-Mobile: ?1`, or one of [`MOBILES`]: `mobile`
/// 4. anything else: `desktop`
pub(crate) fn class(headers: &HeaderMap) -> &'static str {
    let agent = headers.get(header::USER_AGENT).map(|agent| agent.as_bytes().to_ascii_lowercase()).unwrap_or_default();
    let has = |word: &str| memchr::memmem::find(&agent, word.as_bytes()).is_some();
    if BOTS.iter().any(|word| has(word)) && !has("cubot") {
        return "bot";
    }
    let says_mobile = headers.get(SEC_CH_UA_MOBILE).is_some_and(|value| value == "?1");
    if TABLETS.iter().any(|word| has(word)) || (has("android") && !has("mobile") && !says_mobile) {
        return "tablet";
    }
    if says_mobile || MOBILES.iter().any(|word| has(word)) {
        return "mobile";
    }
    "desktop"
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_kinds_of_devices() {
        for (agent, mobile, expected) in [
            (
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/126.0 Safari/537.36",
                None,
                "desktop",
            ),
            (
                "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) Version/17.5 Mobile/15E148 Safari/604.1",
                None,
                "mobile",
            ),
            ("Mozilla/5.0 (iPad; CPU OS 17_5 like Mac OS X) Version/17.5 Mobile/15E148 Safari/604.1", None, "tablet"),
            ("Mozilla/5.0 (Linux; Android 14; Pixel 8) Chrome/126.0 Mobile Safari/537.36", None, "mobile"),
            ("Mozilla/5.0 (Linux; Android 14; SM-X810) Chrome/126.0 Safari/537.36", None, "tablet"),
            ("Mozilla/5.0 (Linux; Android 10; K) Chrome/126.0 Safari/537.36", Some("?1"), "mobile"),
            ("Mozilla/5.0 (Linux; Android 13; CUBOT P80) Chrome/126.0 Mobile Safari/537.36", None, "mobile"),
            ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", None, "bot"),
            (
                "Mozilla/5.0 (Linux; Android 6.0.1; Nexus 5X) Mobile Safari/537.36 (compatible; Googlebot/2.1)",
                Some("?1"),
                "bot",
            ),
            ("curl/8.5.0", None, "desktop"),
            ("", Some("?0"), "desktop"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::USER_AGENT, HeaderValue::from_static(agent));
            if let Some(mobile) = mobile {
                headers.insert(SEC_CH_UA_MOBILE, HeaderValue::from_static(mobile));
            }
            assert_eq!(class(&headers), expected, "{agent}");
        }
        assert_eq!(class(&HeaderMap::new()), "desktop");
    }
}
