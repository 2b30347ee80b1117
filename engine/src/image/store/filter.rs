//! Which images are meant: patterns of names, labels, times. Pure; what is asked of the store was looked up before.

use globset::{GlobBuilder, GlobMatcher};
use jiff::Timestamp;

use super::ImageSummary;
use crate::image::reference::Reference;

/// Most conditions of one question.
const CONDITIONS_MAX: usize = 64;
/// Longest condition, in bytes.
const CONDITION_BYTES_MAX: usize = 1024;

/// Why a condition cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The pattern is none.
    #[error("`{pattern}` is not a pattern: {problem}\nhint: `debian:*` and `*/app` are patterns")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A label without a name.
    #[error("`{0}` names no label\nhint: write `key` or `key=value`")]
    Label(String),
    /// There are too many, or one is too long.
    #[error("at most {CONDITIONS_MAX} conditions of {CONDITION_BYTES_MAX} bytes each can be given")]
    TooMany,
}

/// A label that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelCondition {
    /// Its name.
    pub name: String,
    /// Its value; any when there is none.
    pub value: Option<String>,
}

impl LabelCondition {
    /// Takes `key` or `key=value`.
    ///
    /// # Errors
    /// A text without a key, or one that is too long.
    pub fn parse(text: &str) -> Result<LabelCondition, FilterError> {
        if text.len() > CONDITION_BYTES_MAX {
            return Err(FilterError::TooMany);
        }
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if name.is_empty() {
            return Err(FilterError::Label(text.to_owned()));
        }
        Ok(LabelCondition { name: name.to_owned(), value })
    }

    /// Whether an image with these labels is meant.
    pub fn fits(&self, labels: &std::collections::BTreeMap<String, String>) -> bool {
        labels.get(&self.name).is_some_and(|found| self.value.as_ref().is_none_or(|wanted| wanted == found))
    }
}

/// A pattern of names: `*` and `?` do not cross a slash, `**` does.
#[derive(Clone, Debug)]
pub struct NamePattern(GlobMatcher);

impl NamePattern {
    /// Takes a pattern.
    ///
    /// # Errors
    /// A text that is no pattern, or is too long.
    pub fn parse(text: &str) -> Result<NamePattern, FilterError> {
        if text.len() > CONDITION_BYTES_MAX {
            return Err(FilterError::TooMany);
        }
        let glob = GlobBuilder::new(text).literal_separator(true).build();
        let problem = |error: globset::Error| FilterError::Pattern {
            pattern: crate::image::archive::printable(text.as_bytes()),
            problem: error.kind().to_string(),
        };
        Ok(NamePattern(glob.map_err(problem)?.compile_matcher()))
    }

    /// Whether it fits a name as people write it or in full, with its tag or without.
    fn fits(&self, name: &str) -> bool {
        let Ok(reference) = Reference::parse(name) else { return false };
        let without_tag = |name: &str| {
            let suffix = reference.tag().map(|tag| format!(":{tag}")).unwrap_or_default();
            name.strip_suffix(&suffix).unwrap_or(name).to_owned()
        };
        let (short, full) = (reference.to_string(), reference.canonical());
        [&without_tag(&short), &without_tag(&full), &short, &full].into_iter().any(|name| self.0.is_match(name))
    }
}

/// Which images are meant: those that fit one of the patterns and all other conditions.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Patterns of names; none means any name, or none.
    pub names: Vec<NamePattern>,
    /// Only those without a name, or only those with one.
    pub dangling: Option<bool>,
    /// Labels that all have to be there.
    pub labels: Vec<LabelCondition>,
    /// Labels none of which may be there.
    pub without_labels: Vec<LabelCondition>,
    /// Only those that were made before this time.
    pub before: Option<Timestamp>,
    /// Only those that were made after this time.
    pub since: Option<Timestamp>,
}

impl Filter {
    /// Says when there are more conditions than anybody needs.
    ///
    /// # Errors
    /// There are.
    pub fn check(&self) -> Result<(), FilterError> {
        let count = self.names.len() + self.labels.len() + self.without_labels.len();
        if count > CONDITIONS_MAX { Err(FilterError::TooMany) } else { Ok(()) }
    }

