//! What policies say about a build, for people: whose word it is, what, how to mend it, the lines.

use ampoule_engine::builder::source::Source;
use ampoule_plugins::{BuildChange, BuildDecision};

/// The whole decision; it begins with what it came to.
pub(super) fn render(decision: &BuildDecision, source: &Source) -> String {
    let asked = match decision.verdicts.len() {
        0 => "no policy is asked about builds".to_owned(),
        1 => "1 policy was asked".to_owned(),
        count => format!("{count} policies were asked"),
    };
    let outcome = if decision.denial.is_some() { "the build is refused" } else { "the build is allowed" };
    let mut text = format!("\nPolicies: {asked}, {outcome}.\n");
    if let Some(denial) = &decision.denial {
        let hint = if denial.hint.is_empty() { String::new() } else { format!("hint: {}\n", denial.hint) };
        text += &format!("\nDENIED: {} ({})\n{}\n{hint}", denial.policy, denial.code, denial.reason);
        text += &lines(source, denial.line);
    }
    for warning in &decision.warnings {
        text += &format!("\nPOLICY: {} ({})\n{}\n", warning.policy, warning.code, warning.message);
        text += &lines(source, warning.line);
    }
    if !decision.changes.is_empty() {
        text += "\nCHANGED by policies:\n";
        text.extend(decision.changes.iter().map(|change| format!("  {}\n", sentence(change))));
    }
    text
}

fn lines(source: &Source, line: u32) -> String {
    let span = usize::try_from(line).ok().and_then(|line| source.line_span(line));
    span.map(|span| source.excerpt(span)).unwrap_or_default()
}

fn sentence(change: &BuildChange) -> String {
    match change {
        BuildChange::AddLabel { name, value } => format!("the label {name} is set to `{value}`"),
        BuildChange::PinDigest { reference, digest } => format!("{reference} is pinned to {digest}"),
        BuildChange::ForceUser(user) => format!("the image runs as {user}"),
    }
}
