//! What is worth saying about a build that could be made: Docker's build checks under their own names, as warnings, and
//! the practices that every guide to Dockerfiles agrees on, as advice. Nothing here changes what is built.

use std::collections::BTreeSet;

use serde::Serialize;

pub use rules::{Rule, Severity};

use super::context::Context;
use super::dockerfile::{Checks, Dockerfile};
use super::plan::{Options, Plan};
use super::source::{Complaint, Position, Source, Span};

mod docker;
mod packages;
mod practice;
mod rules;

/// Something worth saying about a place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Where.
    pub span: Span,
    /// Which rule says so.
    pub rule: Rule,
    /// What, as a sentence about this place.
    pub message: String,
}

/// All findings of a build, in the order of their places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The findings.
    pub findings: Vec<Finding>,
    /// Whether the Dockerfile says that a warning is an error.
    pub warnings_are_errors: bool,
}

/// A finding as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Told {
    /// Name of the rule.
    pub rule: &'static str,
    /// `warning` or `advice`.
    pub severity: Severity,
    /// What.
    pub message: String,
    /// What to do.
    pub hint: &'static str,
    /// Where more is said, for Docker's rules.
    pub url: Option<String>,
    /// Where it starts.
    pub position: Position,
    /// The line there.
    pub text: String,
}

/// All that a check looks at.
struct Case<'a> {
    dockerfile: &'a Dockerfile,
    options: &'a Options,
    plan: &'a Plan,
    context: Option<&'a Context>,
    findings: Vec<(usize, Finding)>,
}

/// Checks a build. Without a context, what depends on its files is not checked.
pub fn check(dockerfile: &Dockerfile, options: &Options, plan: &Plan, context: Option<&Context>) -> Report {
    let mut case = Case { dockerfile, options, plan, context, findings: Vec::new() };
    case.docker();
    case.practice();
    let global = dockerfile.directives.checks.as_ref().map(|checks| checks.value.clone()).unwrap_or_default();
    let is_wanted = |index: usize, rule: Rule| {
        let comments = dockerfile.instructions.get(index).map(|instruction| instruction.comments.as_slice());
        let local = comments.unwrap_or_default().iter().find_map(|comment| Checks::of_comment(comment));
        let all: Vec<&Checks> = std::iter::once(&global).chain(&local).collect();
        let names = |list: &[String]| list.iter().any(|name| name == "all" || name == rule.name());
        if rule.is_experimental() {
            return all.iter().any(|checks| names(&checks.experimental));
        }
        !all.iter().any(|checks| names(&checks.skip))
    };
    // Triggers are planned once for every stage on top of theirs; what is said of them is said once.
    let findings: BTreeSet<Finding> = case
        .findings
        .into_iter()
        .filter(|(index, finding)| is_wanted(*index, finding.rule))
        .map(|(_, finding)| finding)
        .collect();
    Report { findings: findings.into_iter().collect(), warnings_are_errors: global.error }
}

impl Case<'_> {
    fn find(&mut self, instruction: usize, span: Span, rule: Rule, message: impl Into<String>) {
        self.findings.push((instruction, Finding { span, rule, message: message.into() }));
    }
}

impl Report {
    /// How many findings are warnings.
    pub fn warnings(&self) -> usize {
        self.findings.iter().filter(|finding| finding.rule.severity() == Severity::Warning).count()
    }

    /// Whether the Dockerfile makes an error of what was found.
    pub fn is_error(&self) -> bool {
        self.warnings_are_errors && !self.findings.is_empty()
    }

    /// The findings as they travel.
    pub fn told(&self, source: &Source) -> Vec<Told> {
        let tell = |finding: &Finding| {
            let position = source.position(finding.span.start);
            Told {
                rule: finding.rule.name(),
                severity: finding.rule.severity(),
                message: finding.message.clone(),
                hint: finding.rule.mend(),
                url: finding.rule.url(),
                position,
                text: source.line(position.line).to_owned(),
            }
        };
        self.findings.iter().map(tell).collect()
    }

    /// The findings for people: rule, sentence, how to mend it, the lines.
    pub fn render(&self, source: &Source) -> String {
        let mut text = summary(self.warnings(), self.findings.len() - self.warnings());
        for finding in &self.findings {
            let rule = finding.rule;
            let kind = if rule.severity() == Severity::Warning { "WARNING" } else { "ADVICE" };
            let url = rule.url().map(|url| format!(" - {url}")).unwrap_or_default();
            text += &format!("\n{kind}: {}{url}\n{}\nhint: {}\n", rule.name(), finding.message, rule.mend());
            text += &source.excerpt(finding.span);
        }
        text
    }
}

fn summary(warnings: usize, advice: usize) -> String {
    let count = |count: usize, what: &str, plural: &str| match count {
        0 => None,
        1 => Some(format!("1 {what} has been found")),
        _ => Some(format!("{count} {plural} have been found")),
    };
    let warned = count(warnings, "warning", "warnings").unwrap_or_else(|| "no warnings found".to_owned());
    let advised = match advice {
        0 => String::new(),
        1 => ", and 1 piece of advice".to_owned(),
        _ => format!(", and {advice} pieces of advice"),
    };
    format!("Check complete, {warned}{advised}.\n")
}

/// An error for people: what is wrong, how to mend it, the lines.
pub fn render_error(complaint: &Complaint, source: &Source) -> String {
    let hint = complaint.hint.as_ref().map(|hint| format!("hint: {hint}\n")).unwrap_or_default();
    format!("error: {}\n{hint}{}", complaint.message, source.excerpt(complaint.span))
}
