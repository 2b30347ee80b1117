//! Breaks the contract about builds in the way that its settings name: for the host's tests, never to be bound.

use ampoule_policy::build::{BuildPolicy, Change, Request, Verdict};
use serde::Deserialize;

struct Misbehaving;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Settings {
    does: Deed,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Deed {
    Spin,
    Bomb,
    Panic,
    UnknownChange,
    BadDigest,
    NoReason,
}

impl BuildPolicy for Misbehaving {
    type Settings = Settings;

    fn review_plan(build: &Request, settings: &Settings) -> Verdict {
        match settings.does {
            Deed::Spin => loop {
                std::hint::black_box(build.target);
            },
            Deed::Bomb => bomb(),
            Deed::Panic => panic!("the target is {}", build.target),
            Deed::UnknownChange => Verdict::change(vec![Change::Other(("colour".into(), "\"red\"".into()))]),
            Deed::BadDigest => {
                let pin = |reference: &str| Change::PinDigest((reference.to_owned(), "sha256:1".to_owned()));
                Verdict::change(build.images().iter().map(|(_, image)| pin(&image.reference)).collect())
            }
            Deed::NoReason => Verdict::deny("no-reason", 0, ""),
        }
    }
}

ampoule_policy::build_policy!(Misbehaving);

fn bomb() -> Verdict {
    let mut all = Vec::new();
    loop {
        // Not filled: that would use up the fuel first.
        all.push(std::hint::black_box(Vec::<u8>::with_capacity(1 << 20)));
    }
}
