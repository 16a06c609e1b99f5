//! HTTP dates (RFC 9110, 5.6.7), a little more lenient about case than the grammar.

use std::time::{Duration, SystemTime};

use http::header::AsHeaderName;
use http::{HeaderMap, HeaderValue};

/// The date in the one field `name`. `None` when the field is absent, repeated, or not a date.
#[must_use]
pub fn header(headers: &HeaderMap<HeaderValue>, name: impl AsHeaderName) -> Option<SystemTime> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next()?;
    if lines.next().is_some() {
        return None;
    }
    parse(first.to_str().ok()?)
}

/// Read an HTTP date: IMF-fixdate, RFC 850 or asctime. Names of days and months are taken in any case; spaces, dashes and the zone
/// are not negotiable, because a cache that guesses a date serves stale content.
#[must_use]
pub fn parse(text: &str) -> Option<SystemTime> {
    let text = text.trim_matches([' ', '\t']);
    // The parser below follows the grammar of each form by its first comma.
    match text.split_once(',') {
        None => asctime(text),
        Some((day, rest)) => {
            let rest = rest.strip_prefix(' ')?;
            if rest.contains("  ") || !rest.get(rest.len().checked_sub(4)?..)?.eq_ignore_ascii_case(" GMT") {
                return None;
            }
            if rest.contains('-') { rfc850(day, rest) } else { imf_fixdate(day, rest) }
        }
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn imf_fixdate(day: &str, rest: &str) -> Option<SystemTime> {
    if !is_name(day, &DAYS, 3) {
        return None;
    }
    let mut words = rest.split(' ');
    let date = civil(words.next()?, words.next()?, year(words.next()?)?, words.next()?)?;
    (words.count() == 1).then_some(date)
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`. Two digits of a year are read as 1970 to 2069.
fn rfc850(day: &str, rest: &str) -> Option<SystemTime> {
    if !is_name(day, &DAYS, usize::MAX) {
        return None;
    }
    let mut words = rest.split(' ');
    let mut parts = words.next()?.split('-');
    let (day, month, year) = (parts.next()?, parts.next()?, number(parts.next()?, 2)?);
    let century = if year < 70 { 2000 } else { 1900 };
    let date = civil(day, month, century + year, words.next()?)?;
    (parts.next().is_none() && words.count() == 1).then_some(date)
}

/// `Sun Nov  6 08:49:37 1994`
fn asctime(text: &str) -> Option<SystemTime> {
    let (day, month) = (text.get(..3)?, text.get(4..7)?);
    let (date, time, year_text) = (text.get(8..10)?, text.get(11..19)?, text.get(20..)?);
    let spaces = [3, 7, 10, 19].iter().all(|at| text.as_bytes()[*at] == b' ');
    if !spaces || !is_name(day, &DAYS, 3) {
        return None;
    }
    civil(&date.replace(' ', "0"), month, year(year_text)?, time)
}

const DAYS: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

fn is_name(text: &str, names: &[&str], length: usize) -> bool {
    names.iter().any(|name| text.eq_ignore_ascii_case(name.get(..length).unwrap_or(name)))
}

fn number(text: &str, digits: usize) -> Option<u64> {
    if text.len() != digits || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn year(text: &str) -> Option<u64> {
    number(text, 4)
}

/// Seconds since the epoch of a day, month name, year and `hh:mm:ss`. Dates before 1970 read as 1970: long ago is long ago.
fn civil(day: &str, month: &str, year: u64, time: &str) -> Option<SystemTime> {
    let day = number(day, 2)?;
    let month = (MONTHS.iter().position(|name| month.eq_ignore_ascii_case(name))? + 1) as u64;
    let mut parts = time.split(':');
    let (hour, minute, second) = (number(parts.next()?, 2)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    if parts.next().is_some() || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        2 => 28 + u64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if day == 0 || day > days {
        return None;
    }
    if year < 1970 {
        return Some(SystemTime::UNIX_EPOCH);
    }

    // Days from the civil date, counting years from March so that the leap day comes last.
    let (years, months) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let since_zero = 365 * years + years / 4 - years / 100 + years / 400 + (153 * months + 2) / 5 + day - 1;
    let since_epoch = since_zero - 719_468;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(since_epoch * 86_400 + hour * 3_600 + minute * 60 + second))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9110, 5.6.7: three forms of one moment, and what is none of them.
    #[test]
    fn forms_of_a_date() {
        let moment = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (text, expected) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(moment)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(moment)),
            ("Sun Nov  6 08:49:37 1994", Some(moment)),
            ("sUN, 06 nOV 1994 08:49:37 gmt", Some(moment)),
            (" Sun, 06 Nov 1994 08:49:37 GMT ", Some(moment)),
            ("Sun, 06  Nov 1994 08:49:37 GMT", None),
            ("Sun,  06 Nov 1994 08:49:37 GMT", None),
            ("Sun,06 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49:37 UTC", None),
            ("Sun, 06 Nov 1994 08:49:37", None),
            ("Sun, 06 Nov 1994 08:49:37 +0000", None),
            ("Sun, 06 Nov 94 08:49:37 GMT", None),
            ("Sun 06-Nov-1994 08:49:37 GMT", None),
            ("Sun, 31 Feb 1994 08:49:37 GMT", None),
            ("Sun, 6 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 24:49:37 GMT", None),
            ("784111777", None),
            ("0", None),
            ("-1", None),
            ("", None),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(SystemTime::UNIX_EPOCH)),
            ("Thu, 01 Jan 1801 00:00:00 GMT", Some(SystemTime::UNIX_EPOCH)),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn every_day_of_four_centuries_reads_back() {
        for day in (0..146_097).step_by(13) {
            let moment = SystemTime::UNIX_EPOCH + Duration::from_secs(day * 86_400 + 3_661);
            assert_eq!(parse(&httpdate::fmt_http_date(moment)), Some(moment));
        }
    }

    #[test]
    fn a_repeated_field_is_no_date() {
        let mut headers = HeaderMap::new();
        headers.append("expires", HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT"));
        assert!(header(&headers, "expires").is_some());
        headers.append("expires", HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT"));
        assert!(header(&headers, "expires").is_none());
    }
}
