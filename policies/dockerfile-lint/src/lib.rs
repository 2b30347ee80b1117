//! Rules of a good Dockerfile, each refused, warned of or left out. README.md lists them.

mod rules;
mod shell;

use std::collections::BTreeMap;

use ampoule_policy::build::{BuildPolicy, Request, Verdict};
use rules::{Finding, RULES};
use serde::Deserialize;

/// Most warnings of one answer; the contract allows 32.
const WARNINGS_MAX: usize = 30;

struct DockerfileLint;

/// What is made of a finding.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum Level {
    /// The build is refused.
    Deny,
    /// It is told.
    #[default]
    Warn,
    /// Nothing.
    Off,
}

/// The table `[policy.settings]`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Settings {
    /// Level of every rule that is not named.
    #[serde(default)]
    default: Level,
    /// Levels by rule.
    #[serde(default)]
    rules: BTreeMap<String, Level>,
}

impl Settings {
    fn level(&self, rule: &str) -> Level {
        self.rules.get(rule).copied().unwrap_or(self.default)
    }
}

impl BuildPolicy for DockerfileLint {
    type Settings = Settings;

    fn check(settings: &Settings) -> Result<(), String> {
        let is_known = |name: &str| RULES.iter().any(|rule| rule.name == name);
        match settings.rules.keys().find(|name| !is_known(name)) {
            Some(name) => {
                let names: Vec<&str> = RULES.iter().map(|rule| rule.name).collect();
                Err(format!("`rules.{name}` is no rule; there are {}", names.join(", ")))
            }
            None => Ok(()),
        }
    }

    fn review_plan(build: &Request, settings: &Settings) -> Verdict {
        let findings: Vec<Finding> = rules::findings(build);
        let at = |level: Level| findings.iter().filter(move |finding| settings.level(finding.rule) == level);
        let denied = at(Level::Deny).next();
        let mut verdict = match denied {
            Some(finding) => {
                Verdict::deny(finding.rule, finding.line, finding.message.clone()).hint(rules::mend(finding.rule))
            }
            None => Verdict::allow(),
        };
        // All that would refuse is told at once, and not one with every attempt.
        let told: Vec<&Finding> = at(Level::Deny).skip(1).chain(at(Level::Warn)).collect();
        for finding in told.iter().take(WARNINGS_MAX) {
            verdict = verdict.warn(finding.rule, finding.line, finding.message.clone());
        }
        match told.len().saturating_sub(WARNINGS_MAX) {
            0 => verdict,
            more => verdict.warn("more-findings", 0, format!("{more} more findings are not shown")),
        }
    }
}

ampoule_policy::build_policy!(DockerfileLint);
