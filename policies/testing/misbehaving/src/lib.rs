//! Breaks the contract in the way that its settings name: for the host's tests, never to be bound.

use ampoule_policy::{Change, Level, Limit, Policy, Request, Verdict, log};
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
    /// The one that is in order: it allows.
    Nothing,
    Refuse,
    Spin,
    SpinWhenBound,
    Bomb,
    Panic,
    Recurse,
    Chatter,
    ZeroLimit,
    BadVariable,
    UnknownChange,
    NoReason,
    HugeAnswer,
    Remember,
}

impl Policy for Misbehaving {
    type Settings = Settings;

    fn check(settings: &Settings) -> Result<(), String> {
        match settings.does {
            Deed::SpinWhenBound => spin(),
            _ => Ok(()),
        }
    }

    fn admit(job: &Request, settings: &Settings) -> Verdict {
        match settings.does {
            Deed::Nothing | Deed::SpinWhenBound => Verdict::allow(),
            Deed::Refuse => Verdict::deny("told-to", "its settings say so").hint("change them"),
            Deed::Spin => spin(),
            Deed::Bomb => bomb(),
            Deed::Panic => panic!("the user is `{}`", job.user),
            Deed::Recurse => Verdict::allow().warn("depth", recurse(1).to_string()),
            Deed::Chatter => {
                (0..10_000).for_each(|number| log(Level::Debug, &format!("line {number} {}", "x".repeat(10_000))));
                Verdict::allow()
            }
            Deed::ZeroLimit => Verdict::change(vec![Change::SetLimit((Limit::MemoryBytes, 0))]),
            Deed::BadVariable => Verdict::change(vec![Change::SetEnv(("A=B".into(), "c".into()))]),
            Deed::UnknownChange => Verdict::change(vec![Change::Other(("colour".into(), "\"red\"".into()))]),
            Deed::NoReason => Verdict::deny("no-reason", ""),
            Deed::HugeAnswer => Verdict::deny("huge", "x".repeat(16 << 20)),
            Deed::Remember => remember(),
        }
    }
}

ampoule_policy::policy!(Misbehaving);

fn spin<T>() -> T {
    let mut number = 0_u64;
    loop {
        number = std::hint::black_box(number.wrapping_add(1));
    }
}

fn bomb() -> Verdict {
    let mut all = Vec::new();
    loop {
        // Not filled: that would use up the fuel first.
        all.push(std::hint::black_box(Vec::<u8>::with_capacity(1 << 20)));
    }
}

fn recurse(depth: u64) -> u64 {
    let here = std::hint::black_box([depth; 64]);
    if depth == 0 { 0 } else { recurse(depth.wrapping_add(1)).wrapping_add(here[3]) }
}

/// Refuses from its second call on, if an instance should ever be asked twice.
fn remember() -> Verdict {
    static CALLS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    match CALLS.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
        0 => Verdict::allow(),
        calls => Verdict::deny("remembered", format!("this instance was asked {calls} times before")),
    }
}
