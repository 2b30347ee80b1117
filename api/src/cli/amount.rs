//! What people write on the command line: sizes as docker means them, variables, pairs of paths.

use std::time::Duration;

use ampoule_client::types::Writable;

/// Room of a writable path that is named without a size, in bytes.
const WRITABLE_BYTES: u64 = 64 << 20;

/// Bytes from `64m`, `1.5g`, `512k`, `100` or `1GiB`: units are powers of 1024, as docker means them.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let split = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "ki" | "kib" => 10,
        "m" | "mb" | "mi" | "mib" => 20,
        "g" | "gb" | "gi" | "gib" => 30,
        "t" | "tb" | "ti" | "tib" => 40,
        _ => return Err(format!("`{unit}` is no unit of size; write k, m, g or t, as in 64m")),
    };
    let wrong = || format!("`{text}` is no size; write a number and a unit, as in 64m");
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_shl(shift).filter(|bytes| bytes >> shift == whole).ok_or_else(wrong);
    }
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * f64::from(2_u32).powi(shift.cast_signed());
    // Sizes with a fraction are far below what a double holds exactly.
    if bytes < 9e15 { Ok(bytes.round() as u64) } else { Err(wrong()) }
}

/// A number of bytes as people read it.
pub(super) fn shown_size(bytes: u64) -> String {
    const UNITS: [(u32, &str); 4] = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    for (shift, unit) in UNITS {
        if bytes >> shift > 0 {
            return format!("{:.1} {unit}", bytes as f64 / (1_u64 << shift) as f64);
        }
    }
    format!("{bytes} B")
}

/// Processors from `0.5` or `2`.
pub(super) fn processors(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(count) if count.is_finite() && count > 0.0 => Ok(count),
        _ => Err(format!("`{text}` is no number of processors, as in 0.5")),
    }
}

/// A time above zero, as in `10s` or `1m 30s`.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| format!("{error}; write a time as in 10s or 1m"))?;
    if time.is_zero() { Err("it must be above zero".to_owned()) } else { Ok(time) }
}

/// A variable: `NAME=value`, or `NAME` alone for the value that it has here, if any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) value: Option<String>,
}

pub(super) fn variable(text: &str) -> Result<Variable, String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    if name.is_empty() {
        return Err(format!("`{text}` has no name; write NAME=value or NAME"));
    }
    Ok(Variable { name: name.to_owned(), value })
}

/// A label: `key=value`.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is no label; write key=value")),
    }
}

/// A file or folder of this machine, and where it goes in the sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Transfer {
    pub(super) source: String,
    pub(super) target: String,
}

/// `SRC:DST`, split at the last colon, so that a source may have some.
pub(super) fn transfer(text: &str) -> Result<Transfer, String> {
    match text.rsplit_once(':') {
        Some((source, target)) if !source.is_empty() && !target.is_empty() => {
            Ok(Transfer { source: source.to_owned(), target: target.to_owned() })
        }
        _ => Err(format!("`{text}` is not SRC:DST, as in src:/work/src")),
    }
}

/// `PATH` or `PATH:SIZE`.
pub(super) fn writable(text: &str) -> Result<Writable, String> {
    let (path, size_bytes) = match text.rsplit_once(':') {
        Some((path, amount)) => (path, size(amount)?),
        None => (text, WRITABLE_BYTES),
    };
    if !path.starts_with('/') {
        return Err(format!("`{path}` is not an absolute path"));
    }
    Ok(Writable { path: path.to_owned(), size_bytes, inodes: None })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_as_docker_means_them() {
        for (text, expected) in [
            ("0", Some(0)),
            ("100", Some(100)),
            ("100b", Some(100)),
            ("64m", Some(64 << 20)),
            ("64M", Some(64 << 20)),
            ("64MiB", Some(64 << 20)),
            ("64mb", Some(64 << 20)),
            ("1.5g", Some(3 << 29)),
            ("0.5k", Some(512)),
            ("2t", Some(2 << 40)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551615k", None),
            ("99999999999t", None),
            ("", None),
            ("m", None),
            ("-1m", None),
            ("64x", None),
            ("6 4m", None),
            ("1.2.3m", None),
            ("1e3", None),
        ] {
            assert_eq!(size(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_with_one_digit() {
        for (bytes, expected) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (64 << 20, "64.0 MiB"), (3 << 40, "3.0 TiB")]
        {
            assert_eq!(shown_size(bytes), expected);
        }
    }

    #[test]
    fn variables_labels_and_transfers_are_split_where_people_expect() {
        assert_eq!(variable("A=b=c"), Ok(Variable { name: "A".to_owned(), value: Some("b=c".to_owned()) }));
        assert_eq!(variable("A="), Ok(Variable { name: "A".to_owned(), value: Some(String::new()) }));
        assert_eq!(variable("A"), Ok(Variable { name: "A".to_owned(), value: None }));
        assert!(variable("=b").is_err());
        assert_eq!(label("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(label("a").is_err());
        assert_eq!(transfer("a:b:/c"), Ok(Transfer { source: "a:b".to_owned(), target: "/c".to_owned() }));
        assert!(transfer("a").is_err() && transfer("a:").is_err() && transfer(":b").is_err());
    }

    #[test]
    fn a_writable_path_is_absolute_and_may_have_a_size() {
        assert_eq!(writable("/out").map(|writable| writable.size_bytes), Ok(WRITABLE_BYTES));
        assert_eq!(
            writable("/out:1k").map(|writable| (writable.path, writable.size_bytes)),
            Ok(("/out".to_owned(), 1024))
        );
        assert!(writable("out").is_err() && writable("/out:x").is_err());
    }

    #[test]
    fn times_and_processors_are_above_zero() {
        assert_eq!(time("1m 30s"), Ok(Duration::from_secs(90)));
        assert!(time("0s").is_err() && time("ten").is_err());
        assert_eq!(processors("0.5"), Ok(0.5));
        for text in ["0", "-1", "nan", "inf", "two"] {
            assert!(processors(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_them_panic(text in "\\PC{0,12}") {
            let _ = (size(&text), processors(&text), time(&text), variable(&text), transfer(&text), writable(&text));
        }

        #[test]
        fn whole_sizes_are_exact(number in 0_u64..1 << 20, unit in 0_u32..4) {
            let text = format!("{number}{}", ["", "k", "m", "g"][unit as usize]);
            prop_assert_eq!(size(&text), Ok(number << (10 * unit)));
        }
    }
}
