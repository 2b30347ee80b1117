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
        let refusal = refuse_image(job, settings).or_else(|| refuse_variable(job, settings));
        if let Some(refusal) = refusal {
            return refusal;
        }
        match limits(job, settings) {
            Ok(mut changes) => {
                if let Some(user) = settings.user.as_ref().filter(|user| **user != job.user) {
                    changes.push(Change::SetUser(user.clone()));
                }
                Verdict::change(changes)
            }
            Err(refusal) => refusal,
        }
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

/// What the client left open gets our default, lowered to the ceiling; what it asked for is refused above the ceiling.
fn limits(job: &Request, settings: &Settings) -> Result<Vec<Change>, Verdict> {
    let mut changes = Vec::new();
    for limit in LIMITS {
        let applied = (limit.applied)(&job.limits);
        let ceiling = (limit.set)(&settings.ceilings);
        let wanted = match (limit.requested)(&job.requested_limits) {
            Some(requested) => match ceiling.filter(|ceiling| requested > *ceiling) {
                Some(ceiling) => return Err(above(limit.name, requested, ceiling)),
                // An earlier policy may have raised it since.
                None => applied,
            },
            None => (limit.set)(&settings.defaults).unwrap_or(applied),
        };
        let value = ceiling.map_or(wanted, |ceiling| wanted.min(ceiling));
        if value != applied {
            changes.push(Change::SetLimit((limit.limit, value)));
        }
    }
    Ok(changes)
}

fn above(name: &str, requested: u64, ceiling: u64) -> Verdict {
    Verdict::deny(
        "limit-above-ceiling",
        format!("the limit `{name}` of {requested} is above {ceiling}, the most that this service gives"),
    )
    .hint(format!("ask for {ceiling} at most, or leave `{name}` out"))
}