    /// Whether an image is meant. One whose time nobody knows is neither before nor after any.
    pub fn fits(&self, image: &ImageSummary) -> bool {
        let name = image.reference.as_deref();
        let time = image.time();
        (self.names.is_empty() || name.is_some_and(|name| self.names.iter().any(|pattern| pattern.fits(name))))
            && self.dangling.is_none_or(|dangling| dangling == name.is_none())
            && self.labels.iter().all(|label| label.fits(&image.labels))
            && !self.without_labels.iter().any(|label| label.fits(&image.labels))
            && self.before.is_none_or(|before| time.is_some_and(|time| time < before))
            && self.since.is_none_or(|since| time.is_some_and(|time| time > since))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn image(reference: Option<&str>, created: Option<&str>) -> ImageSummary {
        ImageSummary {
            reference: reference.map(str::to_owned),
            digest: "sha256:x".into(),
            size_bytes: 1,
            layers: 1,
            created: created.map(str::to_owned),
            imported_unix: Some(100),
            damage: None,
            labels: BTreeMap::from([("a".to_owned(), "1".to_owned())]),
            skipped: None,
        }
    }

    fn check_name(pattern: &str, name: &str, expected: bool) {
        let filter = Filter { names: vec![NamePattern::parse(pattern).unwrap()], ..Filter::default() };
        assert_eq!(filter.fits(&image(Some(name), None)), expected, "{pattern} {name}");
    }

    #[test]
    fn names_fit_as_docker_users_expect() {
        for (pattern, name, expected) in [
            ("debian", "debian:12", true),
            ("debian:12", "debian:12", true),
            ("debian:*", "debian:12", true),
            ("deb*", "debian:12", true),
            ("deb", "debian:12", false),
            ("*", "debian:12", true),
            ("*", "user/app:1", false),
            ("*/*", "user/app:1", true),
            ("*/app:?", "user/app:1", true),
            ("docker.io/library/debian", "debian:12", true),
            ("host:5000/*/*", "host:5000/a/b:1", true),
            ("**/b", "host:5000/a/b:1", true),
            ("*:13", "debian:12", false),
        ] {
            check_name(pattern, name, expected);
        }
        assert!(NamePattern::parse("a[").is_err() && NamePattern::parse(&"a".repeat(2000)).is_err());
        let filter = Filter { names: vec![NamePattern::parse("**").unwrap()], ..Filter::default() };
        assert!(!filter.fits(&image(None, None)), "what has no name fits no pattern");
    }

    #[test]
    fn labels_times_and_names_have_to_fit_together() {
        let fits = |filter: Filter| filter.fits(&image(None, Some("2026-01-02T00:00:00Z")));
        let label = |text| vec![LabelCondition::parse(text).unwrap()];
        let time = |text: &str| Some(text.parse().unwrap());
        assert!(fits(Filter { dangling: Some(true), labels: label("a=1"), ..Filter::default() }));
        assert!(!fits(Filter { dangling: Some(false), ..Filter::default() }));
        assert!(!fits(Filter { labels: label("a=2"), ..Filter::default() }));
        assert!(fits(Filter { labels: label("a"), ..Filter::default() }));
        assert!(!fits(Filter { without_labels: label("a"), ..Filter::default() }));
        assert!(fits(Filter { before: time("2026-01-03T00:00:00Z"), ..Filter::default() }));
        assert!(!fits(Filter { before: time("2026-01-02T00:00:00Z"), ..Filter::default() }));
        assert!(fits(Filter { since: time("2026-01-01T00:00:00Z"), ..Filter::default() }));
        assert!(LabelCondition::parse("=x").is_err());
        let imported = image(None, None);
        let filter = Filter { before: Some(Timestamp::from_second(101).unwrap()), ..Filter::default() };
        assert!(filter.fits(&imported), "without a time of its own, that of its arrival counts");
    }

    proptest! {
        #[test]
        fn one_more_condition_never_brings_more_images(pattern in "[a-z*]{0,4}", at in 0i64..200, dangling in any::<bool>()) {
            let Ok(pattern) = NamePattern::parse(&pattern) else { return Ok(()) };
            let images = [image(None, None), image(Some("a:1"), None), image(Some("b/c:2"), Some("1970-01-01T00:02:00Z"))];
            let loose = Filter { before: Timestamp::from_second(at).ok(), ..Filter::default() };
            let strict = Filter { names: vec![pattern], dangling: Some(dangling), ..loose.clone() };
            for image in &images {
                prop_assert!(!strict.fits(image) || loose.fits(image));
            }
        }

        #[test]
        fn no_pattern_makes_it_panic(pattern in "\\PC{0,40}", name in "[a-z/:]{0,20}") {
            if let Ok(pattern) = NamePattern::parse(&pattern) {
                pattern.fits(&name);
            }
        }
    }
}
