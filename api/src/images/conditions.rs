//! Which images a query means.

use std::time::Duration;

use ampoule_engine::image::store::{Filter, FilterError, LabelCondition, NamePattern};
use jiff::Timestamp;

use super::{Images, told};
use crate::problem::{INVALID_QUERY, Refused};
use crate::request::Fields;

/// Takes the conditions out of a query; what else is in it stays.
pub(super) fn filter(images: &Images, fields: &mut Fields) -> Result<Filter, Refused> {
    let wrong = |error: FilterError| told(INVALID_QUERY, &error);
    let labels = |texts: Vec<String>| texts.iter().map(|text| LabelCondition::parse(text)).collect::<Result<_, _>>();
    let patterns = fields.all("reference");
    let until = fields.one::<String>("until")?.map(|text| time(&text)).transpose()?;
    let before = fields.one::<String>("before")?.map(|reference| made(images, &reference)).transpose()?;
    let filter = Filter {
        names: patterns.iter().map(|text| NamePattern::parse(text)).collect::<Result<_, _>>().map_err(wrong)?,
        dangling: fields.one("dangling")?,
        labels: labels(fields.all("label")).map_err(wrong)?,
        without_labels: labels(fields.all("without_label")).map_err(wrong)?,
        before: [until, before].into_iter().flatten().min(),
        since: fields.one::<String>("since")?.map(|reference| made(images, &reference)).transpose()?,
    };
    filter.check().map_err(wrong)?;
    Ok(filter)
}

/// When an image was made that others are compared with.
fn made(images: &Images, reference: &str) -> Result<Timestamp, Refused> {
    let digest = images.resolve(reference)?.digest.clone();
    let found = images.store.list().into_iter().find(|image| image.digest == digest).and_then(|image| image.time());
    found.ok_or_else(|| Refused::new(INVALID_QUERY, format!("nobody knows when `{reference}` was made")))
}

/// A time, or how long ago.
fn time(text: &str) -> Result<Timestamp, Refused> {
    let ago = |duration: Duration| Timestamp::now().checked_sub(duration).ok();
    let found = text.parse().ok().or_else(|| humantime::parse_duration(text).ok().and_then(ago));
    found.ok_or_else(|| {
        Refused::new(INVALID_QUERY, format!("until: `{text}` is neither a time nor a duration"))
            .hint("write `2026-01-31T00:00:00Z`, or `24h` for a day ago")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_time_or_so_long_ago() {
        assert_eq!(time("2026-01-31T00:00:00Z").expect("a time").as_second(), 1_769_817_600);
        let ago = Timestamp::now().as_second() - time("24h").expect("a duration").as_second();
        assert!((86_395..=86_405).contains(&ago), "{ago}");
        assert!(time("yesterday").is_err() && time("").is_err());
    }
}
