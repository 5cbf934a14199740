//! `strftime_now`: the date as templates ask for it.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

const DAY_S: i64 = 86_400;

/// The system's clock in seconds since 1970, UTC.
pub(super) fn now_s() -> i64 {
    // A clock before 1970 is wrong; 1970 is as good an answer as any.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(0))
}

/// Year, month from 1, day from 1 of a day counted from 1970-01-01, in the Gregorian calendar.
///
/// Source: `civil_from_days`, <https://howardhinnant.github.io/date_algorithms.html>. Years begin in March there, so
/// that the leap day is a year's last.
fn civil(days: i64) -> (i64, usize, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month as usize, day)
}

/// First day of `year`, counted from 1970-01-01.
fn first_day(year: i64) -> i64 {
    let past = year - 1;
    past * 365 + past.div_euclid(4) - past.div_euclid(100) + past.div_euclid(400) - 719_162
}

/// `format` with the fields of `strftime` replaced, for `now_s` seconds since 1970.
pub(super) fn strftime(format: &str, now_s: i64) -> Result<String, Error> {
    // Far beyond any date, and far from overflow.
    let now_s = now_s.clamp(-DAY_S * 3_000_000, DAY_S * 3_000_000);
    let (days, second) = (now_s.div_euclid(DAY_S), now_s.rem_euclid(DAY_S));
    let (year, month, day) = civil(days);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };
    let weekday = (days + 4).rem_euclid(7) as usize;
    let (weekday, month_name) = (DAYS[weekday], MONTHS[month - 1]);
    let mut output = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            output.push(c);
            continue;
        }
        let mut field = chars.next();
        let padded = field != Some('-');
        if !padded {
            field = chars.next();
        }
        let number = |value: i64, width: usize| {
            if padded { format!("{value:0width$}") } else { value.to_string() }
        };
        output.push_str(&match field {
            Some('Y') => year.to_string(),
            Some('y') => number(year.rem_euclid(100), 2),
            Some('m') => number(month as i64, 2),
            Some('d') => number(day, 2),
            Some('e') => format!("{day:2}"),
            Some('j') => number(days - first_day(year) + 1, 3),
            Some('H') => number(hour, 2),
            Some('I') => number(hour12, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second % 60, 2),
            Some('p') => (if hour < 12 { "AM" } else { "PM" }).to_string(),
            Some('A') => weekday.to_string(),
            Some('a') => weekday[..3].to_string(),
            Some('B') => month_name.to_string(),
            Some('b' | 'h') => month_name[..3].to_string(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{:02}", second % 60),
            Some('%') => "%".to_string(),
            other => {
                let message = format!("strftime_now: unsupported field %{}", other.map_or(String::new(), String::from));
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        });
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        // Right sides: time.strftime(format, time.gmtime(seconds)) of CPython 3.
        let cases = [
            (0, "%d %b %Y", "01 Jan 1970"),
            (951_782_400, "%F %j %A", "2000-02-29 060 Tuesday"),
            (1_735_689_599, "%Y-%m-%d %H:%M:%S %j", "2024-12-31 23:59:59 366"),
            (1_735_689_600, "%a, %e %B %y %I %p", "Wed,  1 January 25 12 AM"),
            (-1, "%F %T", "1969-12-31 23:59:59"),
            (4_107_542_400, "%-d.%-m.%Y 100%%", "1.3.2100 100%"),
        ];
        for (seconds, format, text) in cases {
            assert_eq!(strftime(format, seconds).unwrap(), text);
        }
        for bad in ["%", "%-", "%Q", "%é"] {
            assert!(strftime(bad, 0).is_err(), "{bad}");
        }
        assert!(strftime("%Y", i64::MIN).is_ok() && strftime("%Y", i64::MAX).is_ok());
    }
}
