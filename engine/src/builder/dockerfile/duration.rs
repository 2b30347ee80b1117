//! Durations as HEALTHCHECK has them: `30s`, `1m30s`, `1.5h`, `500ms`.

/// Units and their nanoseconds; longer names first, so that `ms` is not taken for `m`.
const UNITS: [(&str, f64); 8] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];
/// Longest duration, in nanoseconds: what 64 bits with a sign hold.
const NANOS_MAX: f64 = 9.2e18;

/// Nanoseconds of a duration that is not negative; `None` for what is none.
pub(super) fn nanos(text: &str) -> Option<u64> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let number: f64 = if number == "." { return None } else { number.parse().ok()? };
        let (unit, factor) = UNITS.iter().find(|(unit, _)| after.starts_with(unit))?;
        total += number * factor;
        rest = &after[unit.len()..];
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
    (!text.is_empty() && total < NANOS_MAX).then_some(total as u64)
}
