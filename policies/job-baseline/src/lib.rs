//! What every job has to keep to: which images, how much of everything, which variables, whose rights.
//! README.md lists the settings.

mod glob;
mod settings;

use ampoule_policy::{Change, Policy, Request, Verdict};
use settings::{LIMITS, Settings};

struct JobBaseline;

impl Policy for JobBaseline {
    type Settings = Settings;

    fn check(settings: &Settings) -> Result<(), String> {
        settings.check()
    }

    fn admit(job: &Request, settings: &Settings) -> Verdict {
        let refuse = [refuse_image, refuse_variable, refuse_limit];
        let refusal = refuse.iter().find_map(|refuse| refuse(job, settings));
        refusal.unwrap_or_else(|| Verdict::change(changes(job, settings)))
    }
}

ampoule_policy::policy!(JobBaseline);

fn refuse_image(job: &Request, settings: &Settings) -> Option<Verdict> {
    let reference = &job.image.reference;
    if settings.images.iter().any(|pattern| glob::is_match(pattern, reference)) {
        return None;
    }
    let refusal =
        Verdict::deny("image-not-allowed", format!("the image `{reference}` is not on the list of this service"));
    Some(refusal.hint(format!("allowed are: {}", settings.images.join(", "))))
}

fn refuse_variable(job: &Request, settings: &Settings) -> Option<Verdict> {
    let is_forbidden = |name: &str| settings.forbidden_env.iter().any(|pattern| glob::is_match(pattern, name));
    let (name, _) = job.env.iter().find(|(name, _)| is_forbidden(name))?;
    let refusal = Verdict::deny("variable-forbidden", format!("the environment variable `{name}` cannot be set here"));
    Some(refusal.hint(format!("leave `{name}` out of `env`, or use an image that does not set it")))
}

fn refuse_limit(job: &Request, settings: &Settings) -> Option<Verdict> {
    LIMITS.iter().find_map(|limit| {
        let requested = (limit.requested)(&job.requested_limits)?;
        let ceiling = (limit.set)(&settings.ceilings).filter(|ceiling| requested > *ceiling)?;
        let name = limit.name;
        let reason = format!("the limit `{name}` of {requested} is above {ceiling}, the most that this service gives");
        let refusal = Verdict::deny("limit-above-ceiling", reason);
        Some(refusal.hint(format!("ask for {ceiling} at most, or leave `{name}` out")))
    })
}

/// What the client left open gets our default; whatever else is above a ceiling is lowered to it.
fn changes(job: &Request, settings: &Settings) -> Vec<Change> {
    let mut changes = Vec::new();
    for limit in LIMITS {
        let applied = (limit.applied)(&job.limits);
        let wanted = match (limit.requested)(&job.requested_limits) {
            // Not always what was asked for: an earlier policy may have changed it since.
            Some(_) => applied,
            None => (limit.set)(&settings.defaults).unwrap_or(applied),
        };
        let value = (limit.set)(&settings.ceilings).map_or(wanted, |ceiling| wanted.min(ceiling));
        if value != applied {
            changes.push(Change::SetLimit((limit.limit, value)));
        }
    }
    if let Some(user) = settings.user.as_ref().filter(|user| **user != job.user) {
        changes.push(Change::SetUser(user.clone()));
    }
    changes
}
